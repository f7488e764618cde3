"""Make results/claim_bundle.done, the active configuration's claim, from the bundle of its run, after re-hashing it.

Example, after `make demo`: bash <(head -n 1 results/logs/claim_bundle.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--bundle", type=Path, required=True, help="claim_bundle.done of a bundle")
    made.add_argument("--output", type=Path, required=True, help="claim_bundle.done of the results to be made")
    arguments = start(made, argv)

    from drifting_core.claims.verifying import point_to

    point_to(arguments.bundle, arguments.output)


if __name__ == "__main__":
    raise SystemExit(run(main))
