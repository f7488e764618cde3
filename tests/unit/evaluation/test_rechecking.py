"""What is checked again is the evaluation itself: numbers from features, features from latents; changes are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from drifting_core import config
from drifting_core.artifacts import FEATURES, Metrics, records
from drifting_core.claims.progress import read_grid
from drifting_core.evaluation import sampler
from drifting_core.evaluation.grid import GRID
from drifting_core.evaluation.measuring import read_features
from drifting_core.evaluation.rechecking import look_again, recompute
from drifting_core.faults import Fault
from tests.unit.data.samples import HASH
from tests.unit.evaluation.whole import (
    BATCH,
    CPU,
    SAMPLES,
    Parts,
    write_evaluation,
    write_network,
    write_parts,
    write_reference,
)


@pytest.fixture(scope="module")
def parts(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.set_num_threads(1)
    return write_parts(tmp_path_factory.mktemp("parts"), packed)


@pytest.fixture(scope="module")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("whole") / "metrics.json", parts)


@pytest.fixture
def metrics(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "eval")
    return tmp_path / "eval/metrics.json"


def again(metrics: Path, parts: Parts, **changed: object) -> float:
    given = {"samples": parts.samples, "tokenizer": parts.tokenizer, "network": parts.network, "how_many": 20}
    return look_again(metrics, device="cpu", **(given | changed))  # type: ignore[arg-type]


def accept(metrics: Path) -> None:
    """The features as they lie there, listed as if they had always been so."""
    made = Metrics.read(metrics)
    made.files |= records(metrics.parent, [FEATURES])
    made.write(metrics)


@pytest.mark.parametrize("ranks", [2, 4])
def test_numbers_do_not_depend_on_how_many_processes_sampled(whole: Path, parts: Parts, tmp_path: Path, ranks: int) -> None:
    wanted = sampler.SampleSet(
        tmp_path / "manifest.json", parts.samples.parent / "exports/step_5/metadata.json", config.Sampling(compute_batch=10),
        alpha=1.5, seed=3, count=SAMPLES, configuration=HASH,
    )  # fmt: skip
    for rank in reversed(range(ranks)):
        sampler.write_batches(wanted, CPU, rank=rank, size=ranks)
    sampler.assemble(wanted)
    made = write_evaluation(tmp_path / "eval/metrics.json", parts._replace(samples=wanted.manifest))
    assert made.read_bytes() == whole.read_bytes()


def test_every_number_comes_from_the_stored_features(metrics: Path, parts: Parts) -> None:
    made = Metrics.read(metrics)
    found = recompute(metrics, reference=parts.reference)
    numbers = {name: value for name, value in made.model_dump().items() if isinstance(value, float) and name != "alpha"}
    assert found == {name: value for name, value in numbers.items() if name != "sample_std"}
    assert made.kernel_distance is not None
    assert made.distance_infinite is not None
    assert made.distance_low == pytest.approx(made.distance - 1.96 * made.distance_error)
    assert made.distance_high == pytest.approx(made.distance + 1.96 * made.distance_error)


def test_stored_features_are_the_samples(metrics: Path, parts: Parts) -> None:
    seen = read_features(metrics.parent / FEATURES)
    assert [values.dtype.name for values in seen] == ["float32", "float32", "int64", "int64"]
    assert {len(values) for values in seen} == {SAMPLES}
    assert seen.labels.tolist() == [i % 10 for i in range(SAMPLES)]
    with h5py.File(metrics.parent / FEATURES) as file:
        assert all(file[name].fletcher32 and file[name].chunks for name in file)


@pytest.mark.parametrize("how_many", [0, 20, 10_000])
def test_latents_decode_to_the_stored_features(metrics: Path, parts: Parts, how_many: int) -> None:
    assert again(metrics, parts, how_many=how_many) == 0.0


def test_features_that_are_not_the_latents_are_named(metrics: Path, parts: Parts) -> None:
    with h5py.File(metrics.parent / FEATURES, "r+") as file:
        file["features"][57] *= 1.01  # of the last batch, which is not full
    with pytest.raises(Fault, match="features.h5: SHA-256"):
        recompute(metrics, reference=parts.reference)
    with pytest.raises(Fault, match="features.h5: SHA-256"):
        again(metrics, parts)
    accept(metrics)
    with pytest.raises(Fault, match=r"features of the samples 57 are up to"):
        again(metrics, parts)
    assert recompute(metrics, reference=parts.reference)["distance"] != Metrics.read(metrics).distance
    with h5py.File(metrics.parent / FEATURES, "r+") as file:
        file["features"][0] = np.nan
    accept(metrics)
    with pytest.raises(Fault, match="samples 0, "):
        again(metrics, parts)


def test_one_batch_is_looked_at_at_least_and_not_always_the_first(metrics: Path, parts: Parts) -> None:
    with h5py.File(metrics.parent / FEATURES, "r+") as file:
        file["features"][BATCH:-BATCH] *= 1.01
    accept(metrics)
    assert again(metrics, parts, how_many=2 * BATCH - 1) == 0.0, "the first batch and the last"
    with pytest.raises(Fault, match="samples 32, 33"):
        again(metrics, parts, how_many=2 * BATCH + 1)


def test_other_artifacts_are_refused(metrics: Path, parts: Parts, packed: Path, tmp_path: Path) -> None:
    other = write_network(tmp_path / "other", seed=1)
    with pytest.raises(Fault, match=r"other/manifest.json: SHA-256 .* but .*metrics.json was made with"):
        again(metrics, parts, network=other)
    reference = write_reference(tmp_path / "reference/manifest.json", packed, other)
    with pytest.raises(Fault, match=r"statistics.npz: SHA-256 .* but .*metrics.json was made with"):
        recompute(metrics, reference=reference)


def test_older_metrics_say_that_they_kept_no_features(metrics: Path, parts: Parts) -> None:
    held = json.loads(metrics.read_text())
    del held["files"][FEATURES]
    metrics.write_text(json.dumps(held))
    with pytest.raises(Fault, match="before features were kept"):
        recompute(metrics, reference=parts.reference)


def test_a_grid_is_read_without_the_features(metrics: Path) -> None:
    """Features may be removed where disk is short."""
    made = Metrics.read(metrics)
    (metrics.parent / FEATURES).unlink()
    assert read_grid(made, metrics.parent).shape[2] == 3
    (metrics.parent / GRID).write_bytes(b"another picture")
    with pytest.raises(Fault, match=r"grid.png: 15 bytes, its manifest says"):
        read_grid(made, metrics.parent)
