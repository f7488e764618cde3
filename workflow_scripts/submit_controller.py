"""Submit the Snakemake process itself as a small SLURM job, where the login nodes do not suffer long ones.

It is requeued before its time is up; its jobs go on running, and it takes them over. What stands behind `--` is
Snakemake's. Partition and account are the profile's for jobs without a GPU unless they are given.

Example: python workflow_scripts/submit_controller.py --profile slurm -- results/claim_bundle.done
"""

from __future__ import annotations

from collections.abc import Sequence

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--profile", default="slurm", help="Snakemake's (default: %(default)s)")
    made.add_argument("--partition", help="one that allows long jobs of a core")
    made.add_argument("--account", help="as sbatch takes it")
    made.add_argument("--minutes", type=int, default=1440, help="minutes until it is requeued (default: %(default)s)")
    made.add_argument("--memory-mb", type=int, default=2000, help="of memory (default: %(default)s)")
    made.add_argument("--cpus", type=int, default=1, help="cores (default: %(default)s)")
    made.add_argument("--extra", action="append", default=[], metavar="NAME=VALUE", help="of sbatch, as in qos=long")
    made.add_argument("snakemake", nargs="*", help="arguments of Snakemake and of run_workflow.py, behind --")
    arguments = start(made, argv)

    from drifting_core.workflow.controller import LOGS, submit

    job = submit(
        ["--profile", arguments.profile, *arguments.snakemake],
        minutes=arguments.minutes,
        memory_mb=arguments.memory_mb,
        cpus=arguments.cpus,
        partition=arguments.partition,
        account=arguments.account,
        **dict(option.split("=", 1) for option in arguments.extra),
    )
    print(f"submitted as job {job}; its log: {LOGS}/{job}_0_log.out")
    print("how it goes: python workflow_scripts/status.py")


if __name__ == "__main__":
    raise SystemExit(run(main))
