"""Sample latents from an export at a guidance strength, or from the export and guidance that a recommendation names.

A canary's number of samples (training.canary_samples) is an operation; its labels are of as many classes as that allows.

Writes latents.safetensors (float16) and the output beside it.

Example:
  python workflow_scripts/sample.py --config "$SLICE" --operations "$OPERATIONS" \\
      --export results/runs/R/exports/step_1000/metadata.json --alpha 1.5 --seed 1 --samples 500 \\
      --output results/runs/R/samples/step_1000/alpha_1.5/seed_1/n_500/manifest.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import Resources, sections
from drifting_core.identity import digest
from drifting_core.jobs import json_argument, parser, run, start
from drifting_core.leases import writer_lease


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help="slice: evaluation.sampling")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--export", type=Path, help="metadata.json of the export; with --alpha")
    made.add_argument("--alpha", type=float, help="guidance strength")
    made.add_argument("--recommendation", type=Path, help="instead of --export and --alpha; with --exports")
    made.add_argument("--exports", type=Path, nargs="+", default=[], help="metadata.json of each export it can name")
    made.add_argument("--seed", type=int, required=True, help="seed of noise and style")
    made.add_argument("--samples", type=int, help="number of samples, a multiple of the classes")
    made.add_argument("--canary", action="store_true", help="instead of --samples: those of training.canary_samples")
    made.add_argument("--output", type=Path, required=True, help="manifest.json")
    arguments = start(made, argv)
    if (arguments.recommendation is None) == (arguments.export is None or arguments.alpha is None):
        made.error("give --export and --alpha, or --recommendation and --exports")
    if arguments.canary == (arguments.samples is not None):
        made.error("give --samples or --canary")

    from drifting_core.devices import device
    from drifting_core.evaluation.sampler import recommended_export, write_samples

    place = device(Resources(**arguments.operations["evaluation"]["resources"]).gpus, arguments.threads)
    export, alpha = arguments.export, arguments.alpha
    if arguments.recommendation:
        export, alpha = recommended_export(arguments.recommendation, arguments.exports)
    with writer_lease(arguments.output.parent):
        write_samples(
            arguments.output,
            export,
            sections(arguments.config, arguments.operations)["evaluation.sampling"],
            alpha=alpha,
            seed=arguments.seed,
            count=arguments.operations["training"]["canary_samples"] if arguments.canary else arguments.samples,
            device=place,
            configuration=digest(arguments.config),
            recommendation=arguments.recommendation,
            canary=arguments.canary,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
