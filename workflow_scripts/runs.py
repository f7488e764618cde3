"""Print a table of all runs: state, step, distance under its contract, guidance, cost, and what they differ in.

With --compare: two runs side by side, in configuration and in every evaluation that both have under one contract.

Example: python workflow_scripts/runs.py --results results
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--results", type=Path, default=Path("results"), help="`results` of the configuration (default: %(default)s)"
    )
    made.add_argument("--compare", nargs=2, metavar="RUN", help="names of two runs")
    made.add_argument("--json", action="store_true", help="the same as JSON, for notebooks")
    arguments = start(made, argv)

    from drifting_core.runs import comparing
    from drifting_core.runs.reading import Run

    if arguments.compare:
        compared = comparing.compare(*(Run(arguments.results / "runs" / name) for name in arguments.compare))
        print(json.dumps(compared, indent=1) if arguments.json else "\n".join(comparing.comparison(compared)))
        return
    runs = list(comparing.runs_of(arguments.results))
    summaries = [comparing.summary(each, runs[0]) for each in runs]
    if arguments.json:
        print(json.dumps(summaries, indent=1))
    else:
        print("\n".join(comparing.table(summaries)) or f"no run in {arguments.results}")


if __name__ == "__main__":
    raise SystemExit(run(main))
