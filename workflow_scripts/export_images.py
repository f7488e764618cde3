"""Write a sample set as images, for those who want them: no other job reads them.

Beside the output: png/ or jpeg/ (a folder per class, files by sample number; JPEG of quality 95), images.tar (the PNGs in
one file), images.npz (as ADM's evaluator reads it: arr_0 uint8 (N, H, W, 3), arr_1 labels), or sheet.png (the first
samples of some classes).

Example, after `make demo`:
  snakemake --profile local results/runs/demo-53a04481/claim/seed_1000/samples/export/sheet.done
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
    made.add_argument("--format", choices=["png", "jpeg", "tar", "npz", "sheet"], required=True, help="what is written")
    made.add_argument("--samples", type=Path, required=True, help="manifest.json of the samples")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest.json of the tokenizer")
    made.add_argument("--index", type=Path, help="index.json, for the names of the classes; without it their numbers")
    made.add_argument("--output", type=Path, required=True, help="FORMAT.done to be made")
    arguments = start(made, argv)

    from drifting_core.evaluation.exporting import export_images
    from drifting_core.jobs.devices import device

    resources = Resources(**arguments.operations["evaluation"]["resources"])
    place = device(min(resources.gpus, 1), arguments.threads)  # several are for sampling
    with writer_lease(arguments.output.parent, arguments.output.name):
        export_images(
            arguments.output,
            arguments.format,
            sections(arguments.config, arguments.operations)["evaluation.contract"],
            samples_path=arguments.samples,
            tokenizer_path=arguments.tokenizer,
            index_path=arguments.index,
            device=place,
            threads=arguments.threads,
            configuration=digest(arguments.config),
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
