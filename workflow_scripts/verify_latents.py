"""Verify a split of the latent store: hashes, checksums, finite values, ids and labels, moments.

Reads every byte of the shards (with data.verification: quick, evenly spread chunks), and the index. Writes the output
when everything holds.

Example, after `make demo`: bash <(head -n 1 results/logs/photos-*/verify_latents_val.log)  # repeats that job
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
    made.add_argument("--latents", type=Path, required=True, help="the split's manifest.json")
    made.add_argument("--output", type=Path, required=True, help="verify_<split>.json to be made")
    arguments = start(made, argv)

    from drifting_core.data.verifying import verify

    data = sections(arguments.config, arguments.operations)["data"]
    # Both splits are verified at the same time: each has its own lease.
    with writer_lease(arguments.output.parent, arguments.output.name):
        verify(data, arguments.index, arguments.latents, arguments.output, digest(arguments.config))


if __name__ == "__main__":
    raise SystemExit(run(main))
