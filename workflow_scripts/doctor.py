"""Check in ten seconds what a first run would trip over: one line per check, ok, warn or FAIL, and what to do.

Packages, files from outside, the results' disk, and SLURM (or this machine's GPUs) against what the jobs will ask for. The
exit code is 1 when a check fails. Nothing is changed.

Example: python workflow_scripts/doctor.py --profile local
"""

from __future__ import annotations

from collections.abc import Sequence

from drifting_core.doctor import examine
from drifting_core.faults import Fault
from drifting_core.jobs.job import parser, run, start, takes_configuration


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--profile", help="slurm, local or a profile's folder (default: slurm where sbatch is on PATH)")
    takes_configuration(made)
    arguments = start(made, argv)

    failed = 0
    for finding in examine(arguments.profile, arguments.configfile, arguments.config):
        print(finding, flush=True)
        failed += finding.level == "FAIL"
    if failed:
        raise Fault(f"{failed} check(s) failed; do what their lines say, and ask again")


if __name__ == "__main__":
    raise SystemExit(run(main))
