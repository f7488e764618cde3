"""Encode one shard of a split: images read by offset, centre crop, mirror, tokenizer, one HDF5 file.

Reads the index, the images and the tokenizer. Writes shard_K.h5 and the output shard_K.json beside it; a killed job goes on
from the last finished chunk (.shard_K.journal).

Example, after `make demo`: bash <(head -n 1 results/logs/photos-*/encode_latents_val_0.log)  # repeats that job
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
    made.add_argument("--split", required=True, help="train, val, or crops_K: K random crops of each training image")
    made.add_argument("--shard", type=int, required=True, help="number of the shard, from 0")
    made.add_argument("--index", type=Path, required=True, help="index.json of the data")
    made.add_argument("--tokenizer", type=Path, required=True, help="the tokenizer's manifest.json")
    made.add_argument("--output", type=Path, required=True, help="shard_K.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.encoding import encode_shard
    from drifting_core.jobs.devices import device
    from drifting_core.models.tokenizer import Tokenizer

    data = sections(arguments.config, arguments.operations)["data"]
    place = device(data.latents.resources.gpus, arguments.threads)
    # Shards of a split are encoded at the same time: each has its own lease.
    with writer_lease(arguments.output.parent, arguments.output.name):
        tokenizer = Tokenizer.of(arguments.tokenizer, place, data.latents.precision)
        exact = None if tokenizer.precision == "float32" else Tokenizer.of(arguments.tokenizer, place, "float32")
        encode_shard(
            data,
            arguments.split,
            arguments.shard,
            arguments.index,
            tokenizer,
            arguments.tokenizer,
            arguments.output,
            digest(arguments.config),
            arguments.threads,
            exact,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
