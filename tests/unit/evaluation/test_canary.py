"""The canary: any number of classes and samples, numbers that are finite and marked, nothing large left."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting_core.artifacts import Canary, LatentContract, Metrics, Samples
from drifting_core.config import Contract, Sampling
from drifting_core.evaluation import evaluate as evaluation
from drifting_core.evaluation import sampler, statistics
from drifting_core.evaluation.canary import pass_canary
from drifting_core.evaluation.contract import require_same
from drifting_core.evaluation.grid import grid_samples
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from drifting_core.models.exports import write_export
from drifting_core.models.generator import Generator
from tests.unit.evaluation.samples import write_metrics

CPU = torch.device("cpu")
CLASSES = 1000
ARCHITECTURE = {
    "input_size": 8, "channels": 4, "patch_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "cond_dim": 8,
    "num_classes": CLASSES, "in_context_tokens": 1, "style_tables": 2, "style_entries": 4,
}  # fmt: skip


@given(classes=st.integers(1, 1500), drawn=st.integers(1, 1500), count=st.integers(1, 600))
def test_spaced_labels_are_balanced_over_evenly_spaced_classes(classes, drawn, count):
    drawn = min(drawn, classes)
    labels = sampler.balanced_labels(torch.arange(count), classes, drawn)
    counts = labels.bincount(minlength=classes)
    found = counts.nonzero().flatten()
    assert len(found) == min(drawn, count)
    assert int(counts[found].max() - counts[found].min()) <= 1
    every = sampler.balanced_labels(torch.arange(drawn), classes, drawn)
    gaps = torch.diff(every, append=every[:1] + classes)
    assert int(gaps.max() - gaps.min()) <= 1


def test_all_classes_drawn_are_the_balanced_plan():
    rows = torch.arange(25)
    assert torch.equal(sampler.balanced_labels(rows, 7, 7), rows % 7)


@given(classes=st.integers(1, 30), per_class=st.integers(1, 12))
def test_a_grid_of_balanced_samples_has_the_first_of_evenly_spaced_classes(classes, per_class):
    shown = grid_samples(np.arange(classes * per_class) % classes)
    rows = min(classes, 10)
    firsts = [row * classes // rows for row in range(rows)]
    assert shown == [[first + classes * column for column in range(min(per_class, 10))] for first in firsts]


@given(labels=st.lists(st.integers(0, 12), min_size=1, max_size=200).map(np.array))
def test_a_row_of_a_grid_is_of_one_class_whatever_the_label_plan(labels):
    shown = grid_samples(labels, most_rows=5, most_columns=3)
    found = [{int(labels[sample]) for sample in row} for row in shown]
    assert all(len(each) == 1 for each in found)
    assert len(shown) == min(5, len(np.unique(labels))) == len(set.union(*found))
    assert len({len(row) for row in shown}) == 1
    for row in shown:
        assert row == np.flatnonzero(labels == labels[row[0]])[: len(row)].tolist()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Generator(**ARCHITECTURE)
    made.reset_parameters(0)
    weights = {name: tensor.detach() + 0.1 * torch.randn(tensor.shape) for name, tensor in made.state_dict().items()}
    contract = LatentContract(
        tokenizer_sha256="b" * 64, scaling_factor=1.0, posterior="mean", views=["image"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("canary") / "exports/step_1/metadata.json"
    write_export(
        path, "generator", weights, ARCHITECTURE, step=1, ema_decay=0.9, latents=contract, configuration="0" * 64, inputs={}
    )  # fmt: skip
    return path


def canary(export, folder, count):
    manifest = folder / "samples/manifest.json"
    wanted = sampler.SampleSet(manifest, export, Sampling(compute_batch=32), 1.0, 0, count, "0" * 64, canary=True)
    sampler.write_batches(wanted, CPU)
    sampler.assemble(wanted)
    return manifest


def evaluate(manifest, output, monkeypatch):
    """evaluate() with a decoder that stretches latents and features that are pixels: only sizes and labels matter."""
    dimensions = 3 * 4 * 4
    torch.manual_seed(1)
    to_logits = torch.randn(dimensions, CLASSES)

    def decode(latents):
        return torch.nn.functional.interpolate(latents[:, :3], size=(4, 4)).sigmoid()

    def network(images):
        features = images.flatten(1).float() / 255
        return SimpleNamespace(features=features, logits_unbiased=features @ to_logits, logits=features @ to_logits)

    real = np.random.default_rng(0).random((2000, dimensions)).astype(np.float32)
    record = SimpleNamespace(network="classifier", weights_sha256="a" * 64, resize="none", classes=CLASSES)
    file = SimpleNamespace(sha256="c" * 64)
    reference = SimpleNamespace(
        network_sha256="a" * 64, split="train", images=3000, precision_recall_images=2000,
        files={"statistics.npz": file, "features_val.h5": file},
    )  # fmt: skip
    cache = SimpleNamespace(features=real, labels=np.arange(2000) % CLASSES)
    tokenizer = SimpleNamespace(decode=decode), SimpleNamespace(weights_sha256="b" * 64)
    monkeypatch.setattr(evaluation, "open_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(evaluation, "load_network", lambda *_: (network, record))
    monkeypatch.setattr(evaluation, "read_statistics", lambda _: (reference, statistics.moments_of(real)))
    monkeypatch.setattr(evaluation, "read_cache", lambda _: cache)
    evaluation.evaluate(
        output, Contract(compute_batch=64, kernel_subsets=3, extrapolation=3), samples_path=manifest,
        tokenizer_path=manifest, network_path=manifest, reference_path=manifest, device=CPU, configuration="0" * 64,
    )  # fmt: skip
    return Metrics.read(output)


@pytest.mark.parametrize("count", [10, 500, 1000])
def test_every_number_is_finite_whatever_the_number_of_samples(export, tmp_path, monkeypatch, count):
    manifest = canary(export, tmp_path, count)
    labels = sampler.read_samples(manifest)[2]
    assert (np.bincount(labels)[np.unique(labels)] >= 5).all()
    metrics = evaluate(manifest, tmp_path / "eval/metrics.json", monkeypatch)
    numbers = {name: value for name, value in metrics.model_dump().items() if isinstance(value, float)}
    assert len(numbers) == 17
    assert all(math.isfinite(value) for value in numbers.values()), numbers
    assert (tmp_path / "eval/grid.png").is_file()


def test_its_numbers_share_no_table_with_others_even_at_their_sample_count(export, tmp_path, monkeypatch):
    metrics = evaluate(canary(export, tmp_path, 1000), tmp_path / "eval/metrics.json", monkeypatch)
    assert metrics.contract.label_plan == "spaced"
    assert metrics.grid_labels == [row * CLASSES // 10 for row in range(10)]
    real = metrics.model_copy(update={"contract": metrics.contract.model_copy(update={"label_plan": "balanced"}), "seed": 1})
    real.write(tmp_path / "real/metrics.json")
    with pytest.raises(Fault, match="label_plan: 'spaced' against 'balanced'"):
        make_table("curve", [tmp_path / "eval/metrics.json", tmp_path / "real/metrics.json"])
    with pytest.raises(Fault, match="unlike"):
        require_same({"canary": metrics.contract, "real": real.contract})


def test_only_a_canary_may_leave_classes_out(export, tmp_path):
    with pytest.raises(Fault, match="ask for a multiple of 1000"):
        sampler.write_batches(sampler.SampleSet(tmp_path / "manifest.json", export, Sampling(), 1.0, 0, 500, "0" * 64), CPU)
    assert Samples.read(canary(export, tmp_path, 500)).label_plan == "spaced"


def left_by_a_canary(folder):
    for name in ("state/step_00000001/state.safetensors", "exports/step_1/model.safetensors", "exports/step_1/metadata.json",
                 "metrics.jsonl", "samples/manifest.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return write_metrics(folder / "eval/metrics.json", 1, 1.0, 0, 9.0)


def test_what_is_large_goes_and_what_is_said_stays(tmp_path):
    metrics = left_by_a_canary(tmp_path)
    pass_canary(metrics, tmp_path / "passed.json")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"metrics.jsonl", "samples/manifest.json", "eval/metrics.json", "eval/grid.png", "passed.json"}
    said = (tmp_path / "passed.json").read_bytes()
    assert Canary.read(tmp_path / "passed.json").contract_hash == Metrics.read(metrics).contract_hash
    pass_canary(metrics, tmp_path / "passed.json")  # killed before the end, or called again
    assert (tmp_path / "passed.json").read_bytes() == said


def test_without_an_evaluation_nothing_goes(tmp_path):
    left_by_a_canary(tmp_path).write_text("{}")
    with pytest.raises(Fault, match="not a Metrics"):
        pass_canary(tmp_path / "eval/metrics.json", tmp_path / "passed.json")
    assert (tmp_path / "state/step_00000001/state.safetensors").is_file()
    assert not (tmp_path / "passed.json").exists()
