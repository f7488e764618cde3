"""Sample latents from an export at a guidance strength, or from the export and guidance that a recommendation names.

A canary's number of samples (training.canary_samples) is an operation; its labels are of as many classes as that allows.

Writes latents.safetensors (float16) and the output beside it. As many processes as evaluation.resources says share the
batches; finished ones are kept. Exit code 75 means: stopped as asked, the same command continues.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/sample_claim_1000.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import Resources, sections
from drifting_core.jobs.devices import device, in_ranks, place
from drifting_core.jobs.job import StopRequest, json_argument, parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--config", type=json_argument, required=True, help="JSON of the configuration slice: evaluation.sampling"
    )
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--export", type=Path, help="metadata.json of the export; with --alpha")
    made.add_argument("--alpha", type=float, help="guidance strength")
    made.add_argument("--recommendation", type=Path, help="instead of --export and --alpha; with --exports")
    made.add_argument("--exports", type=Path, nargs="+", default=[], help="metadata.json of each export it can name")
    made.add_argument("--seed", type=int, required=True, help="seed of noise and style")
    made.add_argument("--samples", type=int, help="number of samples")
    made.add_argument("--index", type=Path, help="index.json, for the label plan 'validation'")
    made.add_argument("--canary", action="store_true", help="instead of --samples: those of training.canary_samples")
    made.add_argument("--output", type=Path, required=True, help="manifest.json to be made")
    arguments = start(made, argv)
    if (arguments.recommendation is None) == (arguments.export is None or arguments.alpha is None):
        made.error("give --export and --alpha, or --recommendation and --exports")
    if arguments.canary == (arguments.samples is not None):
        made.error("give --samples or --canary")

    from drifting_core.evaluation.sampler import SampleSet, assemble, recommended_export, write_batches

    resources, stop = Resources(**arguments.operations["evaluation"]["resources"]), StopRequest()
    export, alpha = arguments.export, arguments.alpha
    if arguments.recommendation:
        export, alpha = recommended_export(arguments.recommendation, arguments.exports)
    wanted = SampleSet(
        arguments.output,
        export,
        sections(arguments.config, arguments.operations)["evaluation.sampling"],
        alpha=alpha,
        seed=arguments.seed,
        count=arguments.operations["training"]["canary_samples"] if arguments.canary else arguments.samples,
        configuration=digest(arguments.config),
        recommendation=arguments.recommendation,
        index=arguments.index,
        canary=arguments.canary,
    )

    def work() -> None:
        here = place(resources.processes)
        on = device(resources.gpus, arguments.threads, here.local_rank if here else 0)
        write_batches(wanted, on, stop, rank=here.rank if here else 0, size=resources.processes)

    in_ranks(work, resources, arguments.output.parent, stop, finish=lambda: assemble(wanted))


if __name__ == "__main__":
    raise SystemExit(run(main))
