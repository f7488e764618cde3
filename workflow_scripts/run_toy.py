"""The authors' two-dimensional experiment, beside what they published: table, picture and JSON.

Exit code 1 when a median lies outside its band.

Example: python workflow_scripts/run_toy.py results/toy
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=Path, help="where picture and JSON go")
    arguments = start(made, argv)

    from drifting_core.toy import report
    from drifting_core.toy.experiment import train_all

    with writer_lease(arguments.folder):
        courses = train_all(report.settings(), arguments.threads)
        measured = report.write(arguments.folder, courses)
    print(report.table(measured))
    print(f"\npicture: {arguments.folder / report.PICTURE}")
    report.require_inside(measured)


if __name__ == "__main__":
    raise SystemExit(run(main))
