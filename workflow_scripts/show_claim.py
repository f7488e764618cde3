"""Print the claim, and where its bundle, sample grid and report are.

Example, after `make demo`: python workflow_scripts/show_claim.py results/claim_bundle.done
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("claim", type=Path, help="claim_bundle.done of the results, or of a bundle")
    arguments = start(made, argv)

    from drifting_core.claims.verifying import summary

    print("\n".join(summary(arguments.claim)))


if __name__ == "__main__":
    raise SystemExit(run(main))
