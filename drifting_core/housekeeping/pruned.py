"""What `pruning.py` found, shown, measured and removed, and the record of what went."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drifting_core.artifacts import Samples, sha256_file
from drifting_core.faults import Fault
from drifting_core.housekeeping.disk_use import Size, measure
from drifting_core.housekeeping.keeping import Known, at_work
from drifting_core.housekeeping.pruning import KINDS, ON_REQUEST, Candidate
from drifting_core.jobs.job import Progress
from drifting_core.jobs.leases import writer_lease

log = logging.getLogger(__name__)

RECORD = "pruned.jsonl"  # in the results folder


def page(found: Sequence[Candidate], kinds: Sequence[str]) -> list[str]:
    """What can go of these kinds, piece by piece; what stays, by reason; what goes only when it is named."""
    lines = []
    for kind in kinds:
        going = [each for each in found if each.kind == kind and not each.kept]
        if going:
            lines += [f"{kind}: {KINDS[kind]}", *(f"  {_shown(each)}" for each in going), ""]
    stays: dict[tuple[str, str], list[Path]] = {}
    for each in found:
        if each.kept:
            stays.setdefault((each.kind, each.kept), []).extend(each.paths)
    lines += ["what stays, and why", *(f"  {kind}: {measure(paths)}: {why}" for (kind, why), paths in stays.items()), ""]
    for kind in (kind for kind in ON_REQUEST if kind not in kinds):
        if named := [path for each in found if each.kind == kind and not each.kept for path in each.paths]:
            lines.append(f"{measure(named)} more with --only {kind}: {KINDS[kind]}")
    return [*lines, f"{measure(paths_of(found, kinds))} can go"]


def orphans(known: Known) -> list[str]:
    """What belongs to no run, and is not touched: its removal is somebody's decision."""
    found = known.orphans()
    title = ["no configuration of a run here refers to these (remove them by hand, if nobody else does)"] if found else []
    return [*title, *(f"  {path}: {measure([path])}" for path in found)]


def paths_of(found: Sequence[Candidate], kinds: Sequence[str]) -> list[Path]:
    return [path for each in chosen(found, kinds) for path in each.paths]


def chosen(found: Sequence[Candidate], kinds: Sequence[str]) -> list[Candidate]:
    """Those that go."""
    return [each for each in found if each.kind in kinds and not each.kept]


def _shown(going: Candidate) -> str:
    return f"{going.paths[-1]}: {measure(going.paths)} ({going.why})"


def as_json(results: Path, found: Sequence[Candidate]) -> list[dict[str, Any]]:
    """A row per piece, with `kept`: why it stays, or None."""
    return [{**_description(results, each, measure(each.paths)), "kept": each.kept} for each in found]


def prune(results: Path, going: Sequence[Candidate]) -> Size:
    """Remove these, each under the lease of its folder; what a job has taken up since they were found stays, and is said.

    The record has a line before anything of a candidate goes and one after, so that whatever a kill leaves is said there.
    A manifest goes before the files that it lists. Returns what was freed.
    """
    freed, progress = Size(0, 0), Progress("pruning", len(going), unit="pieces")
    for each in going:
        try:
            with writer_lease(each.leases[0]):
                if worker := at_work(each.leases):
                    raise Fault(f"{worker}; wait for it")
                size = measure(each.paths)
                said = _description(results, each, size)
                _append(results, {"state": "going", **said})
                _remove(each)
                _append(results, {"state": "gone", **said})
        except Fault as fault:
            log.warning("%s stays: %s", each.place, fault)
        else:
            freed = Size(freed.files + size.files, freed.bytes + size.bytes)
        progress.advance()
    return freed


def _description(results: Path, going: Candidate, size: Size) -> dict[str, Any]:
    manifest = going.manifest if going.manifest and going.manifest.is_file() else None
    return {
        "kind": going.kind,
        "paths": [path.relative_to(results).as_posix() for path in going.paths],
        "files": size.files,
        "bytes": size.bytes,
        "manifest_sha256": sha256_file(manifest) if manifest else None,
        "why": going.why,
        "again": going.again,
    }


def _append(results: Path, line: dict[str, Any]) -> None:
    with (results / RECORD).open("a") as file:
        file.write(json.dumps({"when": datetime.now(UTC).isoformat(timespec="seconds"), **line}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _remove(going: Candidate) -> None:
    if going.retired and going.manifest and going.manifest.is_file():
        going.manifest.replace(going.manifest.with_name(Samples.pruned))
    for path in going.paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
