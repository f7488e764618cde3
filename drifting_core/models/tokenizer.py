"""The autoencoder between pixels and latents: diffusers' AutoencoderKL, loaded and wrapped.

Whatever its source (models/tokenizer_making.py), a tokenizer is a folder as written by `save_pretrained` (config.json and
safetensors) under a TokenizerManifest, and the rest of the project loads it by that manifest only.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import TokenizerManifest, check_file, sha256_file
from drifting_core.faults import Fault

FOLDER = "vae"
Autoencoder = Any  # an AutoencoderKL: diffusers' base classes have no types that mypy can follow
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

# What diffusers only warns about, leaving the weights random.
_NOT_WHOLE = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


class Tokenizer:
    """Pixels to latents and back, without gradients.

    `scaling_factor` (latents of the project are the posterior times it), `factor` pixels per latent pixel, `channels` of
    a latent, `sha256` of the weights, `precision` that it computes in, `device`.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", precision: config.Precision = "float32") -> None:
        """`folder`: written by save_pretrained. Raises Fault when it is not a whole AutoencoderKL in safetensors."""
        self.device, self.precision = torch.device(device), precision
        self._dtype = getattr(torch, precision)
        self.model = load(folder, self._dtype).to(self.device).eval().requires_grad_(False)
        self.sha256 = sha256_file(folder / WEIGHTS)
        self.scaling_factor = float(self.model.config["scaling_factor"])
        self.factor = 2 ** (len(self.model.config["block_out_channels"]) - 1)
        self.channels = int(self.model.config["latent_channels"])

    @classmethod
    def of(cls, manifest: Path, device: torch.device | str = "cpu", precision: config.Precision = "float32") -> Tokenizer:
        """The tokenizer of a manifest, after its files were compared with it. Raises Fault."""
        held = TokenizerManifest.read(manifest)
        for name, record in held.files.items():
            check_file(manifest.parent / name, record)
        return cls(manifest.parent / held.folder, device, precision)

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, unscaled float32 (B, C, H/factor, W/factor) on the device.

        `images`: uint8 (B, 3, H, W), or floats in [-1, 1].
        """
        posterior = self.model.encode(normalised(images.to(self.device)).to(self._dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to float32 images (B, 3, H, W) in [0, 1]; the clip is the protocol's (section 5)."""
        unscaled = latents.to(self.device, torch.float32) / self.scaling_factor
        images = self.model.decode(unscaled.to(self._dtype)).sample.float()
        return (images / 2 + 0.5).clamp(0, 1)


def normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; floats as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The whole model. Raises Fault that says what the folder lacks."""
    try:
        description = json.loads((folder / CONFIG).read_text())
        is_one = isinstance(description, dict) and description.get("_class_name") == "AutoencoderKL"
    except (OSError, ValueError):
        is_one = False
    if not is_one or not (folder / WEIGHTS).is_file():
        raise _no_tokenizer(folder, f"it has no {CONFIG} of an AutoencoderKL with {WEIGHTS} beside it")
    try:
        with _quiet_diffusers():
            model, report = AutoencoderKL.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # whatever diffusers and safetensors raise on a damaged or foreign file
        raise _no_tokenizer(folder, " ".join(str(error).split())[:300]) from error
    wrong = [f"{kind}: {', '.join(map(str, list(report[kind])[:3]))}" for kind in _NOT_WHOLE if report.get(kind)]
    if wrong:
        raise _no_tokenizer(folder, f"{WEIGHTS} does not fit {CONFIG}: {'; '.join(wrong)}")
    return model


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """What diffusers would only warn about is raised by us."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _no_tokenizer(folder: Path, problem: str) -> Fault:
    return Fault(
        f"{folder}: not a tokenizer: {problem}; expected a folder of diffusers' AutoencoderKL as save_pretrained writes it "
        f"({CONFIG} and {WEIGHTS}); set tokenizer.folder to one"
    )
