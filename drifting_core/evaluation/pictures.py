"""A few pictures from a published generator, for a person to look at: `drifting_core.sample`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from drifting_core import published
from drifting_core.config import Precision
from drifting_core.evaluation.contract import to_uint8
from drifting_core.evaluation.sampler import checked, sample_inputs
from drifting_core.faults import Fault
from drifting_core.fetching import fetch
from drifting_core.models.generator import Generator
from drifting_core.models.released import load_released
from drifting_core.models.tokenizer import Tokenizer

_BATCH = 16  # pictures decoded at once


def sample(
    released: str | Path,
    labels: Sequence[int],
    alpha: float = 1.0,
    *,
    seed: int = 0,
    tokenizer: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> list[Image.Image]:
    """One picture per label, in one network evaluation each; picture i is a function of (seed, i, label, alpha).

    `released`: a published generator's name, or a folder (see models.released.load_released). `labels`: class indices,
    0 to 999 for ImageNet (207 is golden retriever). `alpha`: guidance strength, 1 or more. `tokenizer`: folder of a
    diffusers AutoencoderKL; by default SD-VAE ft-mse, from the Hugging Face cache or hub. Raises Fault when weights are
    missing or are no generator's, and ValueError for labels that it does not know.
    """
    generator = load_released(released)
    if not isinstance(generator, Generator):
        raise Fault(f"{released}: an encoder makes no pictures; give one of {', '.join(published.names('generator'))}")
    classes = generator.class_embedding.num_embeddings
    outside = [label for label in labels if not 0 <= label < classes]
    if outside:
        raise ValueError(f"sample: labels are 0 to {classes - 1}, found {outside}")
    decoder = Tokenizer(Path(tokenizer) if tokenizer else fetch(published.SD_VAE), device)
    generator.to(device)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
    pictures = []
    for first in range(0, len(labels), _BATCH):
        rows = torch.arange(first, min(first + _BATCH, len(labels)), device=device)
        given = sample_inputs(generator, seed, rows, torch.tensor(labels, device=device)[rows])
        strength = torch.full((len(rows),), alpha, dtype=torch.float32, device=device)
        with torch.inference_mode(), autocast:
            latents = generator(given.noise, given.labels, strength, given.style).float()
        images = to_uint8(decoder.decode(checked(latents, first)), "truncate")
        pictures += [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).cpu().numpy()]
    return pictures
