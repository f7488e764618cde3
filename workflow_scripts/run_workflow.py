"""Start Snakemake here: with a stale lock removed when its owner is dead, refusing (with the pid) when it lives.

All arguments are Snakemake's. Example: python workflow_scripts/run_workflow.py --profile profiles/local \\
                                          results/claim_bundle.done
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from drifting_core.heads import clear_stale_lock
from drifting_core.jobs import run


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    clear_stale_lock(Path.cwd(), arguments)
    # Snakemake takes this process's place: signals and the exit code are its own.
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments])


if __name__ == "__main__":
    raise SystemExit(run(main))
