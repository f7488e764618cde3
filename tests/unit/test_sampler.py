"""Samples are functions of (export, alpha, seed, index), however the work is divided."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import drifting_core
from drifting_core.artifacts import LatentContract, Samples
from drifting_core.config import Sampling
from drifting_core.evaluation import sampler
from drifting_core.faults import Fault
from drifting_core.models.exports import write_export
from drifting_core.models.generator import Generator

CPU = torch.device("cpu")
ARCHITECTURE = {
    "input_size": 8, "channels": 4, "patch_size": 4, "hidden_size": 32, "depth": 1, "num_heads": 2, "cond_dim": 16,
    "num_classes": 3, "in_context_tokens": 2, "style_tables": 4, "style_entries": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def generator():
    torch.set_num_threads(1)
    made = Generator(**ARCHITECTURE)
    made.reset_parameters(0)
    seeded = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=seeded)
    return made.eval()


def latents(generator, first=0, last=12, batch=4, seed=1, alpha=1.5):
    parts = sampler.generate(generator, seed=seed, alpha=alpha, first=first, last=last, compute_batch=batch, device=CPU)
    return torch.cat(list(parts))


@pytest.fixture
def vae(tmp_path):
    from drifting_core import config
    from drifting_core.models.tokenizer_making import small_autoencoder

    training = {"channels": [8, 8], "norm_groups": 4, "steps": 1, "batch": 1, "learning_rate": 1e-3}
    torch.manual_seed(0)
    made = small_autoencoder(config.Tokenizer.model_validate({"source": "trained", "factor": 2, "training": training}))
    made.save_pretrained(tmp_path / "vae", safe_serialization=True)
    return tmp_path / "vae"


def test_pictures_of_published_weights(vae):
    """README: drifting_core.sample, here with the golden generator and a small random tokenizer."""
    golden = Path(__file__).parents[1] / "data/golden/generator"
    labels = [7, 2, *range(10), *range(10)]
    pictures = drifting_core.sample(released=golden, labels=labels, alpha=1.5, tokenizer=vae)
    assert [(picture.size, picture.mode) for picture in pictures] == [((32, 32), "RGB")] * 22
    assert pictures[0].tobytes() != pictures[1].tobytes()
    # the first sixteen are one batch: sample i is a function of (seed, i, label, alpha), up to rounding
    few = drifting_core.sample(released=golden, labels=[7, 2], alpha=1.5, tokenizer=vae)
    again, first = (np.asarray(many[1], dtype=int) for many in (few, pictures))
    assert abs(again - first).max() <= 1
    other = drifting_core.sample(released=golden, labels=[7, 2], alpha=1.5, tokenizer=vae, seed=1)
    assert other[0].tobytes() != few[0].tobytes()
    with pytest.raises(ValueError, match=r"labels are 0 to 9, found \[10\]"):
        drifting_core.sample(released=golden, labels=[3, 10], tokenizer=vae)
    with pytest.raises(Fault, match="an encoder makes no pictures"):
        drifting_core.sample(released=golden.parent / "mae", labels=[3], tokenizer=vae)


def test_precision_is_part_of_the_samples(generator):
    exact, rough = (
        next(iter(sampler.generate(generator, seed=1, alpha=1.5, first=0, last=4, compute_batch=4, device=CPU, precision=p)))
        for p in ("float32", "bfloat16")
    )
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.1 * exact.abs().max()


@pytest.fixture
def export(generator, tmp_path):
    path = tmp_path / "exports/step_7/metadata.json"
    contract = LatentContract(
        tokenizer_sha256="a" * 64, scaling_factor=1.0, posterior="mean", views=["image"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    weights = {name: tensor.detach() for name, tensor in generator.state_dict().items()}
    write_export(
        path, "generator", weights, ARCHITECTURE, step=7, ema_decay=0.9, latents=contract, configuration="0" * 64, inputs={}
    )  # fmt: skip
    return path


def write(export, folder, count=9, batch=4, alpha=1.5, seed=1):
    manifest = folder / "manifest.json"
    sampler.write_samples(
        manifest, export, Sampling(compute_batch=batch), alpha=alpha, seed=seed, count=count, device=CPU,
        configuration="0" * 64,
    )  # fmt: skip
    return manifest


def test_any_division_of_the_work_gives_the_same_bits(generator):
    whole = latents(generator)
    divided = torch.cat([latents(generator, 8, 12), latents(generator, 0, 4), latents(generator, 4, 8)])
    assert torch.equal(torch.cat([divided[4:], divided[:4]]), whole)
    assert torch.equal(latents(generator, last=10), whole[:10])  # the tail is padded, not shorter


def test_another_compute_batch_agrees_to_rounding(generator):
    torch.testing.assert_close(latents(generator, batch=3), latents(generator), rtol=0, atol=1e-5)


def test_every_export_of_a_run_is_given_the_same_noise(generator):
    """The grids of a run's evaluations show one selection seed, so they are comparable sample by sample."""
    later = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.add_(1.0)
    rows = torch.arange(20)
    for one, other in zip(*(sampler.sample_inputs(each, 1, rows) for each in (generator, later)), strict=True):
        assert torch.equal(one, other)


def test_seed_and_alpha_change_the_samples_but_alpha_not_the_noise(generator):
    assert not torch.equal(latents(generator, seed=2), latents(generator))
    assert not torch.equal(latents(generator, alpha=3.0), latents(generator))
    rows = torch.arange(5)
    first, again = (sampler.sample_inputs(generator, 1, rows) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = sampler.sample_inputs(generator, 2, rows)
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.style, other.style)


def test_labels_are_balanced():
    labels = sampler.balanced_labels(torch.arange(12), 3)
    assert labels.bincount().tolist() == [4, 4, 4]
    assert labels[:4].tolist() == [0, 1, 2, 0]


def test_written_samples_are_read_back_and_repeat_byte_for_byte(generator, export, tmp_path):
    one, two = write(export, tmp_path / "one"), write(export, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    record, stored, labels = sampler.read_samples(one)
    assert isinstance(record, Samples)
    assert (record.step, record.alpha, record.seed, record.samples, record.classes) == (7, 1.5, 1, 9, 3)
    assert torch.equal(stored, latents(generator, last=9).half())
    assert labels.tolist() == [0, 1, 2] * 3


def test_unbalanced_counts_are_refused(export, tmp_path):
    with pytest.raises(Fault, match="multiple of 3"):
        write(export, tmp_path / "s", count=10)


def test_a_changed_file_is_refused(export, tmp_path):
    manifest = write(export, tmp_path / "s")
    file = manifest.parent / sampler.LATENTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Fault, match="was changed"):
        sampler.read_samples(manifest)


def test_diverged_samples_are_named():
    broken = torch.zeros(4, 2, 3, 3)
    broken[2, 0, 1, 1] = torch.nan
    broken[3, 1, 0, 0] = torch.inf
    with pytest.raises(Fault, match="samples 102, 103: 2 of 4"):
        sampler.checked(broken, 100)
