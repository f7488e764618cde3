"""What a training leaves in its folder for readers, beside the artifacts: environment, code, latents, encoder in short.

The page RUN.md that links to them is run_page.py's.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drifting_core import config
from drifting_core.artifacts import EncoderSummary, EnvironmentFingerprint, LatentSummary, sha256_file
from drifting_core.artifacts.identity import digest, identity
from drifting_core.artifacts.provenance import codebase, environment
from drifting_core.data.latents import LatentStore
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.training.mae import architecture

SUBSET = 2048  # rows that the moments of latent_summary.json are of
_PROJECT = "drifting-workflow"


def write_surroundings(folder: Path) -> None:
    """env_snapshot.json, env_fingerprint.json and codebase_fingerprint.json: where, with what, which code."""
    snapshot = environment()
    snapshot.cuda, snapshot.driver = torch.version.cuda, _driver()
    snapshot.gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    snapshot.write(folder / "env_snapshot.json")
    fingerprint().write(folder / "env_fingerprint.json")
    codebase().write(folder / "codebase_fingerprint.json")


def fingerprint() -> EnvironmentFingerprint:
    """The software of this process: nothing of the host, the kernel or the time."""
    cudnn = torch.backends.cudnn.version()
    content: dict[str, Any] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": " ".join((sys.platform, platform.machine(), *platform.libc_ver())),
        "torch": {
            "version": str(torch.__version__),
            "commit": torch.version.git_version,
            "cuda": torch.version.cuda,
            "cudnn": str(cudnn) if cudnn else None,
        },
        "packages": dict(sorted((d.name, d.version) for d in metadata.distributions() if d.name != _PROJECT)),
    }
    return EnvironmentFingerprint(digest=digest(content), **content)


def _driver() -> str | None:
    """Version of the NVIDIA driver, where there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    versions = done.stdout.split()
    return versions[0] if done.returncode == 0 and versions else None


def write_latent_summary(folder: Path, store: LatentStore) -> None:
    """latent_summary.json. The moments are of the same few rows each time: a summary, no verification."""
    count = min(len(store), SUBSET)
    rows = torch.arange(count) * len(store) // count
    latents = store.gather(rows, torch.zeros_like(rows)).cpu().double()
    LatentSummary(
        manifest_sha256=sha256_file(store.path),
        rows=len(store),
        classes=store.num_classes,
        shape=list(store.shape),
        dtype=store.contract.dtype,
        contract=store.contract,
        subset_rows=count,
        channel_mean=latents.mean(dim=(0, 2, 3)).tolist(),
        channel_std=latents.std(dim=(0, 2, 3)).tolist(),
    ).write(folder / "latent_summary.json")


def write_encoder_summary(
    folder: Path, encoder: config.Encoder, recipe: config.EncoderTraining, store: LatentStore, step: int
) -> None:
    """mae_summary.json of an encoder that has been trained for `step` steps of `recipe`."""
    built = architecture(encoder, store)
    with torch.device("meta"):
        model = MaskedAutoencoder(**built, mask_patch_size=encoder.mask_patch_size)
    last = last_metrics(folder)
    EncoderSummary(
        step=step,
        architecture=built,
        parameters={name: _size(part) for name, part in model.named_children()},
        recipe=identity(recipe),
        masking={"patch_size": encoder.mask_patch_size, "ratio": encoder.mask_ratio},
        augmentation={"source": encoder.augmentation, "crop_views": encoder.crop_views, "crop_scale": encoder.crop_scale},
        last_metrics=last and {name: value for name, value in last.items() if name not in ("time", "seconds")},
        manifest_sha256=sha256_file(store.path),
        contract=store.contract,
    ).write(folder / "mae_summary.json")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def last_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl in `folder`, if there is one."""
    path = folder / "metrics.jsonl"
    for line in reversed(path.read_text().splitlines() if path.is_file() else []):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue  # a killed writer left it incomplete
    return None
