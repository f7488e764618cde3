"""Export the recommended generator as a folder that runs with torch and diffusers alone: weights, pipeline.py, README.md.

Example, after `make demo`: snakemake --profile local model
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--recommendation", type=Path, required=True, help="recommendation.json of the run")
    made.add_argument("--exports", type=Path, nargs="+", required=True, help="metadata.json of each export it can name")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest.json of the tokenizer")
    made.add_argument("--index", type=Path, required=True, help="index.json, for the names of the classes")
    made.add_argument("--claim", type=Path, required=True, help="the claim's table, for the model card")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)

    from drifting_core.claims.model_export import export_model

    with writer_lease(arguments.output.parent):
        export_model(
            arguments.output,
            recommendation=arguments.recommendation,
            candidates=arguments.exports,
            tokenizer_path=arguments.tokenizer,
            index=arguments.index,
            claim=arguments.claim,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
