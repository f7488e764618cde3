"""Audit an encoder's export: files, architecture, features, and what it knows of the validation latents.

Example, after `make demo`: bash <(head -n 1 results/logs/audit_encoder/*.log)  # repeats that job
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
    made.add_argument("--encoder", type=Path, required=True, help="metadata.json of the export")
    made.add_argument("--train", type=Path, required=True, help="manifest of the training latents (for class means)")
    made.add_argument("--val", type=Path, required=True, help="manifest of the validation latents")
    made.add_argument("--output", type=Path, required=True, help="audit.json beside the export to be made")
    arguments = start(made, argv)

    from drifting_core.jobs.devices import device
    from drifting_core.models.auditing import audit_encoder

    encoder = sections(arguments.config, arguments.operations)["encoder"]
    with writer_lease(arguments.output.parent):
        audit_encoder(
            arguments.output,
            encoder,
            arguments.encoder,
            arguments.train,
            arguments.val,
            device=device(min(encoder.resources.gpus, 1), arguments.threads),
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
