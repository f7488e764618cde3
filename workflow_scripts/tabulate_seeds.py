"""The claims of runs that differ in training.seed only, side by side: table.md and the output beside it.

Example, after `make demo`: snakemake --profile local seeds --config 'seeds=[0,1,2]'  # trains two more runs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from drifting_core.evaluation.seeds import write_seeds_table
from drifting_core.jobs.job import parser, run, start
from drifting_core.jobs.leases import writer_lease


def claim(text: str) -> tuple[int, Path]:
    """SEED=PATH."""
    seed, separator, path = text.partition("=")
    if not separator or not seed.isdigit():
        raise argparse.ArgumentTypeError(f"found '{text}', expected SEED=PATH of a claim's table")
    return int(seed), Path(path)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--claims", type=claim, nargs="+", required=True, help="SEED=PATH of each run's tables/claim.json")
    made.add_argument("--output", type=Path, required=True, help="table.json to be made")
    arguments = start(made, argv)

    with writer_lease(arguments.output.parent):
        write_seeds_table(arguments.output, dict(arguments.claims))


if __name__ == "__main__":
    raise SystemExit(run(main))
