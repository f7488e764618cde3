"""Export the encoder of a trained latent-MAE: EMA weights without decoder and classifier.

Example, after `make demo`: bash <(head -n 1 results/logs/export_encoder/*.log)  # repeats that job
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
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the encoder's configuration slice")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--trained", type=Path, required=True, help="trained.json of the encoder")
    made.add_argument("--latents", type=Path, required=True, help="manifest of the training latents")
    made.add_argument("--output", type=Path, required=True, help="metadata.json of the export to be made")
    arguments = start(made, argv)

    from drifting_core.training.runs import export_encoder

    with writer_lease(arguments.output.parent):
        export_encoder(
            sections(arguments.config, arguments.operations),
            configuration=digest(arguments.config),
            trained=arguments.trained,
            latents=arguments.latents,
            output=arguments.output,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
