"""Bring published files from the Hugging Face hub to where the workflow reads them: the only job that needs internet.

Files that somebody put there already are taken as they are. Where there is no internet the message says what to download
on another machine, and where it belongs.

With --list, by hand: everything that a configuration needs from outside (place, size, hash, source), and what is missing.

Example: python workflow_scripts/fetch.py --list --configfile config/released_l2.yaml
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts.identity import digest
from drifting_core.config import load_file
from drifting_core.doctor.staging import listing, needs
from drifting_core.jobs.job import json_argument, parser, run, start, takes_configuration
from drifting_core.jobs.leases import writer_lease
from drifting_core.sources.fetching import write_fetched
from drifting_core.sources.published import Download


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--download", type=json_argument, help="JSON of published.Download")
    made.add_argument("--output", type=Path, help="manifest.json of the folder that is filled")
    made.add_argument("--list", action="store_true", help="fetch nothing: print what a configuration needs")
    made.add_argument("--json", action="store_true", help="the list as JSON")
    takes_configuration(made)
    arguments = start(made, argv)

    if arguments.list:
        wanted = needs(load_file(arguments.configfile, arguments.config))
        print(json.dumps([need.record() for need in wanted], indent=1) if arguments.json else listing(wanted))
        return
    if not (arguments.download and arguments.output):
        made.error("give --download and --output, or --list")
    with writer_lease(arguments.output.parent):
        write_fetched(Download(**arguments.download), arguments.output, digest(arguments.download))


if __name__ == "__main__":
    raise SystemExit(run(main))
