"""One screen on the folder that the workflow runs in: whether a head is alive, what runs, waits and failed lately (with
the end of its log), how far each training and each claim is. Changes nothing.

Example: python workflow_scripts/status.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--results", type=Path, default=Path("results"), help="`results` of the configuration (default: %(default)s)"
    )
    arguments = start(made, argv)

    from drifting_core.workflow.status import page

    print(page(Path.cwd(), arguments.results))


if __name__ == "__main__":
    raise SystemExit(run(main))
