"""Check that the archives (or folders) are there, and that the archives are the published ones (MD5).

Reads the archives that data.archives names; --packed only ties them to the job that made them.

Example, after `make demo`: bash <(head -n 1 results/logs/photos-*/check_archives.log)  # repeats that job
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
    made.add_argument("--packed", type=Path, help="packed.json, when the workflow made the archives")
    made.add_argument("--output", type=Path, required=True, help="archives.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.index import check

    data = sections(arguments.config, arguments.operations)["data"]
    with writer_lease(arguments.output.parent):
        check(data, arguments.output, digest(arguments.config), arguments.packed)


if __name__ == "__main__":
    raise SystemExit(run(main))
