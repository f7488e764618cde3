"""Re-hash every file of a bundle; exit 1 and name the first that is changed, missing or not listed.

Example: python workflow_scripts/verify_bundle.py results/bundles/demo-0123abcd
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=Path, help="the bundle")
    arguments = start(made, argv)

    from drifting_core.claims.verifying import verify_bundle

    print(f"bundle whole: {len(verify_bundle(arguments.folder).files)} files")


if __name__ == "__main__":
    raise SystemExit(run(main))
