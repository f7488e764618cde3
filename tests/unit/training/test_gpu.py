"""On a CUDA device: the CPU's numbers, the same bits each time, NCCL, jobs that are killed. Elsewhere all is skipped.

`pytest -m gpu` on a machine with one GPU. Its jobs compute in bfloat16.
"""

from __future__ import annotations

import itertools
import random
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from torch import Tensor

from drifting_core import config as settings
from drifting_core.data.latents import LatentStore
from drifting_core.drift.objective import DriftObjective
from drifting_core.evaluation import rates, sampler, search
from drifting_core.evaluation.networks.inception import InceptionV3
from drifting_core.jobs.devices import Place, _free_port
from drifting_core.models.generator import Generator
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.released import load_released
from drifting_core.training.mae import MaskedTraining, StoredLatents
from drifting_core.training.parallel import ALONE, Ranks, joined
from tests.benchmarks import objective as benchmark
from tests.conftest import ROOT
from tests.unit.evaluation.networks.test_inception import random_state
from tests.unit.evaluation.test_search import blocks, drawn
from tests.unit.models.test_released import GOLDEN, channels_first, generator, golden, index
from tests.unit.training.jobs import Network, Site, make_site
from tests.unit.training.samples import CPU, write_store
from tests.unit.training.test_parallel import assert_same, step, values
from tests.unit.training.test_survival import wait_for_line

GPU = torch.device("cuda", 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def exactly() -> None:
    """As devices.device() has it, without taking the device from the jobs below."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@pytest.fixture(autouse=True)
def as_jobs_compute() -> None:
    exactly()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_store(folder)
    return folder


# --- the CPU's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_step_is_the_cpus(
    store: Path, demo_values: dict[str, Any], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where rounding is small beside any mistake. The float32 tables of sines are the CPU's for both."""
    rotary, waves = Generator._rotary, Generator._alpha_waves
    monkeypatch.setattr(
        Generator, "_rotary", lambda own, tokens: tuple(t.to(tokens.device) for t in rotary(own, tokens.cpu()))
    )
    monkeypatch.setattr(Generator, "_alpha_waves", lambda own, alpha: waves(own, alpha.cpu()).to(alpha.device))
    configuration = values(demo_values)
    found = step(configuration, store, "float64", ALONE, micro_batches, GPU)
    assert all(tensor.is_cuda for name, tensor in found.items() if name != "loss")
    on_the_cpu = step(configuration, store, "float64", ALONE, 1)
    assert_same({name: tensor.cpu() for name, tensor in found.items()}, on_the_cpu, "float64")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_gives_the_same_bits_each_time(store: Path, demo_values: dict[str, Any], precision: str) -> None:
    configuration = values(demo_values)
    configuration["training"]["precision"] = precision
    first, second = (step(configuration, store, "float32", ALONE, 2, GPU) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_authors_numbers_of_the_generator() -> None:
    expected, module = golden("generator/expected.npz"), generator().to(GPU)
    condition = index(expected["labels"]), torch.from_numpy(expected["alpha"]), index(expected["style_index"])
    with torch.inference_mode():
        samples = module(channels_first(expected["noise"]).to(GPU), *(each.to(GPU) for each in condition))
    torch.testing.assert_close(samples.cpu(), channels_first(expected["samples"]), rtol=0, atol=1e-5)


def test_the_authors_numbers_of_the_encoder() -> None:
    expected, module = golden("mae/expected.npz"), load_released(GOLDEN / "mae")
    assert isinstance(module, MaskedAutoencoder)
    with torch.inference_mode():
        features = module.to(GPU).features(channels_first(expected["x"]).to(GPU))
    for name, entry in features.items():
        head = torch.from_numpy(expected[f"act_head/{name}"])
        assert (entry[:, :3, :8].cpu() - head).abs().max() <= 1e-4 * head.abs().max(), name


def test_inceptions_golden_features(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "inception.pth")
    network = InceptionV3(tmp_path / "inception.pth").to(GPU)
    with np.load(GOLDEN / "inception.npz") as file:
        output = network(torch.from_numpy(file["images_a"]).to(GPU))
        for name, value in {"2048": output.features, "logits_unbiased": output.logits_unbiased}.items():
            expected = file[f"a_{name}"]
            np.testing.assert_allclose(value.cpu(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_the_search_finds_the_same_to_the_last_bit() -> None:
    features, queries, labels = drawn(300, 0), drawn(20, 1), np.arange(20) % 7
    of = np.random.default_rng(2).integers(0, 7, 300)
    cpu, gpu = (search.nearest(queries, labels, blocks(features, of), 5, on, "test") for on in (CPU, GPU))
    for here, there in zip(cpu, gpu, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


# --- the device's own ways ------------------------------------------------------------------------------------------


def test_the_compiled_objective_is_the_eager_one() -> None:
    data = benchmark.inputs(2, "cuda", tokens=64, dtype=torch.float32)
    eager, compiled = (benchmark.training(data, compiled=compiled) for compiled in (False, True))
    assert (compiled - eager).abs().max() <= 1e-5 * eager.abs().max()


def test_chunks_change_nothing_but_rounding() -> None:
    data = benchmark.inputs(2, "cuda", tokens=64, dtype=torch.float32)
    generated, positive, unconditional = (
        {"raw": data[kind].flatten(0, 1)} for kind in ("generated", "positive", "unconditional")
    )

    def gradient(chunk: int | None) -> Tensor:
        made = DriftObjective(generated, positive, unconditional, data["weights"], (0.2, 0.05), chunk=chunk)
        return made.gradients()["raw"]

    one, many = gradient(None), gradient(7)
    assert (many - one).abs().max() <= 1e-5 * one.abs().max()


def test_samples_are_the_same_however_they_are_divided() -> None:
    """And those of the CPU, up to rounding."""
    module = generator()

    def samples(on: torch.device, *bounds: int) -> Tensor:
        network = module.to(on)
        parts = (
            sampler.generate(network, seed=1, alpha=1.5, first=first, last=last, compute_batch=4, device=on)
            for first, last in itertools.pairwise(bounds)
        )
        return torch.cat([part for some in parts for part in some])

    whole = samples(GPU, 0, 22)
    assert torch.equal(samples(GPU, 0, 4, 16, 22), whole)
    torch.testing.assert_close(samples(CPU, 0, 22), whole, rtol=0, atol=1e-4)


def one_rank(_: int, folder: str, port: int, configuration: Any) -> None:
    """Joined by NCCL: the generator's step, and three of the encoder's with whole and with sharded parameters."""
    exactly()
    with joined(Place(0, 1, 0, "127.0.0.1", port), GPU) as ranks:
        torch.save(step(configuration, Path(folder), "float64", ranks, 2, GPU), f"{folder}/generator.pt")
        for parallel in ("ddp", "fsdp"):
            torch.save(encoder_losses(configuration, Path(folder), ranks, parallel), f"{folder}/{parallel}.pt")


def encoder_losses(configuration: dict[str, Any], store: Path, ranks: Ranks, parallel: str) -> list[float]:
    section = settings.load(configuration).encoder.model_copy(update={"parallel": parallel})
    stored = LatentStore(store / "manifest.json")
    made = MaskedTraining(section, stored, StoredLatents(stored), GPU, ranks)
    made.begin()
    return [made.advance(number)["loss"] for number in range(3)]


def test_nccl_joins_ranks(store: Path, demo_values: dict[str, Any]) -> None:
    configuration = values(demo_values)
    mp.spawn(one_rank, args=(str(store), _free_port(), configuration), nprocs=1)
    found = torch.load(store / "generator.pt", weights_only=True)
    assert_same(found, step(configuration, store, "float64", ALONE, 1, GPU), "float64")
    alone = encoder_losses(configuration, store, ALONE, "ddp")
    for parallel in ("ddp", "fsdp"):
        assert torch.load(store / f"{parallel}.pt", weights_only=True) == pytest.approx(alone, rel=1e-5), parallel


def test_rates_name_the_device(demo_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small networks, each once: what is said is looked at."""
    monkeypatch.setattr(rates, "SD_VAE", {**rates.SD_VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4})
    monkeypatch.setattr(rates, "_LEAST_SECONDS", 0.0)
    demo_values["training"]["resources"]["gpus"] = 1
    found = {rate.key: rate.how for rate in rates.measure(settings.load(demo_values), 1)}
    for key in ("generator", "encoder", "encode_float32", "decode", "features"):
        said = found[f"effective_tflops.{key}"]
        assert re.search(rf"{re.escape(torch.cuda.get_device_name())}, .* GB at most", said), said


# --- jobs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Latents on the GPU, bfloat16 and micro-batches: what the CPU's jobs have not."""
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    demo["data"]["latents"]["residency"] = "gpu"
    for section in (demo["training"], demo["encoder"]["training"]):
        section["precision"] = "bfloat16"
    for section in (demo["training"], demo["encoder"]):
        section["micro_batches"] = 2
    return make_site(tmp_path_factory.mktemp("site"), demo, gpus=1)


@pytest.mark.parametrize("network", ["encoder", "generator"])
def test_a_killed_job_goes_on_to_the_same_bits(site: Site, network: Network) -> None:
    whole, name = f"whole_{network}", f"killed_{network}"
    assert torch.cuda.get_device_name() in site.finish(network, whole)
    with site.start(network, name) as job:
        try:
            wait_for_line(job, site, name, random.randint(8, 30))
        finally:
            job.kill()
    assert "continuing at step" in site.finish(network, name)
    assert sha256(site.state(name)).digest() == sha256(site.state(whole)).digest()
    assert site.lines(name) == site.lines(whole)
