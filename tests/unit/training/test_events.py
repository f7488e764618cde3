"""TensorBoard events: the numbers of metrics.jsonl, each once, whatever was killed and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from drifting_core.faults import Fault
from drifting_core.training.events import MetricsEvents, metrics_of
from drifting_core.training.loop import MetricsFile


def line(step: int, loss: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "features": {"conv1": {"scale": 2.0 * step, "force_norm": {"0.2": 0.5}}},
        "time": {"seconds": 1.5, "utilisation": None},
    }


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the events in `folder`: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def train(folder: Path, begin: int, end: int, loss: float) -> None:
    metrics = metrics_of(folder, tensorboard=True)
    metrics.truncate(begin)
    for step in range(begin + 1, end + 1):
        metrics.append(line(step, loss))
    # No close: a killed training has none.


def test_nested_keys_are_tags_and_what_was_not_measured_is_none(tmp_path: Path) -> None:
    train(tmp_path, 0, 2, 1.0)
    assert scalars(tmp_path / "tensorboard") == {
        "loss": [(1, 1.0), (2, 1.0)],
        "features/conv1/scale": [(1, 2.0), (2, 4.0)],
        "features/conv1/force_norm/0.2": [(1, 0.5), (2, 0.5)],
        "time/seconds": [(1, 1.5), (2, 1.5)],
    }


def test_after_kills_every_point_is_there_once_and_from_the_last_attempt(tmp_path: Path) -> None:
    train(tmp_path, 0, 5, 1.0)
    train(tmp_path, 3, 6, 2.0)  # killed after 5, continued from the state of step 3
    train(tmp_path, 4, 8, 3.0)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(each["step"], each["loss"]) for each in lines]
    assert expected == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 3.0), (6, 3.0), (7, 3.0), (8, 3.0)]
    assert scalars(tmp_path / "tensorboard")["loss"] == expected


def test_without_the_option_there_is_the_file_alone(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, tensorboard=False)
    assert type(metrics) is MetricsFile
    metrics.truncate(0)
    metrics.append(line(1, 1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_tensorboard_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(Fault, match=r"TensorBoard cannot be imported .* --editable '\.\[tensorboard\]'"):
        MetricsEvents(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")


def test_a_line_before_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call truncate first"):
        metrics_of(tmp_path, tensorboard=True).append(line(1, 1.0))
