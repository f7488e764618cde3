"""Index the images: class, place and length of every one; counts are compared with data.expected.

Reads the tar headers and the devkit (or lists the folders); extracts nothing. Writes index.npz and the output.

Example, after `make demo`: bash <(head -n 1 results/logs/photos-*/index_archives.log)  # repeats that job
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
    made.add_argument("--archives", type=Path, required=True, help="archives.json of the data")
    made.add_argument("--output", type=Path, required=True, help="index.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.index import index

    data = sections(arguments.config, arguments.operations)["data"]
    with writer_lease(arguments.output.parent):
        index(data, arguments.archives, arguments.output, digest(arguments.config))


if __name__ == "__main__":
    raise SystemExit(run(main))
