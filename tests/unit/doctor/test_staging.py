"""What a configuration needs from outside: all of it, what is there, and what is not as it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drifting_core.config import load_file
from drifting_core.doctor.staging import Need, listing, needs
from drifting_core.faults import Fault
from drifting_core.sources import published

ARCHIVES = ["data.archives.train", "data.archives.val", "data.archives.devkit"]
INCEPTION = "evaluation.network.inception_weights"
VAE = ["tokenizer.hub", "tokenizer.hub"]
PATHS = 'evaluation={reference: {statistics: {path: mine.npz, sha256: "%s"}}}' % ("ab" * 32)


def keys(root: Path, preset: str, *overrides: str) -> list[str]:
    return [need.key for need in needs(load_file(root / f"config/{preset}.yaml", overrides))]


@pytest.mark.parametrize(("preset", "overrides", "wanted"), [
    ("demo", (), []),
    ("cifar10", (), ["data.archives.packed_from"]),
    ("own_images", (), ["data.archives.train", *VAE, INCEPTION]),
    ("ablation", (), [*ARCHIVES, *VAE, INCEPTION]),
    ("ablation", (PATHS,), [*ARCHIVES, *VAE, INCEPTION, "evaluation.reference.statistics.path"]),
    ("ablation", ("encoder={source: released:mae_latent_256}",), [*ARCHIVES, *VAE, *2 * ["encoder.source"], INCEPTION]),
    ("ablation", ("encoder={init_from: results/encoders/x/export/metadata.json}",), [*ARCHIVES, *VAE, INCEPTION]),
    ("ablation", ("training={init_from: /else/metadata.json}",), [*ARCHIVES, *VAE, "training.init_from", INCEPTION]),
    ("released_l2", (), [*ARCHIVES, *VAE, *2 * ["generator.source"], INCEPTION]),  # its encoder is for information
    ("released_l2", ("generator={source: mine}", "tokenizer={source: folder, folder: vae}"),
     [*ARCHIVES, "tokenizer.folder", "generator.source", INCEPTION]),
])  # fmt: skip
def test_everything_that_is_not_made_is_named(
    root: Path, preset: str, overrides: tuple[str, ...], wanted: list[str]
) -> None:
    assert keys(root, preset, *overrides) == wanted


def test_a_file_is_here_when_it_has_its_size(tmp_path: Path) -> None:
    exact = Need("x", "a.b", tmp_path / "x", published.File("x", 3))
    about = exact._replace(file=published.File("x", 3, exact=False))
    assert (exact.problem, about.problem) == ("missing", "missing")
    exact.place.write_text("four")
    assert (exact.problem, about.problem) == ("4 bytes, expected 3", None)
    exact.place.write_text("123")
    assert exact.problem is None
    assert exact._replace(folder=True).problem == "missing"
    assert Need("x", "a.b", tmp_path, folder=True).problem is None


def test_sizes_and_hashes_are_printed_as_far_as_they_are_known(root: Path) -> None:
    text = listing(needs(load_file(root / "config/released_l2.yaml")))
    for part in (
        "data/ILSVRC2012_img_train.tar: missing", "147,897,477,120 bytes, MD5 1d675b47d978889d74fa0da5fadfb00e",
        "about 2.5 MB, MD5 fa75699e90414af021442c21a62c3abf", "334,643,276 bytes, SHA-256 a1d993488569e928",
        "95,628,359 bytes, SHA-256 6726825d", "about 1,847.5 MB, hash not known", "size not known, hash not known",
        "8 needed from outside, 0 here, 8 missing or wrong",
        "hf download stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.safetensors --revision 31f26fdeee",
        "--local-dir results/sources/latent_L_sota-1a5afa9f\n",
    ):  # fmt: skip
        assert part in text
    assert text.count("hf download") == 2


def test_what_is_here_needs_no_download(root: Path, tmp_path: Path) -> None:
    config = load_file(root / "config/ablation.yaml", [f"results={tmp_path}"])
    vae = [need for need in needs(config) if need.command]
    for need in vae:
        need.place.parent.mkdir(parents=True, exist_ok=True)
        with need.place.open("wb") as file:
            file.truncate(need.file.bytes)  # sparse
    text = listing(needs(config))
    assert f"{vae[1].place}: here" in text
    assert "hf download" not in text
    assert "2 here, 4 missing or wrong" in text


def script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "workflow_scripts/fetch.py"), *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_the_list_is_read_by_machines_too_and_imports_nothing_heavy(root: Path) -> None:
    done = script(root, "--list", "--json", "--configfile", "config/ablation.yaml", "--config", PATHS, "results=elsewhere")
    held: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(held) == 7
    assert held[-1]["sha256"] == "ab" * 32
    assert held[3]["place"] == "elsewhere/sources/sd-vae-ft-mse-31f26fde/config.json"
    assert held[3]["bytes"] == 547
    code = "import sys; sys.argv[1:] = ['--list']; sys.path[0] = 'workflow_scripts'; import fetch; fetch.main()\n"
    code += "print(sorted({'torch', 'h5py', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    light = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert light.stdout.splitlines()[-1] == "[]", light.stderr


def test_half_a_command_is_refused(root: Path) -> None:
    done = script(root, "--output", "manifest.json")
    assert done.returncode == 2
    assert "give --download and --output, or --list" in done.stderr


@pytest.mark.parametrize(("override", "said"), [
    ("training", "--config training: no value"),
    ("training={steps", "--config training={steps"),
    ("training={stesp: 1}", "training.stesp: unknown key; did you mean 'steps'?"),
])  # fmt: skip
def test_bad_overrides_are_named(root: Path, override: str, said: str) -> None:
    with pytest.raises(Fault) as caught:
        load_file(root / "config/demo.yaml", [override])
    assert said in str(caught.value)


def test_overrides_are_read_as_snakemake_reads_them(root: Path) -> None:
    """Leaves are strings there, and are merged into their sections."""
    loaded = load_file(root / "config/demo.yaml", ["training={steps: 2000, resources: {threads: 3}}", "seeds=[0, 1]"])
    assert (loaded.training.steps, loaded.training.resources.threads, loaded.seeds) == (2000, 3, (0, 1))
    assert loaded.training.milestone_every == 250
