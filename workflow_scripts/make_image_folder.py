"""Write the images as an ImageFolder (a sub-folder per class, torchvision's meta.bin), for those who want one.

Reads the images by the index. Writes imagefolder/{train,val}/<wnid>/ and imagefolder/meta.bin beside the output. For
ImageNet these are 1.33 million files and 144 GB, which no other job reads.

Example, after `make demo`: snakemake --profile local results/data/photos-b48ec2b6/imagefolder.done
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the configuration slice: data, tokenizer")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--index", type=Path, required=True, help="index.json of the data")
    made.add_argument("--output", type=Path, required=True, help="imagefolder.done to be made")
    arguments = start(made, argv)

    from drifting_core.data.image_folder import make_image_folder

    data = sections(arguments.config, arguments.operations)["data"]
    with writer_lease(arguments.output.parent, arguments.output.name):
        make_image_folder(arguments.index, data.archives, arguments.output, digest(arguments.config))


if __name__ == "__main__":
    raise SystemExit(run(main))
