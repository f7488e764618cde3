"""A job as a script of the workflow is one: started once, it starts its ranks as the plan says, and they train.

Example: python -m tests.unit.training.launched_ranks FOLDER '{"gpus": 4}'    (FOLDER: store/ and configuration.json)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import Resources
from drifting_core.jobs.devices import device, in_ranks, place
from drifting_core.jobs.job import StopRequest, parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=Path, help="where the training's files are")
    made.add_argument("resources", type=json.loads, help="JSON of Resources")
    arguments = start(made, argv)
    resources, folder, stop = Resources(**arguments.resources), arguments.folder, StopRequest()

    def work() -> None:
        from drifting_core.training.parallel import joined
        from tests.unit.training import test_ranks

        here = place(resources.processes)
        on = device(resources.gpus, arguments.threads, here.local_rank if here else 0)
        configuration = json.loads((folder / "configuration.json").read_text())
        with joined(here, on) as ranks:
            for case in test_ranks.CASES:
                if case.dtype == "float64":
                    test_ranks.run(case, configuration, folder, ranks)

    in_ranks(work, resources, folder, stop)


if __name__ == "__main__":
    sys.argv[0] = str(Path(__file__).resolve())
    raise SystemExit(run(main))
