"""One table from evaluations under one contract.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/tabulate_last_k.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--title", required=True, help="what the table shows")
    made.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.json of each row")
    made.add_argument("--output", type=Path, required=True, help="the table to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.tables import make_table

    # Tables of a folder are made at the same time: each has its own lease.
    with writer_lease(arguments.output.parent, arguments.output.name):
        make_table(arguments.title, arguments.metrics).write(arguments.output)


if __name__ == "__main__":
    raise SystemExit(run(main))
