"""How a training goes: its numbers and equal noise over the milestones, as pictures, for the bundle and while it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_core.artifacts import Index, Metrics, MetricsTable, RunRecord, TrainingCurve, check_file, publish
from drifting_core.artifacts.provenance import code_version
from drifting_core.claims import figures
from drifting_core.config import load_file
from drifting_core.evaluation.grid import GRID, grid_samples
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout

METRICS = "metrics.jsonl"


def caption(table: MetricsTable, training: TrainingCurve | None) -> str:
    """Which parts of the picture mean progress, and which do not."""
    if training is None:
        what = f"{table.distance_name} with its standard error, and diversity within classes"
        return f"{what}, over training (step 0: untrained)."
    return (
        f"Above, what means progress: {table.distance_name} (lower is better) with its standard error, within-class "
        "diversity, which nears that of real images, and the samples' spread, which grows from that of the untrained "
        "network. Below, what does not: the loss, constant by construction (for three temperatures between 0 and 9 per "
        "feature entry), and the force norms (mean over the feature groups), which plateau early."
    )


def read_training(run: Path, until: int | None = None, code: str = "") -> TrainingCurve:
    """What the training of `run` logged, up to step `until`. Raises Fault where that is nothing, or no JSON.

    `code`: the version that reads it, by default this one.
    """
    path, read, rows = run / METRICS, hashlib.sha256(), []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], start=1):
        if not line.endswith(b"\n"):
            break  # a training that goes on is writing it
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise Fault(f"{path}: line {number} is no JSON ({error}); remove the lines from there on") from None
        if until is not None and values["step"] > until:
            break
        read.update(json.dumps({name: value for name, value in values.items() if name != "time"}).encode())
        rows.append({"step": values["step"], "loss": values["loss"], "force_norm": _force_norm(values["features"])})
    if not rows:
        raise Fault(f"{path}: holds no line{f' up to step {until}' if until else ''}; train on, or move the file away")
    return TrainingCurve(
        configuration=RunRecord.read(run / "config.json").configuration,
        code=code or code_version(),
        inputs={"metrics": read.hexdigest()},
        rows=rows,
    )


def _force_norm(groups: Mapping[str, Any]) -> dict[str, float]:
    """By temperature, the mean over the feature groups."""
    norms = [group["force_norm"] for group in groups.values()]
    return {temperature: sum(norm[temperature] for norm in norms) / len(norms) for temperature in norms[0]}


def class_names(index: Index, metrics: Metrics) -> list[str]:
    """The first word of the name of each class that the grid beside a metrics.json has a row of."""
    balanced = np.arange(metrics.contract.samples) % len(index.names)  # what older files without grid_labels are
    shown = metrics.grid_labels or [int(balanced[row[0]]) for row in grid_samples(balanced)]
    return [index.names[label].split(",")[0] for label in shown]


def read_grid(metrics: Metrics, folder: Path) -> figures.Pixels:
    """The grid beside a metrics.json, checked against its record; the features there need not be read, or be left."""
    check_file(folder / GRID, metrics.files[GRID])
    return figures.read_picture(folder / GRID)


def draw(run: Path, picture: Path, samples: Path) -> None:
    """Publish both pictures of a run from the evaluations that are there, whether or not it has come to its end.

    Raises Fault where there is none yet.
    """
    active = load_file(run / "config.json").model_copy(update={"results": run.parent.parent.as_posix()})
    layout = Layout(active)
    paths = _evaluated(run, layout)
    table = make_table("curve", paths)
    training = read_training(run)
    seed = min(active.evaluation.selection.seeds)  # equal seeds are equal noise
    metrics = {path: Metrics.read(path) for path in paths}
    names = class_names(Index.read(Path(layout.folder("data")) / "index.json"), metrics[paths[0]])
    grids = {m.step: read_grid(m, path.parent) for path, m in metrics.items() if m.seed == seed}
    for output, made in ((picture, figures.progress(table, training)), (samples, figures.over_steps(grids, names))):
        with publish(output) as scratch:
            scratch.write_bytes(made)


def _evaluated(run: Path, layout: Layout) -> Sequence[Path]:
    """The evaluations of all exports at the guidance and on the seeds of the selection, as far as they are made."""
    selection = layout.active.evaluation.selection
    steps = sorted(int(path.parent.name.removeprefix("step_")) for path in run.glob("exports/step_*/metadata.json"))
    wanted = [
        Path(layout.metrics(run.name, step, selection.alpha, seed, selection.samples))
        for step in steps
        for seed in selection.seeds
    ]
    found = [path for path in wanted if path.is_file()]
    if not found:
        asked = wanted[-1] if wanted else run / "exports/step_N/metadata.json"
        raise Fault(f"{run}: nothing is evaluated yet; ask Snakemake for {asked}")
    return found
