"""Print what a configuration would run and cost: jobs by rule, GPU-hours, disk. Runs nothing.

With --data: the road from the archives to verified latents alone, in hours, disk, inodes and memory by number of GPUs.

Example: python workflow_scripts/plan.py --configfile config/l2.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.data_plan import table
from drifting_core.heads import planned_jobs
from drifting_core.jobs import parser, run, start, takes_configuration
from drifting_core.plan import read_rates, report


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    takes_configuration(made)
    made.add_argument("--data", action="store_true", help="the data stages, by number of GPUs")
    arguments = start(made, argv)

    config = load_file(arguments.configfile, arguments.config)
    if arguments.data:
        print(table(config, read_rates()))
        return
    print(report(config, planned_jobs(Path.cwd(), arguments.configfile, arguments.config)))


if __name__ == "__main__":
    raise SystemExit(run(main))
