"""The claims of runs that differ in training.seed only, side by side: table.md and the output beside it.

Example: python workflow_scripts/tabulate_seeds.py --claims 0=results/runs/R/tables/claim.json \\
           1=results/runs/S/tables/claim.json --output results/seeds/F/table.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from drifting_core.evaluation.seeds import write_seeds_table
from drifting_core.jobs import parser, run, start
from drifting_core.leases import writer_lease


def claim(text: str) -> tuple[int, Path]:
    """SEED=PATH."""
    seed, separator, path = text.partition("=")
    if not separator or not seed.isdigit():
        raise argparse.ArgumentTypeError(f"found '{text}', expected SEED=PATH of a claim's table")
    return int(seed), Path(path)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--claims", type=claim, nargs="+", required=True, help="SEED=PATH of each run's tables/claim.json")
    made.add_argument("--output", type=Path, required=True, help="table.json")
    arguments = start(made, argv)

    with writer_lease(arguments.output.parent):
        write_seeds_table(arguments.output, dict(arguments.claims))


if __name__ == "__main__":
    raise SystemExit(run(main))
