"""Print a table of audited encoders: width, reconstruction error and accuracies on held-out images.

Example, after `make demo`: python workflow_scripts/show_encoders.py results/encoders/*/export/audit.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("audits", type=Path, nargs="+", help="audit.json of each encoder")
    arguments = start(made, argv)

    from drifting_core.models.auditing import table

    print(table(arguments.audits))


if __name__ == "__main__":
    raise SystemExit(run(main))
