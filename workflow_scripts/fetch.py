"""Bring published files from the Hugging Face hub to where the workflow reads them: the only job that needs internet.

Files that somebody put there already are taken as they are. Where there is no internet the message says what to download
on another machine, and where it belongs.

Example: python workflow_scripts/fetch.py --download '{"key": "latent_L_sota-1a5afa9f", "repository": ..., ...}' \\
           --output results/sources/latent_L_sota-1a5afa9f/manifest.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.fetching import write_fetched
from drifting_core.identity import digest
from drifting_core.jobs import json_argument, parser, run, start
from drifting_core.leases import writer_lease
from drifting_core.published import Download


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--download", type=json_argument, required=True, help="JSON of published.Download")
    made.add_argument("--output", type=Path, required=True, help="manifest.json of the folder that is filled")
    arguments = start(made, argv)

    with writer_lease(arguments.output.parent):
        write_fetched(Download(**arguments.download), arguments.output, digest(arguments.download))


if __name__ == "__main__":
    raise SystemExit(run(main))
