"""A run's folder, read from Python: configuration, metrics, evaluations, claim, weights. Light but for the weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drifting_core.artifacts import Metrics, Recommendation
from drifting_core.config import Configuration, load_file
from drifting_core.faults import Fault
from drifting_core.jobs.leases import holder_of, lives

if TYPE_CHECKING:
    from drifting_core.models.generator import Generator

_BESIDE_NUMBERS = {"kind", "configuration", "code", "inputs", "files", "grid_labels"}


class Run:
    """What a run has left in its folder so far. Lists of plain dicts, which pandas.DataFrame takes as they are."""

    def __init__(self, folder: Path | str) -> None:
        """Raises Fault where there is no run."""
        self.folder = Path(folder)
        self.name = self.folder.name
        if not (self.folder / "config.json").is_file():
            beside = sorted(path.parent.name for path in self.folder.parent.glob("*/config.json"))
            raise Fault(
                f"{self.folder}: no config.json, so no run; name one of those beside it: {', '.join(beside) or 'none'}"
            )

    @functools.cached_property
    def configuration(self) -> Configuration:
        """As it was when the run began. Raises Fault where this version cannot read it."""
        return load_file(self.folder / "config.json")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; without a last one that is being written. Raises Fault for one that is no JSON."""
        path, lines = self.folder / "metrics.jsonl", []
        for number, line in enumerate(path.read_text().splitlines(keepends=True) if path.is_file() else [], start=1):
            if not line.endswith("\n"):
                break
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise Fault(f"{path}: line {number} is no JSON ({error}); remove the lines from there on") from None
        return lines

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation but the canary's, in the order of step, alpha, seed and number of samples.

        `of` is what it was made for: selection, claim, or claim_ and a further feature space. Numbers are comparable where
        `contract_hash` is the same.
        """
        paths = [*self.folder.glob("eval/**/metrics.json"), *self.folder.glob("claim/**/metrics.json")]
        rows = [self._row(path) for path in paths]
        return sorted(rows, key=lambda row: (row["step"], row["alpha"], row["seed"], row["samples"], row["of"]))

    def claim(self) -> list[dict[str, Any]]:
        """The evaluations that the claim reports, one for each of its seeds; none before it was made."""
        return [row for row in self.evaluations() if row["of"] == "claim"]

    def exports(self) -> list[int]:
        """Steps of which there are weights."""
        return sorted(int(path.parent.name.removeprefix("step_")) for path in self.folder.glob("exports/*/metadata.json"))

    def generator(self, step: int | None = None) -> Generator:
        """The exported network (EMA weights, eval mode, frozen) of a step; by default the recommended one, or the last.

        Raises Fault where that has no export.
        """
        from drifting_core.models.exports import load_generator

        exports, recommendation = self.exports(), self.folder / "recommendation.json"
        if step is None and recommendation.is_file():
            step = Recommendation.read(recommendation).recommended.step
        elif step is None and exports:
            step = exports[-1]
        if step not in exports:
            raise Fault(f"{self.folder}: no export of step {step}; choose one of {exports or 'none yet'}")
        return load_generator(self.folder / f"exports/step_{step}/metadata.json")[0]

    @property
    def state(self) -> str:
        """training (a job is at work), claimed (there is a bundle), finished, stopped, or not begun."""
        holder = holder_of(self.folder)
        if holder and lives(holder, self.folder):
            return "training"
        if (self.folder.parent.parent / "bundles" / self.name / "claim_bundle.done").is_file():
            return "claimed"
        exports = self.exports()
        if exports and exports[-1] >= self.configuration.training.steps:
            return "finished"
        return "stopped" if exports or self.metrics() else "not begun"

    def _row(self, path: Path) -> dict[str, Any]:
        held, parts = Metrics.read(path), path.relative_to(self.folder).parts
        of = "selection" if parts[0] == "eval" else f"claim_{parts[3]}" if "spaces" in parts else "claim"
        return {"of": of, "samples": held.contract.samples, **held.model_dump(mode="json", exclude=_BESIDE_NUMBERS)}
