"""List what can go from the results folder, what stays and why, and how much each frees; remove it when told so with --yes.

A bundle stays verifiable (also --deep), trainings can go on, and Snakemake makes again what somebody asks for. What must
stay for other reasons stands in results/golden.yaml (or --keep FILE). What went is recorded in results/pruned.jsonl.

Example: python workflow_scripts/prune.py --results results
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from drifting_core.config import load_file
from drifting_core.faults import Fault
from drifting_core.jobs.job import log, parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--results", type=Path, default=Path("results"), help="`results` of the configuration (default: %(default)s)"
    )
    made.add_argument("--run", nargs="+", default=[], metavar="NAME", help="these runs (or encoders, data) only")
    made.add_argument("--only", type=lambda text: text.split(","), metavar="KIND,...", help="these kinds only")
    made.add_argument("--keep", type=Path, metavar="FILE", help="keep list; by default golden.yaml in the results folder")
    made.add_argument("--configfile", type=Path, help="also keep what this configuration needs (a longer horizon)")
    made.add_argument("--json", action="store_true", help="all pieces as JSON")
    made.add_argument("--yes", action="store_true", help="remove what is listed")
    arguments = start(made, argv)

    from drifting_core.housekeeping import pruned, pruning
    from drifting_core.housekeeping.keeping import KeepList, Known

    results, kinds = arguments.results, arguments.only or pruning.DEFAULT
    if unknown := sorted(set(kinds) - pruning.KINDS.keys()):
        raise Fault(f"--only {unknown[0]}: no such kind; give some of: {', '.join(pruning.KINDS)}")
    keep = KeepList(results, arguments.keep)
    for pattern in keep.unmatched:
        log.warning("%s: %s matches nothing below %s", keep.path, pattern, results)
    if keep.unmatched and arguments.yes:
        raise Fault(f"{keep.path}: {keep.unmatched[0]} keeps nothing; nothing was removed: mend or remove that line")
    known = Known(results, load_file(arguments.configfile) if arguments.configfile else None)
    found = pruning.candidates(results, known, keep, arguments.run)
    if arguments.json:
        print(json.dumps(pruned.as_json(results, found), indent=1))
    else:
        print("\n".join([*pruned.page(found, kinds), *pruned.orphans(known)]))
    if arguments.yes:
        log.info("removed: %s", pruned.prune(results, pruned.chosen(found, kinds)))
    elif not arguments.json:
        print("nothing was removed; --yes removes what can go")


if __name__ == "__main__":
    raise SystemExit(run(main))
