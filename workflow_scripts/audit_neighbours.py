"""Look up the nearest training images of generated ones. Writes the output, and a picture per space beside it.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/audit_neighbours.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import Archives, Resources, sections
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.jobs.leases import writer_lease

SLICE = "JSON of the configuration slice: evaluation.neighbours, evaluation.contract"


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help=SLICE)
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--samples", type=Path, required=True, help="manifest.json of the samples")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest.json of the tokenizer")
    made.add_argument("--network", type=Path, required=True, help="manifest.json of the feature network")
    made.add_argument("--reference", type=Path, required=True, help="manifest.json of the reference statistics")
    made.add_argument("--index", type=Path, required=True, help="index.json of the training images")
    made.add_argument("--latents", type=Path, nargs="*", default=(), help="manifests of the stores train and val, if any")
    made.add_argument("--space-networks", type=Path, nargs="*", default=(), help="manifests of further networks")
    made.add_argument("--space-references", type=Path, nargs="*", default=(), help="references made with these, in order")
    made.add_argument("--output", type=Path, required=True, help="neighbours.json to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.neighbours import Parts, audit
    from drifting_core.jobs.devices import device

    resources = Resources(**arguments.operations["evaluation"]["resources"])
    place = device(min(resources.gpus, 1), arguments.threads)  # several are for sampling
    stages = (arguments.samples, arguments.tokenizer, arguments.network, arguments.reference, arguments.index)
    spaces = tuple(zip(arguments.space_networks, arguments.space_references, strict=True))
    typed = sections(arguments.config, arguments.operations)
    with writer_lease(arguments.output.parent):
        audit(
            arguments.output,
            typed["evaluation.neighbours"],
            typed["evaluation.contract"],
            Archives(**arguments.operations["data"]["archives"]),
            Parts(*stages, tuple(arguments.latents) or None, spaces),
            device=place,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
