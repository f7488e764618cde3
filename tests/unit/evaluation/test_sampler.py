"""Samples are functions of (export, alpha, seed, index), however the work is divided."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import drifting_core
from drifting_core.artifacts import LatentContract, Samples, sha256_file
from drifting_core.artifacts.identity import digest
from drifting_core.config import Sampling
from drifting_core.evaluation import sampler
from drifting_core.faults import CALL_AGAIN, Fault, Stopped
from drifting_core.jobs.job import RANK
from drifting_core.models.exports import write_export
from drifting_core.models.generator import Generator
from tests.conftest import until
from tests.unit.evaluation.samples import write_index

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
    golden = Path(__file__).parents[2] / "data/golden/generator"
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


def asked(export, folder, count=9, alpha=1.5, seed=1, index=None, canary=False, **how):
    how = Sampling(**{"compute_batch": 4} | how)
    return sampler.SampleSet(folder / "manifest.json", export, how, alpha, seed, count, "0" * 64, None, index, canary)


def write(export, folder, ranks=1, **what):
    wanted = asked(export, folder, **what)
    for rank in range(ranks):
        sampler.write_batches(wanted, CPU, rank=rank, size=ranks)
    sampler.assemble(wanted)
    return wanted.manifest


def made(manifest):
    """Everything that a sampling job leaves."""
    return {path.name: path.read_bytes() for path in manifest.parent.iterdir() if path.name != ".lease"}


class StopAfter:
    """A stop request that comes after so many batches."""

    reason, needs = "test", 0.0

    def __init__(self, batches):
        self.left = batches

    def __bool__(self):
        self.left -= 1
        return self.left < 0


def interrupted(wanted, batches, **where):
    with pytest.raises(Stopped, match="finished batches are kept"):
        sampler.write_batches(wanted, CPU, StopAfter(batches), **where)


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
    for one, other in zip(*(sampler.sample_inputs(each, 1, rows, rows % 10) for each in (generator, later)), strict=True):
        assert torch.equal(one, other)


def test_seed_and_alpha_change_the_samples_but_alpha_not_the_noise(generator):
    assert not torch.equal(latents(generator, seed=2), latents(generator))
    assert not torch.equal(latents(generator, alpha=3.0), latents(generator))
    rows = torch.arange(5)
    first, again = (sampler.sample_inputs(generator, 1, rows, rows % 10) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = sampler.sample_inputs(generator, 2, rows, rows % 10)
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


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_any_number_of_ranks_leaves_the_same_bytes(export, tmp_path, ranks):
    """Three batches, the last one padded: also more ranks than batches."""
    whole = made(write(export, tmp_path / "one"))
    assert sorted(whole) == ["latents.safetensors", "manifest.json"]
    assert made(write(export, tmp_path / "many", ranks)) == whole


def test_what_was_finished_is_kept_whatever_the_number_of_ranks_then_is(export, tmp_path, monkeypatch):
    whole = made(write(export, tmp_path / "one", count=30))
    wanted = asked(export, tmp_path / "s", count=30)
    interrupted(wanted, 1, rank=0, size=3)  # of 8 batches number 0
    interrupted(wanted, 2, rank=1, size=3)  # 1 and 4
    first = []
    original = sampler.generate
    monkeypatch.setattr(sampler, "generate", lambda *given, **how: first.append(how["first"]) or original(*given, **how))
    interrupted(wanted, 2)  # alone: 2 and 3
    for rank in (1, 0):
        sampler.write_batches(wanted, CPU, rank=rank, size=2)
    assert [start // 4 for start in first] == [2, 3, 5, 7, 6]
    sampler.assemble(wanted)
    assert made(wanted.manifest) == whole


@pytest.mark.parametrize(
    "other",
    [{"alpha": 2.0}, {"seed": 2}, {"count": 12}, {"compute_batch": 3}, {"precision": "bfloat16"}, {"canary": True}],
    ids=str,
)
def test_what_was_finished_of_other_samples_is_never_mixed_in(export, tmp_path, other):
    for rank in (0, 1):
        sampler.write_batches(asked(export, tmp_path / "s", **other), CPU, rank=rank, size=2)
    assert made(write(export, tmp_path / "s")) == made(write(export, tmp_path / "fresh"))


def test_a_file_is_not_put_together_without_all_batches(export, tmp_path):
    wanted = asked(export, tmp_path)
    sampler.write_batches(wanted, CPU, rank=1, size=2)
    with pytest.raises(Fault, match=r"2 of 3 batches were not sampled \(first: 0\)"):
        sampler.assemble(wanted)
    assert not wanted.manifest.exists()


def started(wanted, ranks):
    """The job as its rule starts it."""
    operations = {"evaluation": {"resources": {"ranks": ranks}}}
    arguments = {
        "config": json.dumps({"evaluation.sampling": {"compute_batch": wanted.how.compute_batch}}),
        "operations": json.dumps(operations), "export": wanted.export, "alpha": wanted.alpha, "seed": wanted.seed,
        "samples": wanted.count, "output": wanted.manifest, "threads": ranks,
    }  # fmt: skip
    options = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    script = Path(__file__).parents[3] / "workflow_scripts/sample.py"
    return subprocess.Popen([sys.executable, script, *options], stderr=subprocess.PIPE, text=True)


def of_the_script(wanted):
    """The same samples as `started` makes: its configuration's digest is that of its slice."""
    configuration = digest({"evaluation.sampling": {"compute_batch": wanted.how.compute_batch}})
    return dataclasses.replace(wanted, configuration=configuration)


def wait_for_half(wanted, ranks):
    """Until the last rank's journal holds half of its batches, of 560 bytes each."""
    journal, half = wanted.manifest.with_name(f".samples_{ranks - 1}.journal"), 560 * wanted.count // ranks // 2
    until(lambda: journal.exists() and journal.stat().st_size > half)


def test_a_job_that_is_killed_or_stopped_goes_on_to_the_same_bytes(export, tmp_path):
    wanted = of_the_script(asked(export, tmp_path / "s", count=1500, compute_batch=1))
    job = started(wanted, 1)
    wait_for_half(wanted, 1)
    job.kill()
    job.wait()
    assert not wanted.manifest.exists()
    job = started(wanted, 1)
    until(lambda: "going on with" in job.stderr.readline())
    job.terminate()
    assert job.wait() == CALL_AGAIN
    sampler.write_batches(wanted, CPU)
    sampler.assemble(wanted)
    fresh = dataclasses.replace(wanted, manifest=tmp_path / "fresh/manifest.json")
    sampler.write_batches(fresh, CPU)
    sampler.assemble(fresh)
    assert made(wanted.manifest) == made(fresh.manifest)


def test_ranks_go_on_after_one_was_killed_as_many_as_there_then_are(export, tmp_path):
    wanted = of_the_script(asked(export, tmp_path / "s", count=1500, compute_batch=1))
    job = started(wanted, 2)
    wait_for_half(wanted, 2)
    second = next(p for p in psutil.Process(job.pid).children() if p.environ()[RANK] == "1")
    second.kill()
    assert "rank 1 of 2 ranks was killed by SIGKILL" in job.communicate()[1]
    assert job.returncode == 1
    assert not wanted.manifest.exists()
    job = started(wanted, 4)
    said = job.communicate()[1]
    assert job.returncode == 0, said
    assert "world size 4" in said
    fresh = dataclasses.replace(wanted, manifest=tmp_path / "fresh/manifest.json")
    sampler.write_batches(fresh, CPU)
    sampler.assemble(fresh)
    assert made(wanted.manifest) == made(fresh.manifest)


@pytest.fixture
def index(tmp_path):
    """Of ten validation images, in an order that is not balanced."""
    labels = np.array([2, 2, 0, 1, 1, 1, 0, 2, 0, 1])
    return write_index(tmp_path / "data", labels)


def test_the_validation_plan_takes_the_labels_of_the_index_in_order(generator, export, index, tmp_path):
    plan = {"index": index, "label_plan": "validation", "count": 7}  # no multiple of the classes
    record, stored, labels = sampler.read_samples(write(export, tmp_path / "one", **plan))
    assert labels.tolist() == [2, 2, 0, 1, 1, 1, 0]
    assert (record.label_plan, record.inputs["index"]) == ("validation", sha256_file(index))
    assert made(write(export, tmp_path / "many", ranks=2, **plan)) == made(tmp_path / "one/manifest.json")
    balanced = latents(generator, last=7).half()
    same = [i for i in range(7) if labels[i] == i % 3]
    assert [i for i in range(7) if torch.equal(stored[i], balanced[i])] == same == [4, 6]


def test_labels_that_are_not_there_are_a_fault(export, index, tmp_path):
    plan = {"label_plan": "validation"}
    with pytest.raises(Fault, match=r"11 samples, but .* for the 10 validation images only; .*evaluation.report.samples"):
        write(export, tmp_path, index=index, count=11, **plan)
    with pytest.raises(Fault, match="give --index"):
        write(export, tmp_path, **plan)
    other = write_index(tmp_path / "other", np.array([0, 3]))
    with pytest.raises(Fault, match=r"has 4 classes, .* knows 3"):
        write(export, tmp_path, index=other, count=2, **plan)


def test_unbalanced_counts_are_refused(export, tmp_path):
    with pytest.raises(Fault, match="multiple of 3"):
        write(export, tmp_path / "s", count=10)


def test_pruned_latents_come_back_under_their_manifest_whatever_the_code(export, tmp_path, monkeypatch, caplog):
    manifest = write(export, tmp_path / "s")
    before = made(manifest)
    pruned = manifest.with_name(Samples.pruned)
    for version in ("a later one", "another"):
        monkeypatch.setattr(sampler, "code_version", lambda version=version: version)
        manifest.replace(pruned)
        (manifest.parent / sampler.LATENTS).unlink()
        write(export, tmp_path / "s")
        assert made(manifest) == before
    other = Samples.read(manifest)
    other.files[sampler.LATENTS] = other.files[sampler.LATENTS].model_copy(update={"sha256": "f" * 64})
    other.write(pruned)  # as if of another device
    write(export, tmp_path / "s")
    assert "not the latents that were pruned" in caplog.text
    assert Samples.read(manifest).code == "another"
    assert not pruned.exists()


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
