"""Folders of runs made by hand, for tests of what reads, compares and prunes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from drifting_core import artifacts
from drifting_core.config import Configuration, load
from tests.conftest import ROOT
from tests.unit.evaluation.samples import MADE, write_metrics

MILESTONES = (0, 250, 500, 750, 1000)


def configured(results: Path, **changes: Any) -> Configuration:
    """The demo's configuration there, with dotted changes."""
    values = copy.deepcopy(yaml.safe_load((ROOT / "config/demo.yaml").read_text())) | {"results": str(results)}
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    return load(values)


def write(path: Path, size: int = 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def write_state(folder: Path, step: int) -> Path:
    """A committed state below `folder`."""
    state = folder / f"state/step_{step:08d}"
    write(state / "state.safetensors", 9000)
    files = artifacts.records(state, ["state.safetensors"])
    artifacts.StateMarker(**MADE, files=files, step=step).write(state / "COMMITTED.json")
    return state


def write_run(config: Configuration, steps: tuple[int, ...] = MILESTONES) -> Path:
    """A run with exports of `steps`, its two last states, a line of metrics per 100 steps, and its selection evaluated."""
    run = Path(config.results) / "runs" / config.key("run")
    artifacts.RunRecord(**MADE, values=config.model_dump(mode="json")).write(run / "config.json")
    lines = ({"step": step, "loss": 1.0, "time": {"seconds": 36.0}} for step in range(100, max(steps) + 1, 100))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for step in steps:
        write(run / f"exports/step_{step}/model.safetensors")
        write(run / f"exports/step_{step}/metadata.json", 100)
    for step in (max(steps) - 50, max(steps)):
        write_state(run, step)
    for step in steps:
        write_evaluation(run, step)
    return run


def write_evaluation(run: Path, step: int, alpha: float = 1.5, seed: int = 1, distance: float = 9.0, **changes: Any) -> Path:
    """Samples and their evaluation; the path of the latter."""
    name = f"step_{step}/alpha_{alpha:g}/seed_{seed}/n_500"
    write(run / f"samples/{name}/latents.safetensors")
    write(run / f"samples/{name}/manifest.json", 100)
    write(run / f"eval/{name}/features.h5")
    return write_metrics(run / f"eval/{name}/metrics.json", step, alpha, seed, distance, **changes)


def write_claim(run: Path, step: int = 1000, distance: float = 8.0, **changes: Any) -> None:
    write(run / "claim/seed_1000/samples/latents.safetensors")
    write(run / "claim/seed_1000/samples/manifest.json", 100)
    write(run / "claim/seed_1000/features.h5")
    write_metrics(run / "claim/seed_1000/metrics.json", step, 1.5, 1000, distance, **({"samples": 1000} | changes))
