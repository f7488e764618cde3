"""Rates: the operation counts that they divide by, what a measurement writes, and what a plan makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from drifting_core.config import load_file
from drifting_core.costs import estimates
from drifting_core.evaluation import rates
from drifting_core.evaluation.networks.inception import InceptionV3
from drifting_core.faults import Fault
from drifting_core.models.mae import LatentEncoder
from drifting_core.planning import report
from drifting_core.training.mae import encoder_architecture
from workflow_scripts import measure_rates

KEYS = [f"effective_tflops.{name}" for name in ("generator", "encoder", "encode_float32", "decode", "features")]


def gmac(call: Any) -> float:
    """10^9 multiply-adds, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2e9


def test_operation_counts_are_torchs_own(root: Path) -> None:
    """Counted on the architectures themselves, one 256 px image; attention and all."""
    counts, config = estimates.read_rates(), load_file(root / "config" / "ablation.yaml")
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**rates.SD_VAE)
        image, latent = torch.rand(1, 3, 256, 256), torch.randn(1, 4, 32, 32)
        encoder = LatentEncoder(**encoder_architecture(config.encoder, 4))
    assert gmac(lambda: vae.encode(image)) == pytest.approx(counts["tokenizer_gmac"]["encode"]["value"], rel=0.01)
    assert gmac(lambda: vae.decode(latent)) == pytest.approx(counts["tokenizer_gmac"]["decode"]["value"], rel=0.01)
    assert gmac(lambda: encoder(latent)) == pytest.approx(estimates.encoder_macs(config) / 1e9, rel=0.01)
    pixels = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    assert gmac(lambda: InceptionV3.untrained()(pixels)) == pytest.approx(counts["inception_gmac"]["value"], rel=0.01)


@pytest.mark.parametrize("preset", ["demo", "cifar10", "ablation", "b2", "l2", "own_images", "smoke"])
def test_a_ranks_share_is_what_the_plan_gives_it(root: Path, preset: str) -> None:
    """What is measured divides as the real step does: the shares of all ranks are the whole."""
    config = load_file(root / "config" / f"{preset}.yaml")
    share, ranks = rates.share_of_a_rank(config), config.training.resources.processes
    assert ranks * estimates.step_macs(share) == pytest.approx(estimates.step_macs(config))
    assert config.encoder.resources.processes * estimates.encoder_step_macs(share) == pytest.approx(
        estimates.encoder_step_macs(config)
    )
    assert share.objective.classes_per_step % config.training.micro_batches == 0
    assert share.encoder.training.batch % config.encoder.micro_batches == 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a moment: what is written is looked at here, not how fast this machine is."""
    monkeypatch.setattr(rates, "SD_VAE", {**rates.SD_VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4})
    monkeypatch.setattr(rates, "_LEAST_SECONDS", 0.0)


@pytest.fixture
def quick(demo_values: dict[str, Any], tmp_path: Path) -> Path:
    demo_values["generator"].update(hidden_size=32, depth=1)
    demo_values["encoder"].update(base_width=8)
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(demo_values))
    return path


def test_measured_rates_stand_in_the_shipped_ones_places(
    small: None, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with device, torch, number format, what was timed, and the day; a plan computes with them and says so."""
    (tmp_path / "train.tar").write_bytes(bytes(2**21))
    output = tmp_path / "results" / "rates.yaml"
    archives = "data={archives: {train: " + str(tmp_path / "train.tar") + "}}"
    measure_rates.main(["--configfile", str(quick), "--output", str(output), "--config", archives])
    said = capsys.readouterr().out
    measured, shipped = estimates.read_rates(output), estimates.read_rates()
    changed = [
        key for key in estimates._keys(shipped) if estimates.rate_of(measured, key) != estimates.rate_of(shipped, key)
    ]
    assert changed == [key for key in estimates._keys(shipped) if key in said]
    assert {*KEYS, "data.seconds_per_page"} <= set(changed)
    for key in KEYS:
        source = estimates.rate_of(measured, key)["source"]
        assert re.fullmatch(r"measured: CPU \(.*\), torch [^,]+, float32, .*: \S+ s each, \d{4}-\d\d-\d\d", source)
    assert measured["device"].startswith("one CPU")

    made = report.make_plan(quick, [], tmp_path, (1,), "local", None, output)
    assert (made["rates"]["file"], made["rates"]["hardware"]) == (str(output), measured["device"])


def test_a_rate_is_operations_over_seconds(small: None, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose every call takes a hundredth of a second."""
    monkeypatch.setattr(rates, "_seconds", lambda *_: 0.01)
    config = load_file(root / "config" / "demo.yaml")
    found = {rate.key: rate.value for rate in rates.measure(config, 1)}
    assert found["effective_tflops.generator"] == pytest.approx(200 * estimates.step_macs(config) / 1e12)
    assert found["effective_tflops.encoder"] == pytest.approx(200 * estimates.encoder_step_macs(config) / 1e12)
    assert found["effective_tflops.decode"] == pytest.approx(200 * 311.1e9 / 1e12)
    assert found["data.jpegs_per_second_and_thread"] == pytest.approx(100)


def test_a_preset_that_trains_nothing_has_no_rates(root: Path) -> None:
    with pytest.raises(Fault, match="a network of it is imported, .* give a preset that has them"):
        next(rates.measure(load_file(root / "config" / "released_l2.yaml"), 1))


def test_what_a_gpu_cannot_hold_is_said_with_the_key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 1 GiB")

    monkeypatch.setattr(rates, "drift_training", full)
    with pytest.raises(Fault, match=r"does not hold a rank's share of demo: CUDA out of memory\. .* 9\.00 GiB\.; raise"):
        list(rates.measure(load_file(root / "config" / "demo.yaml"), 1))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda found: found["effective_tflops"].pop("encoder"), "effective_tflops.encoder"),
        (lambda found: found["inception_gmac"].update(value=0), "inception_gmac"),
        (lambda found: found["data"]["md5_bytes_per_second"].update(value="fast"), "data.md5_bytes_per_second"),
        (lambda found: found["effective_tflops"]["decode"].pop("source"), "effective_tflops.decode"),
        (lambda found: found.pop("device"), "device"),
    ],
)
def test_a_file_that_lacks_a_rate_is_refused(tmp_path: Path, change: Callable[[Any], object], key: str) -> None:
    found = yaml.safe_load(estimates.RATES.read_text())
    change(found)
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(Fault, match=rf"rates\.yaml: {re.escape(key)} is not there with a value above 0 .* make rates"):
        estimates.read_rates(tmp_path / "rates.yaml")
    with pytest.raises(Fault, match="no rates can be read: .* make rates"):
        estimates.read_rates(tmp_path / "none.yaml")
