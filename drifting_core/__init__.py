"""Generative modelling by drifting, from image archives to a verified claim bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from drifting_core.runs.reading import Run

__version__ = "0.1.0"


def sample(released: str, labels: list[int], alpha: float = 1.0, **options: Any) -> list[Image.Image]:
    """Pictures from published weights, one per label: see evaluation.pictures.sample."""
    from drifting_core.evaluation import pictures  # torch is imported by whoever calls this, not by every job's first line

    return pictures.sample(released, labels, alpha, **options)


def open_run(folder: str | Path) -> Run:
    """A run to be read: `metrics()`, `evaluations()`, `claim()`, `configuration`, `generator()`; see claims.reading.Run."""
    from drifting_core.runs import reading

    return reading.Run(folder)
