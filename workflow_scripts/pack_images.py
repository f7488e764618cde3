"""Pack the embedded photos, or CIFAR-10, into ILSVRC-shaped archives (training tar of tars, validation tar, devkit tar.gz).

Reads nothing but the package, or data.archives.packed_from. Writes the three archives where data.archives says, and the
output, which lists them.

Example, after `make demo`: bash <(head -n 1 results/logs/pack_images_photos.log)  # repeats that job
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
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the configuration slice: data")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--output", type=Path, required=True, help="packed.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.packing import pack

    data = sections(arguments.config, arguments.operations)["data"]
    with writer_lease(arguments.output.parent):
        pack(data, arguments.output, digest(arguments.config))


if __name__ == "__main__":
    raise SystemExit(run(main))
