"""Check a bundle: hashes, tables, recommendation; with --deep also numbers, words and figures. Exit 1 naming what differs.

Without --deep the bundle's folder is enough, wherever it lies. --deep needs the results folder that it was made in: it
draws figures and writes words again, recomputes every evaluation from its features, and decodes images from latents.

Example, after `make demo`: python workflow_scripts/verify_bundle.py --deep results/bundles/demo-*
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=Path, help="the bundle")
    made.add_argument("--deep", action="store_true", help="also against the features and latents of its evaluations")
    made.add_argument(
        "--images",
        type=int,
        default=200,
        help="with --deep: images of the claim that are decoded again (default: %(default)s)",
    )
    made.add_argument("--device", default="cpu", help="with --deep: cpu, or cuda (default: %(default)s)")
    arguments = start(made, argv)

    if arguments.deep:
        from drifting_core.claims.deep import verify_deeply

        print("\n".join(verify_deeply(arguments.folder, images=arguments.images, device=arguments.device)))
        return

    from drifting_core.claims.verifying import verify_bundle

    print(f"bundle whole: {len(verify_bundle(arguments.folder).files)} files; tables follow from their evaluations")


if __name__ == "__main__":
    raise SystemExit(run(main))
