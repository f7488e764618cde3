"""A few pictures from a published generator, for a person to look at: `drifting_core.sample`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from drifting_core.config import Precision
from drifting_core.faults import Fault
from drifting_core.models.generator import Generator
from drifting_core.models.pipeline import DriftingPipeline
from drifting_core.models.released import load_released
from drifting_core.models.tokenizer import Tokenizer
from drifting_core.sources import published
from drifting_core.sources.fetching import fetch


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
    decoder = Tokenizer(Path(tokenizer) if tokenizer else fetch(published.SD_VAE), device)
    pipeline = DriftingPipeline(generator.to(device), decoder.model)
    return pipeline(labels, alpha, seed=seed, precision=precision)
