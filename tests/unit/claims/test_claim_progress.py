"""The picture of a training: the right numbers, in the bundle and by hand, and a growing metrics.jsonl changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_core import artifacts, config
from drifting_core.artifacts import MetricsTable, TrainingCurve
from drifting_core.artifacts.identity import digest, operations
from drifting_core.claims import figures, progress
from drifting_core.claims.bundle import make_bundle
from drifting_core.claims.verifying import verify_bundle
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout
from tests.unit.evaluation.samples import MADE, training_line, write_claim, write_metrics, write_training

RUN = "demo-00000000"


def bundle(results: Path, given: list[tuple[str, Path]], demo_values: dict[str, Any]) -> Path:
    made = config.load(demo_values)
    whole = made.stage_slice("bundle")
    folder = results / "bundles" / RUN
    make_bundle(folder, RUN, given, typed=config.sections(whole, operations(made)), configuration=digest(whole))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bundle_shows_the_training_and_holds_its_numbers(tmp_path: Path, demo_values: dict[str, Any]) -> None:
    results = tmp_path / "results"
    run = results / "runs" / RUN
    given = [*write_claim(results), write_training(run)]
    (run / "env_fingerprint.json").write_text('{"digest": "0"}')
    folder = bundle(results, given, demo_values)
    listed = verify_bundle(folder).files
    assert {"figures/progress.png", "figures/steps.png", "tables/training.json"} <= listed.keys()
    training = TrainingCurve.read(folder / "tables/training.json")
    assert [row["step"] for row in training.rows] == [1, *range(100, 1001, 100)]
    assert all(row["force_norm"] == {"0.2": row["step"], "0.05": pytest.approx(0.1)} for row in training.rows)
    slower = (run / "metrics.jsonl").read_text().replace('"seconds": 1.0', '"seconds": 7.5')
    assert slower != (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(slower)
    assert progress.read_training(run, 1000) == training
    [node] = [n for n in json.loads((folder / "provenance.json").read_text()) if n["kind"] == "training_curve"]
    assert node["sha256"] == listed["tables/training.json"].sha256
    for text in ((folder / "CLAIM.md").read_text(), (folder / "report.html").read_text()):
        assert "what means progress: FD (lower is better)" in text
        assert "the loss, constant by construction" in text
        assert "tables/training.json" in text
    record = f"artifacts/runs/{RUN}/env_fingerprint.json"
    assert record in listed
    assert f"[{record}]({record}): digest of the software environment." in (folder / "CLAIM.md").read_text()


def test_a_training_that_goes_on_changes_no_byte_of_the_bundle(tmp_path: Path, demo_values: dict[str, Any]) -> None:
    results = tmp_path / "results"
    metrics = results / "runs" / RUN / "metrics.jsonl"
    given = [*write_claim(results), write_training(metrics.parent)]
    before = content(bundle(results, given, demo_values))
    with metrics.open("a") as file:  # beyond the last evaluation; and the line that is being written
        file.write(json.dumps(training_line(1100)) + '\n{"step": 12')
    assert content(bundle(results, given, demo_values)) == before


def test_without_metrics_the_bundle_shows_evaluations_and_says_so(
    tmp_path: Path, demo_values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    given = [*write_claim(results), write_training(results / "runs" / RUN)]
    (results / "runs" / RUN / "metrics.jsonl").unlink()
    listed = verify_bundle(bundle(results, given, demo_values)).files
    assert "figures/progress.png" in listed
    assert "tables/training.json" not in listed
    assert "metrics.jsonl: missing" in caplog.text


def test_damaged_or_empty_metrics_are_named(tmp_path: Path) -> None:
    write_training(tmp_path, range(500, 501))
    with pytest.raises(Fault, match="holds no line up to step 400"):
        progress.read_training(tmp_path, 400)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, \nrubbish\n')
    with pytest.raises(Fault, match=r"metrics\.jsonl: line 1 is no JSON"):
        progress.read_training(tmp_path, 400)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True).map(sorted), st.integers(2, 12))
def test_few_steps_stand_for_many(steps: list[int], most: int) -> None:
    chosen = figures.evenly_chosen(steps, most)
    assert len(chosen) == min(most, len(steps))
    assert (chosen[0], chosen[-1]) == (steps[0], steps[-1])
    assert chosen == sorted(set(chosen))
    places = [steps.index(step) for step in chosen]
    gaps = np.diff(places)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_a_column_is_the_first_sample_of_each_class_at_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(figures, "labelled_rows", lambda *given: seen.update(given=given) or b"")
    grids = {
        step: np.stack([np.full((12,), step + label, np.uint8) for label in (0, 0, 1, 1)])[..., None].repeat(3, axis=2)
        for step in (100, 0, 50)
    }  # 2 classes, 6 samples of 2 x 2 pixels, each of the colour step + class
    figures.over_steps(grids, ["cat", "dog"])
    picture, names, columns = seen["given"]
    assert (names, columns) == (["cat", "dog"], ["0", "50", "100"])
    assert picture.shape == (4, 6, 3)
    assert picture[::2, ::2, 0].tolist() == [[0, 50, 100], [1, 51, 101]]


def test_the_numbers_drawn_are_those_of_table_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(reversed(write_claim(tmp_path)))
    write_training(tmp_path)
    kept = {}
    monkeypatch.setattr(figures, "png", lambda figure: kept.update(figure=figure) or b"")
    figures.progress(MetricsTable.read(given["curve"]), progress.read_training(tmp_path, 1000))
    axes = {each.get_ylabel(): each for each in kept["figure"].get_axes()}
    drawn = {label: [tuple(line.get_ydata()) for line in each.lines] for label, each in axes.items()}
    assert drawn["FD (lower is better)"][0] == (20.0, 15.0, 10.0)
    assert (0.8, 0.8, 0.8) in drawn["within-class diversity"]
    assert drawn["sample spread (pixel std)"][0] == (0.2, 0.2, 0.2)
    assert drawn["loss"] == [(500.0,) * 11]
    assert drawn["force norm"][0] == (1, *range(100, 1001, 100))
    assert len(drawn["force norm"]) == 2


def test_the_rows_of_a_grid_are_named_by_their_labels(tmp_path: Path) -> None:
    given = dict(write_claim(tmp_path))
    index, metrics = artifacts.Index.read(given["index"]), artifacts.Metrics.read(given["metrics"])
    assert progress.class_names(index, metrics) == ["cat", "dog | hound"]  # as older ones, which have none, were drawn
    assert progress.class_names(index, metrics.model_copy(update={"grid_labels": [1]})) == ["dog | hound"]


def unfinished(folder: Path, demo_values: dict[str, Any]) -> Path:
    """A run of the demo whose second milestone is trained and not evaluated."""
    active = config.load(demo_values).model_copy(update={"results": str(folder / "results")})
    layout, selection = Layout(active), active.evaluation.selection
    run = Path(layout.folder("run"))
    write_training(run)
    artifacts.RunRecord(**MADE, values=active.model_dump(mode="json")).write(run / "config.json")
    for step in (0, 250, 500):
        export = Path(layout.export(run.name, step))
        export.parent.mkdir(parents=True)
        export.write_text("{}")
    for step in (0, 250):
        path = Path(layout.metrics(run.name, step, selection.alpha, selection.seeds[0], selection.samples))
        write_metrics(path, step, selection.alpha, selection.seeds[0], 20.0)
    index = dict(write_claim(folder / "other"))["index"]
    (Path(layout.folder("data"))).mkdir(parents=True)
    (Path(layout.folder("data")) / "index.json").write_bytes(index.read_bytes())
    return run


def test_a_run_is_drawn_while_it_goes_on(
    tmp_path: Path, demo_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unfinished(tmp_path, demo_values)
    monkeypatch.chdir(tmp_path.parent)  # the run's path says where it lies, not the working folder
    shown: list[list[int]] = []
    original = figures.over_steps
    monkeypatch.setattr(figures, "over_steps", lambda grids, names: shown.append(sorted(grids)) or original(grids, names))
    progress.draw(run, run / "progress.png", run / "steps.png")
    assert shown == [[0, 250]]
    assert figures.read_picture(run / "progress.png").shape[1] > 800
    assert (run / "steps.png").is_file()
    for path in run.glob("eval/**/metrics.json"):
        path.unlink()
    with pytest.raises(Fault, match=r"nothing is evaluated yet; ask Snakemake for .*/eval/step_500/"):
        progress.draw(run, run / "progress.png", run / "steps.png")
