"""Evaluate a set of samples: decode, bytes, feature network, numbers. Writes grid.png and the output beside it.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/evaluate_claim_1000.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import Resources, sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--config", type=json_argument, required=True, help="JSON of the configuration slice: evaluation.contract"
    )
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--samples", type=Path, required=True, help="manifest.json of the samples")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest.json of the tokenizer")
    made.add_argument("--network", type=Path, required=True, help="manifest.json of the feature network")
    made.add_argument("--reference", type=Path, required=True, help="manifest.json of the reference statistics")
    made.add_argument("--output", type=Path, required=True, help="metrics.json to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.evaluate import evaluate
    from drifting_core.jobs.devices import device

    resources = Resources(**arguments.operations["evaluation"]["resources"])
    place = device(min(resources.gpus, 1), arguments.threads)  # several are for sampling
    with writer_lease(arguments.output.parent):
        evaluate(
            arguments.output,
            sections(arguments.config, arguments.operations)["evaluation.contract"],
            samples_path=arguments.samples,
            tokenizer_path=arguments.tokenizer,
            network_path=arguments.network,
            reference_path=arguments.reference,
            device=place,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
