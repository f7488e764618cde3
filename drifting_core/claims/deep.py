"""A claim bundle against what it was made from: words, figures, numbers from features, images from latents.

The results folder must still be there, with the features and latents of the evaluations that the bundle shows.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drifting_core.artifacts import Bundle, Metrics, sha256_file
from drifting_core.artifacts.provenance import code_version
from drifting_core.claims.bundle import contents
from drifting_core.claims.sources import Source, Sources
from drifting_core.claims.verifying import verify_bundle
from drifting_core.evaluation import rechecking
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress

# Numbers from the same features on another machine: relative. Those that go with the distance (errors, residue, interval,
# extrapolation) are differences or roots of its rounding, and are compared in its units.
_TOLERANCE, _OF_DISTANCE = 1e-6, 1e-5
_LEVELS = 2  # of 255, by which a redrawn figure may differ: fonts and rounding of other versions


def verify_deeply(folder: Path, *, images: int, device: torch.device | str = "cpu") -> list[str]:
    """`verify_bundle`, then everything again from the results folder that the bundle lies in. What was done, in lines.

    `images`: generated images of each claim evaluation that are decoded and seen again. Raises Fault naming what differs.
    """
    bundle = verify_bundle(folder)
    sources = _originals(folder, bundle, folder.parent.parent)
    _compare(folder, sources, bundle)
    metrics = [source for source in sources.all if isinstance(source.content, Metrics)]
    progress = Progress("numbers from features", len(metrics), unit="evaluations")
    for source in metrics:
        # Of a further feature space it is that space's own.
        _recompute(source.path, sources.by_hash[source.json["inputs"]["reference"]].path, device)
        progress.advance()
    seen = [_look_again(source, sources, images, device) for source in metrics if source.role == "claim_metrics"]
    return [
        f"{len(bundle.files)} files as their hashes say; tables and recommendation follow from the evaluations",
        "words and figures are what this code makes of them",
        f"{len(metrics)} evaluations: all numbers recomputed from their features",
        f"up to {images} images of each claim evaluation decoded and seen again: features within {max(seen):.1e}",
    ]


def _originals(folder: Path, bundle: Bundle, results: Path) -> Sources:
    """The workflow's own files that the bundle holds copies of. Raises Fault where one is missing or has moved on."""
    for below, digest in bundle.inputs.items():
        path = results / below
        if not path.is_file():
            raise Fault(f"{path}: missing, so {folder} can be checked by its hashes only; bring the results folder back")
        if sha256_file(path) != digest:
            raise Fault(f"{path}: is another file than the one in {folder}; make the bundle again, or restore the file")
    return Sources.below(results, [(bundle.roles[below], results / below) for below in bundle.inputs])


def _compare(folder: Path, sources: Sources, bundle: Bundle) -> None:
    """Write the bundle again, in memory: words byte for byte, figures by their pixels."""
    pictures = {place: (folder / place).read_bytes() for place in bundle.files if place.endswith(".png")}
    made = contents(sources, bundle.configuration_values, bundle.run, code=bundle.code, shown=pictures)
    for place, content in made.items():
        equal = _look_alike(content, pictures[place]) if place in pictures else content == (folder / place).read_bytes()
        if not equal:
            other = "" if bundle.code == code_version() else f" (made by version {bundle.code}, this is {code_version()})"
            raise Fault(f"{folder / place}: is not what its artifacts make{other}; it was changed: make the bundle again")


def _look_alike(first: bytes, second: bytes) -> bool:
    ours, theirs = _pixels(first), _pixels(second)
    return ours.shape == theirs.shape and int(np.abs(ours - theirs).max()) <= _LEVELS


def _pixels(content: bytes) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened.convert("RGB"), np.int16)


def _recompute(metrics: Path, reference: Path, device: torch.device | str) -> None:
    """Raises Fault where a number is not what the features beside it give."""
    held = json.loads(metrics.read_bytes())
    for name, again in rechecking.recompute(metrics, reference=reference, device=device).items():
        said, least = held[name], _OF_DISTANCE * held["distance"] if name.startswith("distance_") else 0.0
        if said is None or again is None:
            equal = said is again
        else:
            equal = math.isclose(said, again, rel_tol=_TOLERANCE, abs_tol=least)
        if not equal:
            raise Fault(f"{metrics}: {name} is {said}, its features give {again}; it was changed: evaluate again")


def _look_again(source: Source, sources: Sources, images: int, device: torch.device | str) -> float:
    return rechecking.look_again(
        source.path,
        samples=source.path.parent / "samples/manifest.json",
        tokenizer=sources.source("tokenizer").path,
        network=sources.source("network").path,
        how_many=images,
        device=device,
    )
