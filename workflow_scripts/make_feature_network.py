"""Bring the feature network of the evaluation in place: the user's Inception weights, or a classifier trained here.

Reads the images behind --index for a classifier only. Writes model.safetensors and the output beside it.

Example, after `make demo`: bash <(head -n 1 results/logs/make_feature_network/*.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease

SLICE = "JSON of the configuration slice: evaluation.network; for a classifier data and tokenizer too"


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help=SLICE)
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--index", type=Path, help="index.json; needed for a classifier")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.networks.making import make_network
    from drifting_core.jobs.devices import device

    typed = sections(arguments.config, arguments.operations)
    section = typed["evaluation.network"]
    place = device(section.resources.gpus, arguments.threads)
    with writer_lease(arguments.output.parent):
        make_network(
            arguments.output,
            section,
            typed.get("data"),
            arguments.index,
            device=place,
            threads=arguments.threads,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
