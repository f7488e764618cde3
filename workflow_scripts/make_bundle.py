"""Put everything that a reader needs to check a run's numbers into one folder; claim_bundle.done is written last.

Needed roles: claim, last_k, alpha_sweep, recommendation, neighbours, network, reference, tokenizer, index; metrics for
every row of the tables. Any other JSON below results/ is taken in under the role that it is given.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/make_bundle.log)  # repeats that job
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
    made.add_argument(
        "--config", type=json_argument, required=True, help="JSON of the configuration slice: the whole run and evaluation"
    )
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--run", required=True, help="name of the run's folder")
    made.add_argument("--inputs", type=role_and_path, nargs="+", required=True, help="role=path of each artifact")
    made.add_argument("--output", type=Path, required=True, help="bundles/RUN/claim_bundle.done to be made")
    arguments = start(made, argv)

    from drifting_core.claims.bundle import make_bundle

    with writer_lease(arguments.output.parent):
        make_bundle(
            arguments.output.parent,
            arguments.run,
            arguments.inputs,
            typed=sections(arguments.config, arguments.operations),
            configuration=digest(arguments.config),
        )


def role_and_path(text: str) -> tuple[str, Path]:
    role, path = text.split("=", 1)
    return role, Path(path)


if __name__ == "__main__":
    raise SystemExit(run(main))
