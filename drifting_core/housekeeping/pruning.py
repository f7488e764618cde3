"""What below a results folder can go, of which kind, why, and how it is made again; and what of it stays.

What Snakemake declares are small JSON files, and of these only those go that it makes again when somebody asks for what
needs them. `pruned.py` measures and removes.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from drifting_core.artifacts import FEATURES, IMAGES, LATENTS, STATE_MARKER, STATES_KEPT, Export, Samples, StateMarker
from drifting_core.data.removing import removable
from drifting_core.faults import Fault
from drifting_core.housekeeping.keeping import KeepList, Known, at_work, cited, reason_for, recommended

KINDS = {
    "states": "states but the last two (finished: the last) of a training; damaged and not_finite_* ones that it has passed",
    "canary": "what a passed canary left: its samples and features",
    "exports": "exports that are no milestone, not recommended, and cited by no bundle",
    "samples": "latents of sample sets that were evaluated; made again when asked for",
    "features": "features of evaluations that no table and no bundle needs; the numbers stay",
    "images": "sample sets exported as images; made again when asked for",
    "imagefolder": "training images as files, once their latents are verified in full",
    "journals": "of jobs that have finished",
    "scratch": "what killed jobs left under a scratch name",
    "encoder_states": "the last state of exported encoders; what repeats such a training then begins at step 0",
}
ON_REQUEST = ("encoder_states",)  # go when they are named
DEFAULT = tuple(kind for kind in KINDS if kind not in ON_REQUEST)

_SCRATCH = re.compile(r"\..+\.tmp\.(?P<host>.+)\.(?P<pid>\d+)")  # publish()'s
_JOURNAL = re.compile(r"\.(?P<job>(samples|shard|features)_.+)\.journal")


@dataclass(frozen=True)
class Candidate:
    """Files and folders that go together, in this order; `kept` says why they stay, if they do.

    `manifest` is the JSON that lists them. When `retired`, it gets the name pruned.json before they go: to Snakemake it is
    then missing, and made again with them. `again`: the command that does. `leases`: where a writer would be at work.
    """

    kind: str
    paths: tuple[Path, ...]
    why: str
    leases: tuple[Path, ...]
    manifest: Path | None = None
    retired: bool = False
    again: str | None = None
    kept: str | None = None

    @property
    def place(self) -> Path:
        return self.manifest or self.paths[0]


def candidates(results: Path, known: Known, keep: KeepList, owners: Sequence[str] = ()) -> list[Candidate]:
    """Everything that is of some kind, with why it stays if it does.

    `owners`: names of runs and other folders that are looked into; by default all. Raises Fault for one that is not there.
    """
    folders = {path.name for path in results.glob("*/*") if path.is_dir()}
    if missing := sorted(set(owners) - folders):
        raise Fault(f"{results}: has nothing named {missing[0]}; name one of: {', '.join(sorted(folders)) or 'none'}")
    found = [_decided(each, keep) for each in _found(results, known, keep)]
    wanted = [each for each in found if not owners or each.place.relative_to(results).parts[1] in owners]
    return sorted(wanted, key=lambda each: (list(KINDS).index(each.kind), each.place))


def _decided(candidate: Candidate, keep: KeepList) -> Candidate:
    paths = [*candidate.paths, candidate.place]
    return replace(candidate, kept=candidate.kept or keep.reason(paths) or at_work(candidate.leases))


def _found(results: Path, known: Known, keep: KeepList) -> Iterator[Candidate]:
    by_bundles = cited(results)
    for name in known.of_run:
        run = results / "runs" / name
        exports = [_decided(each, keep) for each in _exports(run, known, by_bundles)]
        staying = {each.place.parent.name for each in exports if each.kept}
        yield from exports
        yield from _states(run, finished=_reached(run, known.horizon(name)))
        yield from _canary(run)
        yield from _samples(run, staying)
        yield from _features(run, known.evaluations(name), by_bundles)
        yield from _images(run)
    for encoder in sorted(path.parent for path in results.glob("encoders/*/state")):
        yield from _states(encoder, finished=(encoder / "trained.json").is_file(), encoder=True)
    yield from _image_folders(results, known)
    yield from _left_by_jobs(results)


# --- trainings -------------------------------------------------------------------------------------------------------


def _step(path: Path) -> int:
    return int(path.name.rsplit("_", 1)[1])


def _reached(run: Path, horizon: int) -> bool:
    """Whether a training stands at an export that is its last as far as is known."""
    steps = [_step(path.parent) for path in run.glob(f"state/step_*/{STATE_MARKER}")]
    return bool(steps) and max(steps) >= horizon and (run / f"exports/step_{max(steps)}/metadata.json").is_file()


def _states(folder: Path, *, finished: bool, encoder: bool = False) -> Iterator[Candidate]:
    states = sorted((path for path in folder.glob("state/step_*") if path.is_dir()), key=_step)
    committed = [path for path in states if (path / STATE_MARKER).is_file()]
    staying = committed[-(1 if finished else STATES_KEPT) :]
    going = [path for path in states if path not in staying]
    broken = _damage(staying[-1]) if staying and going else None
    for path in going:
        marker = path / STATE_MARKER if path in committed else None
        why = "an older state" if marker else "no committed state"
        yield Candidate("states", _parts(path, marker), why, (folder,), marker, kept=broken)
    for path in staying:
        if encoder and finished:
            kept = _not_exported(folder / "export/metadata.json")
            kind, why = "encoder_states", "the encoder is exported"
        else:
            kept = "the newest state: training continues there" if path == staying[-1] else "what damage falls back to"
            kind, why = "states", "a state"
        yield Candidate(kind, _parts(path, path / STATE_MARKER), why, (folder,), path / STATE_MARKER, kept=kept)
    for path in sorted([*folder.glob("state/damaged_*"), *folder.glob("state/not_finite_*")]):
        passed = finished or any(_step(state) > _step(path) for state in committed)
        why = "training went on" if passed else "set aside"
        yield Candidate("states", (path,), why, (folder,), kept=None if passed else "training has not passed this step")


def _parts(state: Path, marker: Path | None) -> tuple[Path, ...]:
    return (marker, state) if marker else (state,)


def _damage(state: Path) -> str | None:
    try:
        StateMarker.read(state / STATE_MARKER).verify(state)
    except Fault as fault:
        return f"the newest state is damaged: {fault}"
    return None


def _not_exported(metadata: Path) -> str | None:
    try:
        Export.read(metadata).verify(metadata.parent)
    except Fault as fault:
        return f"no whole export: {fault}"
    return None


def _exports(run: Path, known: Known, by_bundles: dict[Path, str]) -> Iterator[Candidate]:
    milestones, horizon, named = known.milestones(run.name), known.horizon(run.name), recommended(run)
    for metadata in sorted(run.glob("exports/step_*/metadata.json"), key=lambda path: _step(path.parent)):
        step = _step(metadata.parent)
        milestone = "a milestone" if step in milestones or step > horizon else None
        kept = reason_for(metadata, by_bundles) or named.get(step) or milestone
        yield Candidate("exports", (metadata, metadata.parent), "of no use to a claim", (run,), metadata, kept=kept)


def _canary(run: Path) -> Iterator[Candidate]:
    canary = run / "canary"
    if not (canary / "passed.json").is_file():
        return
    kept = None if any(run.glob("exports/step_*/metadata.json")) else "the run has not begun"
    leases = (canary, canary / "samples", canary / "eval", run)
    why = "the canary has passed"
    if (canary / f"samples/{LATENTS}").is_file():
        manifest = canary / "samples/manifest.json"
        yield Candidate("canary", (manifest.parent / LATENTS,), why, leases, manifest, retired=True, kept=kept)
    for path in (canary / f"eval/{FEATURES}", canary / "exports", canary / "state"):
        if path.exists():
            yield Candidate("canary", (path,), why, leases, kept=kept)


# --- evaluations -----------------------------------------------------------------------------------------------------


def _samples(run: Path, exports: set[str]) -> Iterator[Candidate]:
    """`exports`: names of the folders of those that stay."""
    for latents in sorted([*run.glob(f"samples/**/{LATENTS}"), *run.glob(f"claim/*/samples/{LATENTS}")]):
        folder, manifest = latents.parent, latents.with_name("manifest.json")
        below = folder.relative_to(run)
        if not manifest.is_file() and not manifest.with_name(Samples.pruned).is_file():
            continue  # a job has not finished them
        kept = None
        if below.parts[0] == "claim":
            kept = "the claim's samples"
        elif not (run / "eval" / below.relative_to("samples") / "metrics.json").is_file():
            kept = "not evaluated yet"
        elif below.parts[1] not in exports:
            kept = "their export can go or is gone: they could not be made again"
        yield Candidate(
            "samples", (latents,), "evaluated", (folder, folder / "export"), manifest, True, _snakemake(manifest), kept
        )


def _features(run: Path, needed: set[Path], by_bundles: dict[Path, str]) -> Iterator[Candidate]:
    for features in sorted([*run.glob(f"eval/**/{FEATURES}"), *run.glob(f"claim/**/{FEATURES}")]):
        metrics = features.with_name("metrics.json")
        if not metrics.is_file():
            continue  # a job has not finished them
        kept = reason_for(metrics, by_bundles) or ("the run's tables" if metrics in needed else None)
        if features.relative_to(run).parts[0] == "claim":
            kept = kept or "the claim's evaluations"
        again = f"rm {metrics} && {_snakemake(metrics)}"
        yield Candidate("features", (features,), "in no table", (features.parent,), metrics, again=again, kept=kept)


def _images(run: Path) -> Iterator[Candidate]:
    forms = {"png": "png", "jpeg": "jpeg", **IMAGES}
    for folder in sorted([*run.glob("samples/**/export"), *run.glob("claim/*/samples/export")]):
        for form, name in forms.items():
            done, images = folder / f"{form}.done", folder / name
            paths = tuple(path for path in (done, images) if path.exists())
            if paths:
                why = "images of stored latents"
                yield Candidate("images", paths, why, (folder, folder.parent), done, again=_snakemake(done))


def _image_folders(results: Path, known: Known) -> Iterator[Candidate]:
    for folder in sorted(results.glob("data/*/imagefolder")):
        data, done, kept = folder.parent, folder.with_name("imagefolder.done"), None
        owner = known.owner("data", data.name)
        try:
            if owner is None:
                raise Fault("no known configuration has this data; give it with --configfile")
            removable(owner, "imagefolder")
        except Fault as fault:
            kept = str(fault)
        paths = tuple(path for path in (done, folder) if path.exists())
        yield Candidate("imagefolder", paths, "verified latents", (data,), done, again=_snakemake(done), kept=kept)


def _snakemake(path: Path) -> str:
    return f"snakemake --profile local {path}"


# --- what jobs left --------------------------------------------------------------------------------------------------


def _left_by_jobs(results: Path) -> Iterator[Candidate]:
    """Journals of jobs that have finished, and scratch files of those that were killed."""
    for parent, folders, files in os.walk(results):
        folder = Path(parent)
        folders[:] = [name for name in folders if name != "imagefolder"]  # may hold a million files
        leases = (folder, *(above for above in folder.parents if results in above.parents))
        for name in files:
            journal, scratch = _JOURNAL.fullmatch(name), _SCRATCH.fullmatch(name)
            if journal and (folder / _output_of(journal["job"])).is_file():
                yield Candidate("journals", (folder / name,), "its job has finished", leases)
            elif scratch:
                kept = _writer(scratch["host"], int(scratch["pid"]))
                yield Candidate("scratch", (folder / name,), "its writer is dead", leases, kept=kept)
        for name in folders if folder.name == "state" else ():
            if name.startswith(".step_"):
                yield Candidate("scratch", (folder / name,), "its writer is dead", (folder.parent,))


def _output_of(job: str) -> str:
    """What a journal's job leaves when it has finished."""
    return f"{job}.json" if job.startswith("shard_") else "manifest.json"


def _writer(host: str, pid: int) -> str | None:
    """Why a scratch file may be in use: its writer's process, as far as this machine knows."""
    if host != socket.gethostname():
        return f"written on {host}, where it may be in use: prune there, or remove it by hand"
    return f"process {pid} writes it" if psutil.pid_exists(pid) else None
