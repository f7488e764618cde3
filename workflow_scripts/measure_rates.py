"""Measure this machine's rates, from which a plan computes its hours: trainings, SD-VAE, Inception, a core, the disk.

No data and no weights are needed. On a cluster: in a job with one GPU, with config/ablation.yaml.

Example: python workflow_scripts/measure_rates.py --configfile config/demo.yaml --output results/rates.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.evaluation import rates
from drifting_core.jobs.job import parser, run, start, takes_configuration


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    takes_configuration(made)
    made.add_argument("--output", type=Path, default=Path("results/rates.yaml"), help="file to write (default: %(default)s)")
    arguments = start(made, argv)
    config = load_file(arguments.configfile, arguments.config)
    found = []
    for rate in rates.measure(config, arguments.threads):
        print(f"{rate.key:<38}{rate.value:>12.4g}   {rate.how}", flush=True)
        found.append(rate)
    rates.write(found, arguments.output)
    print(f"written to {arguments.output}; now: make plan RATES={arguments.output}")


if __name__ == "__main__":
    raise SystemExit(run(main))
