"""Reference statistics: all training images and some validation images under the feature network.

Reads images inside the archives by byte offset. Writes statistics.npz, features_train.h5, features_val.h5 and the output.

Example, after `make demo`: bash <(head -n 1 results/logs/make_reference/*.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease

SLICE = "JSON of the configuration slice: data, tokenizer, evaluation.network, evaluation.reference"


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help=SLICE)
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--index", type=Path, required=True, help="index.json of the data")
    made.add_argument("--network", type=Path, required=True, help="manifest.json of the feature network")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.reference import make_reference
    from drifting_core.jobs.devices import device

    typed = sections(arguments.config, arguments.operations)
    place = device(typed["evaluation.network"].resources.gpus, arguments.threads)
    with writer_lease(arguments.output.parent):
        make_reference(
            arguments.output,
            typed["data"],
            typed["evaluation.reference"],
            index=arguments.index,
            network_path=arguments.network,
            device=place,
            threads=arguments.threads,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
