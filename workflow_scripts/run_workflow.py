"""Start Snakemake here, and only here: it refuses (saying where) while another Snakemake works in this folder, and
removes the lock of a dead one. On SLURM it first waits for jobs that a dead one left running, so that none is run twice,
and starts Snakemake again when it hangs.

Arguments are Snakemake's, but for
  --cancel-jobs         cancel the jobs that are left instead of waiting for them
  --silent-minutes N    Snakemake hangs when it has said nothing for this long and none of its jobs is left (10). While
                        jobs run it looks for news every 3 minutes at least, so fewer than 4 are too few

Example: python workflow_scripts/run_workflow.py --profile local results/claim_bundle.done
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from drifting_core.jobs.job import run
from drifting_core.workflow.supervision import run_snakemake


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    made.add_argument("--cancel-jobs", action="store_true", help="cancel the jobs that are left")
    made.add_argument(
        "--silent-minutes", type=float, default=10, help="minutes of silence before it is started again (%(default)s)"
    )
    own, arguments = made.parse_known_args(arguments)
    raise SystemExit(run_snakemake(arguments, **vars(own)))


if __name__ == "__main__":
    raise SystemExit(run(main))
