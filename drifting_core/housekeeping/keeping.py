"""What must stay below a results folder when it is pruned, and why: configurations, bundles, recommendations, the keep list,
jobs at work.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from drifting_core.artifacts import Bundle, Recommendation
from drifting_core.config import Configuration, load_file
from drifting_core.faults import Fault
from drifting_core.jobs.leases import holder_of, lives, name_of
from drifting_core.workflow.layout import Layout

log = logging.getLogger(__name__)

KEEP_LIST = "golden.yaml"  # in the results folder
_SHARED = {"data": "data", "tokenizer": "tokenizer", "network": "features", "reference": "reference", "encoder": "encoders"}


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class _KeepList(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep: list[_Kept]


class KeepList:
    """Paths or patterns below the results folder, each with its reason; `unmatched` are those that name nothing there."""

    def __init__(self, results: Path, file: Path | None = None) -> None:
        """`file`: by default golden.yaml in the results folder, if it is there. Raises Fault when it is no keep list."""
        path = file or results / KEEP_LIST
        entries = _read(path) if file or path.is_file() else []
        self.path, self._places = path, list[tuple[Path, str]]()
        self.unmatched: list[str] = []
        for entry in entries:
            try:
                found = list(results.glob(entry.path))
            except (ValueError, NotImplementedError) as error:
                raise Fault(f"{path}: {entry.path}: {error}; give a path or pattern below {results}") from None
            self._places += [(place, entry.reason) for place in found]
            self.unmatched += [] if found else [entry.path]

    def reason(self, paths: Iterable[Path]) -> str | None:
        """Why one of these is kept: it is named, lies in what is named, or holds it."""
        for path in paths:
            for place, reason in self._places:
                if place == path or place in path.parents or path in place.parents:
                    return f"{self.path.name}: {reason}"
        return None


_REMEDY = "write `keep:` with a list of `path` and `reason`"


def _read(path: Path) -> list[_Kept]:
    try:
        return _KeepList.model_validate(yaml.safe_load(path.read_text())).keep
    except (OSError, yaml.YAMLError) as error:
        raise Fault(f"{path}: cannot be read as YAML: {error}; {_REMEDY}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise Fault(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None


class Known:
    """The configurations whose results these are: of each run its own, and the active one where it is given."""

    def __init__(self, results: Path, active: Configuration | None = None) -> None:
        """A run that this version cannot read is left out, with a warning: nothing of it can go.

        Raises Fault where there is no such folder.
        """
        if not results.is_dir():
            raise Fault(f"{results}: no such folder; give the one that the workflow made (`results` of its configuration)")
        self.results = results
        self.of_run: dict[str, list[Configuration]] = {}
        self.all: list[Configuration] = []
        here = {"results": results.as_posix()}
        for path in sorted(results.glob("runs/*/config.json")):
            try:
                config = load_file(path).model_copy(update=here)
                if config.key("run") != path.parent.name:
                    raise Fault(f"{path}: is the configuration of {config.key('run')}; give the folder its name back")
            except Fault as fault:
                log.warning("%s is left alone: %s", path.parent, fault)
                continue
            self.of_run[path.parent.name] = [config]
            self.all += config.relatives()
        for config in active.model_copy(update=here).relatives() if active else []:
            self.of_run.setdefault(config.key("run"), []).append(config)
            self.all.append(config)

    def milestones(self, run: str) -> set[int]:
        return {step for config in self.of_run[run] for step in config.milestones}

    def horizon(self, run: str) -> int:
        return max(config.training.steps for config in self.of_run[run])

    def evaluations(self, run: str) -> set[Path]:
        """What the run's tables are made of, under every configuration that has it."""
        return {Path(path) for config in self.of_run[run] for path in Layout(config).evaluations(run)}

    def owner(self, stage: str, key: str) -> Configuration | None:
        return next((config for config in self.all if config.key(stage) == key), None)

    def orphans(self) -> list[Path]:
        """Folders that no configuration refers to, and bundles of runs that are gone."""
        wanted = {folder: {config.key(stage) for config in self.all} for stage, folder in _SHARED.items()}
        wanted |= {"bundles": {path.name for path in self.results.glob("runs/*")}}
        found = (path for folder in wanted for path in self.results.glob(f"{folder}/*") if path.is_dir())
        return sorted(path for path in found if path.name not in wanted[path.parent.name])


def cited(results: Path) -> dict[Path, str]:
    """Every artifact that a bundle was made from, with the reason. Raises Fault for a bundle that cannot be read."""
    found = {}
    for manifest in sorted(results.glob("bundles/*/manifest.json")):
        for below in Bundle.read(manifest).inputs:
            found[results / below] = f"the bundle {manifest.parent.name}"
    return found


def recommended(run: Path) -> dict[int, str]:
    """Steps that the run's recommendation names: chosen, best, or tied with them."""
    path = run / "recommendation.json"
    if not path.is_file():
        return {}
    choice = Recommendation.read(path)
    named = (choice.recommended, choice.best_distance, choice.best_score, *choice.tied, *choice.tied_score)
    return {each.step: "the recommendation" for each in named}


def at_work(folders: Sequence[Path]) -> str | None:
    """Who else writes in one of these folders now; None when nobody does."""
    for folder in folders:
        for name in _leases(folder):
            holder = holder_of(folder, name)
            ours = holder and (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
            if holder and not ours and lives(holder, folder, name):
                return f"{name_of(holder)} is at work in {folder}"
    return None


def _leases(folder: Path) -> Iterator[str]:
    for path in folder.glob(".*lease"):
        yield path.name.removeprefix(".").removesuffix("lease").removesuffix(".")


def reason_for(path: Path, reasons: Mapping[Path, str]) -> str | None:
    """The reason of the first path that is there, of `path` itself or below it."""
    return next((why for kept, why in reasons.items() if kept == path or path in kept.parents), None)
