"""Take in an encoder or generator that was trained elsewhere, as an export that later stages read.

The source is a folder in the authors' published format (flax msgpack and metadata.json) or an export of this project.

Example, of a job that needs published weights: snakemake -n results/claim_bundle.done --configfile config/released_l2.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("network", choices=("encoder", "generator"), help="what is imported")
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the stage's configuration slice")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer whose latents it knows")
    made.add_argument("--fetched", type=Path, help="manifest of its download; without it the source is a folder")
    made.add_argument("--step", type=int, help="step that the export is called by; default: the source's own")
    made.add_argument("--output", type=Path, required=True, help="metadata.json of the export to be made")
    arguments = start(made, argv)

    from drifting_core.models.importing import import_network

    with writer_lease(arguments.output.parent):
        import_network(
            sections(arguments.config, arguments.operations),
            arguments.network,
            configuration=digest(arguments.config),
            tokenizer=arguments.tokenizer,
            fetched=arguments.fetched,
            step=arguments.step,
            output=arguments.output,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
