"""Print the `expected` block of a configuration whose images lie in folders, as the folders are, to be pasted.

Example: python workflow_scripts/describe_images.py --configfile config/own_images.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/own_images.yaml"),
        help="preset with data.source: folder (default: %(default)s)",
    )
    arguments = start(made, argv)

    from drifting_core.data.folders import describe

    print(describe(load_file(arguments.configfile).data))


if __name__ == "__main__":
    raise SystemExit(run(main))
