"""Tie the shards of a split together: the manifest that LatentStore opens.

Reads the shards' JSON files and the index. Writes the output beside the shards.

Example, after `make demo`: bash <(head -n 1 results/logs/photos-*/combine_latents_val.log)  # repeats that job
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
    made.add_argument("--split", required=True, help="train, val or crops_K")
    made.add_argument("--index", type=Path, required=True, help="index.json of the data")
    made.add_argument("--shards", type=Path, nargs="+", required=True, help="shard_0.json, shard_1.json, ...")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.latents import combine

    data = sections(arguments.config, arguments.operations)["data"]
    with writer_lease(arguments.output.parent):
        combine(arguments.split, data, arguments.index, arguments.shards, arguments.output, digest(arguments.config))


if __name__ == "__main__":
    raise SystemExit(run(main))
