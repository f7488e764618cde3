"""Train the latent-MAE to its last step, from its newest committed state (undeclared, in state/ beside the output).

Example, after `make demo`: bash <(head -n 1 results/logs/train_encoder/*.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import sections
from drifting_core.jobs.devices import in_ranks
from drifting_core.jobs.job import StopRequest, json_argument, parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the encoder's configuration slice")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--latents", type=Path, required=True, help="manifest of the training latents")
    made.add_argument("--verification", type=Path, required=True, help="verify_train.json of these latents")
    made.add_argument("--tokenizer", type=Path, required=True, help="manifest of the tokenizer (for online crops)")
    made.add_argument("--index", type=Path, required=True, help="index of the images (for online crops)")
    made.add_argument("--crops", type=Path, nargs=2, default=(), help="stored crops and their verification")
    made.add_argument("--init-from", type=Path, help="metadata.json of an encoder's export whose weights step 0 has")
    made.add_argument("--output", type=Path, required=True, help="trained.json of the encoder's folder to be made")
    made.add_argument("--max-seconds", type=float, help="commit and exit 75 after this many seconds")
    arguments = start(made, argv)
    parts, stop = sections(arguments.config, arguments.operations), StopRequest(arguments.max_seconds)

    def work() -> None:
        from drifting_core.training.runs import train_encoder

        train_encoder(
            parts,
            configuration=digest(arguments.config),
            latents=arguments.latents,
            verification=arguments.verification,
            tokenizer=arguments.tokenizer,
            index=arguments.index,
            crops=arguments.crops,
            init_from=arguments.init_from,
            output=arguments.output,
            threads=arguments.threads,
            stop=stop,
        )

    in_ranks(work, parts["encoder"].resources, arguments.output.parent, stop)


if __name__ == "__main__":
    raise SystemExit(run(main))
