"""Pictures from a generator and its autoencoder, with torch and diffusers only.

A model export (claims/model_export.py) carries this file beside generator.py and draws.py, so that nothing of this
project needs to be installed where the model is used:

    import sys

    sys.path.insert(0, "model")  # the exported folder
    from pipeline import DriftingPipeline

    pipe = DriftingPipeline.from_pretrained("model")
    pipe([207, 88], alpha=1.0)[0].save("golden_retriever.png")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from drifting_core.models.generator import Generator, sample_inputs

Precision = Literal["float32", "bfloat16"]
CONFIG, WEIGHTS, AUTOENCODER = "config.json", "generator.safetensors", "vae"


class DriftingPipeline:
    """One network evaluation and one decoder call per picture.

    `generator`; `vae`: a diffusers AutoencoderKL; `alpha` and `precision`: guidance strength and number format of the
    generator's activations where a call names none; `class_names`: what the labels mean, as far as it is known.
    """

    def __init__(
        self,
        generator: Generator,
        vae: Any,
        alpha: float = 1.0,
        precision: Precision = "float32",
        class_names: Sequence[str] = (),
    ) -> None:
        self.generator, self.vae, self.alpha, self.precision = generator, vae, alpha, precision
        self.class_names = list(class_names)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> DriftingPipeline:
        """The pipeline of an exported folder."""
        described = json.loads((Path(folder) / CONFIG).read_text())
        with torch.device("meta"):
            generator = Generator(**described["generator"])
        generator.load_state_dict(safetensors.torch.load_file(Path(folder) / WEIGHTS), assign=True)
        quiet = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
        vae = AutoencoderKL.from_pretrained(Path(folder) / AUTOENCODER, **quiet)
        generator, vae = (part.to(device).eval().requires_grad_(False) for part in (generator, vae))
        return cls(generator, vae, described["alpha"], described["precision"], described["class_names"])

    @torch.inference_mode()
    def __call__(
        self,
        labels: Sequence[int],
        alpha: float | None = None,
        *,
        seed: int = 0,
        batch: int = 16,
        precision: Precision | None = None,
    ) -> list[Image.Image]:
        """One picture per label; picture i is a function of (seed, i, label, alpha), up to rounding.

        `labels`: class indices. `alpha`: guidance strength, 1 or more; it and `precision` by default as in the claim.
        Raises ValueError for labels that the generator does not know and for latents that are not finite.
        """
        classes = self.generator.class_embedding.num_embeddings
        outside = [label for label in labels if not 0 <= label < classes]
        if outside:
            raise ValueError(f"labels are 0 to {classes - 1}, found {outside}")
        strength, pictures = self.alpha if alpha is None else alpha, []
        for first in range(0, len(labels), batch):
            given = torch.tensor(labels[first : first + batch])
            latents = self.latents(given, strength, seed, first, precision or self.precision)
            pictures += [Image.fromarray(pixels) for pixels in self.decode(latents).permute(0, 2, 3, 1).cpu().numpy()]
        return pictures

    def latents(self, labels: Tensor, alpha: float, seed: int, first: int, precision: Precision) -> Tensor:
        """Scaled latents (B, C, H, W), float32, of samples first, first + 1, ... with these labels (B,)."""
        device = self.generator.class_embedding.weight.device
        rows = torch.arange(first, first + len(labels), device=device)
        given = sample_inputs(self.generator, seed, rows, labels.to(device))
        strength = torch.full((len(labels),), alpha, dtype=torch.float32, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            latents = self.generator(given.noise, given.labels, strength, given.style).float()
        if not torch.isfinite(latents).all():
            raise ValueError(f"samples {first} to {first + len(labels) - 1}: latents hold NaN or Inf")
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to uint8 (B, 3, H, W): clipped to [0, 1], then floor(255 x), as the authors' code does."""
        images = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample.float()
        return ((images / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
