"""Draw how a run goes, from the evaluations that are there: its numbers over the milestones, and samples of equal noise.

Example, after `make demo`: python workflow_scripts/draw_progress.py --run results/runs/demo-53a04481
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--run", type=Path, required=True, help="folder of the run")
    made.add_argument("--output", type=Path, help="picture of the numbers (default: progress.png in the run's folder)")
    made.add_argument("--samples", type=Path, help="picture of the samples (default: steps.png in the run's folder)")
    arguments = start(made, argv)

    from drifting_core.claims.progress import draw

    output = arguments.output or arguments.run / "progress.png"
    samples = arguments.samples or arguments.run / "steps.png"
    draw(arguments.run, output, samples)
    print(f"{output}\n{samples}")


if __name__ == "__main__":
    raise SystemExit(run(main))
