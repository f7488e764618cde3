"""Write one HDF5 file in which the shards of a split look like one, for readers of other projects.

It holds no latents: it refers to the shards beside the manifest, and HDF5 reads zeros where one of them is missing. Keep
them together. (Nothing here reads it: LatentStore resolves the manifest itself.)

Example, after `make demo`:
  python workflow_scripts/write_virtual_dataset.py --latents results/data/photos-b48ec2b6/latents/train/manifest.json \\
      --output results/data/photos-b48ec2b6/latents/train/all.h5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--latents", type=Path, required=True, help="the split's manifest.json")
    made.add_argument("--output", type=Path, required=True, help="the HDF5 file to be made")
    arguments = start(made, argv)

    from drifting_core.data.latents import write_virtual

    write_virtual(arguments.latents, arguments.output)


if __name__ == "__main__":
    raise SystemExit(run(main))
