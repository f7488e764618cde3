"""Say that a canary went through, and remove the weights and the state that it leaves: they are as large as a run's.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/canary.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.evaluation.canary import pass_canary
from drifting_core.jobs.job import parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--metrics", type=Path, required=True, help="metrics.json of the canary's evaluation")
    made.add_argument("--output", type=Path, required=True, help="passed.json, in the canary's folder to be made")
    arguments = start(made, argv)

    with writer_lease(arguments.output.parent):
        pass_canary(arguments.metrics, arguments.output)


if __name__ == "__main__":
    raise SystemExit(run(main))
