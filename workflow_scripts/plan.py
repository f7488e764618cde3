"""Print what a configuration would run and cost, and refuse what cannot work. Runs nothing.

Jobs by stage and why they would run, GPU-hours, wall-clock at numbers of GPUs, disk and inodes, departures from the paper's
Table 8. The exit code is 1 when the plan cannot work. With --data: the road from the archives to verified latents alone.

Example: python workflow_scripts/plan.py --configfile config/l2.yaml
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.costs.data_preparation import table
from drifting_core.costs.estimates import RATES, read_rates
from drifting_core.faults import Fault
from drifting_core.jobs.job import parser, run, start, takes_configuration
from drifting_core.planning.hours import GPUS
from drifting_core.planning.report import make_plan, page


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    takes_configuration(made)
    made.add_argument("--gpus", type=int, nargs="+", default=list(GPUS), help="numbers of GPUs to give wall-clock for")
    made.add_argument("--profile", help="slurm, local or a profile's folder (default: slurm where sbatch is on PATH)")
    made.add_argument(
        "--partition-limit", type=float, metavar="MINUTES", help="the partition's time limit, instead of sinfo's"
    )
    made.add_argument(
        "--rates", type=Path, default=RATES, help="a file as measure_rates.py writes it (default: the shipped)"
    )
    made.add_argument("--json", action="store_true", help="the same for scripts (drifting_core.planning.report.make_plan)")
    made.add_argument("--data", action="store_true", help="the data stages, by number of GPUs")
    arguments = start(made, argv)
    if arguments.data:
        print(table(load_file(arguments.configfile, arguments.config), read_rates(arguments.rates)))
        return
    if min(arguments.gpus) < 1:
        made.error(f"--gpus {min(arguments.gpus)}: at least 1")

    found = make_plan(
        arguments.configfile, arguments.config, Path.cwd(), arguments.gpus, arguments.profile, arguments.partition_limit,
        arguments.rates,
    )  # fmt: skip
    print(json.dumps(found, indent=1) if arguments.json else page(found), flush=True)
    if found["refusals"]:
        raise Fault(f"this plan cannot work: {len(found['refusals'])} refusal(s) stand at its end; do what they say")


if __name__ == "__main__":
    raise SystemExit(run(main))
