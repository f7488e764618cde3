"""Write a run's full configuration into its folder, so that its evaluations can be asked for by name later.

Example, after `make demo`: bash <(head -n 1 results/logs/demo-*/record_run.log)  # repeats that job
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts import RunRecord
from drifting_core.artifacts.identity import digest
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import load
from drifting_core.jobs.job import json_argument, parser, run, start
from drifting_core.workflow.layout import Layout


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--config", type=json_argument, required=True, help="JSON of the run's configuration slice")
    made.add_argument("--values", type=json_argument, required=True, help="JSON of the active configuration")
    made.add_argument("--output", type=Path, required=True, help="config.json of the run's folder to be made")
    arguments = start(made, argv)

    # One of `seeds` has a run of its own: what is recorded is that one's configuration.
    owner = Layout(load(arguments.values)).find("run", arguments.output.parent.name)
    values = owner.model_dump(mode="json")
    RunRecord(configuration=digest(arguments.config), code=code_version(), values=values).write(arguments.output)


if __name__ == "__main__":
    raise SystemExit(run(main))
