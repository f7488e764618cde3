"""Bring the tokenizer in place: from the Hugging Face hub, from a local folder, or trained on the training images.

Reads the images behind --index only when tokenizer.source is 'trained'. Writes vae/ and the output beside it.

Example, after `make demo`: bash <(head -n 1 results/logs/make_tokenizer/*.log)  # repeats that job
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
    made.add_argument(
        "--config", type=json_argument, required=True, help="JSON of the configuration slice: tokenizer; or data, tokenizer"
    )
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--index", type=Path, help="index.json; needed when tokenizer.source is 'trained'")
    made.add_argument("--fetched", type=Path, help="manifest of its download; needed when tokenizer.source is 'hub'")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)

    from drifting_core.jobs.devices import device
    from drifting_core.models.tokenizer_making import obtain

    typed = sections(arguments.config, arguments.operations)
    section = typed["tokenizer"]
    place = device(section.resources.gpus, arguments.threads)
    with writer_lease(arguments.output.parent):
        obtain(
            section,
            typed.get("data"),
            arguments.index,
            arguments.output,
            digest(arguments.config),
            place,
            arguments.threads,
            arguments.fetched,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
