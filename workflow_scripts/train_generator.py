"""Train the drifting generator up to a milestone and export it, from its newest committed state.

Exit code 75 means: stopped as asked, state committed, the same command continues.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/train_generator_1000.log)  # repeats that job
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
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the run's configuration slice")
    made.add_argument("--operations", type=json_argument, required=True, help="JSON of all operations")
    made.add_argument("--until", type=int, required=True, help="milestone in steps; 0 exports the untrained network")
    made.add_argument("--latents", type=Path, required=True, help="manifest of the training latents")
    made.add_argument("--verification", type=Path, required=True, help="verify_train.json of these latents")
    made.add_argument("--encoder", type=Path, required=True, help="metadata.json of the encoder's export")
    made.add_argument("--audit", type=Path, required=True, help="audit.json of the same export")
    made.add_argument("--init-from", type=Path, help="metadata.json of a generator's export whose weights step 0 has")
    made.add_argument("--output", type=Path, required=True, help="metadata.json of the export to be made")
    made.add_argument("--max-seconds", type=float, help="commit and exit 75 after this many seconds")
    arguments = start(made, argv)
    parts, stop = sections(arguments.config, arguments.operations), StopRequest(arguments.max_seconds)

    def work() -> None:
        from drifting_core.training.runs import train_generator

        train_generator(
            parts,
            configuration=digest(arguments.config),
            until=arguments.until,
            latents=arguments.latents,
            verification=arguments.verification,
            encoder=arguments.encoder,
            audit=arguments.audit,
            init_from=arguments.init_from,
            output=arguments.output,
            threads=arguments.threads,
            stop=stop,
        )

    in_ranks(work, parts["training"].resources, arguments.output.parent.parent.parent, stop)


if __name__ == "__main__":
    raise SystemExit(run(main))
