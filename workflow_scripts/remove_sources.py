"""List what images can go once their latents are verified in full, and remove it when told so with --yes.

archives: the three archives that data.archives names. imagefolder: the ImageFolder that was made from them. Later neighbour
audits show pictures of training images: they need the archives again.

Example, after `make demo`: python workflow_scripts/remove_sources.py archives --configfile config/demo.yaml  # lists them
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("what", choices=("archives", "imagefolder"), help="what may go")
    made.add_argument("--configfile", type=Path, default=Path("config/demo.yaml"), help="preset (default: %(default)s)")
    made.add_argument("--yes", action="store_true", help="remove what is listed")
    arguments = start(made, argv)

    from drifting_core.data.removing import removable, remove

    found = removable(load_file(arguments.configfile), arguments.what)
    for each in found:
        print(f"{each.path}: {each.files} file(s), {each.bytes / 1e9:.3f} GB")
    if not found:
        print("nothing is there")
    elif arguments.yes:
        remove(found)
        print("removed")
    else:
        print("nothing was removed; --yes removes these")


if __name__ == "__main__":
    raise SystemExit(run(main))
