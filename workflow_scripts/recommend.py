"""Choose export and guidance from the tables of the selection seeds.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/recommend.log)  # repeats that job
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
        "--config", type=json_argument, required=True, help="JSON of the configuration slice: evaluation.selection"
    )
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--last-k", type=Path, required=True, help="table of the last exports")
    made.add_argument("--sweep", type=Path, required=True, help="table of the guidance strengths")
    made.add_argument("--output", type=Path, required=True, help="recommendation.json to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.recommend import write_recommendation

    with writer_lease(arguments.output.parent, arguments.output.name):
        write_recommendation(
            arguments.output,
            sections(arguments.config, arguments.operations)["evaluation.selection"],
            last_k=arguments.last_k,
            sweep=arguments.sweep,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
