"""The images of a data set as its source lists them, and the counts that they must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drifting_core import config
from drifting_core.data.tars import Member, Tally
from drifting_core.faults import Fault

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Found:
    """Images of a split, in the order of their rows, with their classes; `place` is the archive or folder."""

    place: Path
    bytes: int
    images: list[Member]
    labels: list[int]


@dataclass(frozen=True)
class Listing:
    """Both splits; class c is wnids[c], named names[c]. `tally`: what the listing asked of the file system."""

    wnids: list[str]
    names: list[str]
    splits: dict[Split, Found]
    tally: Tally = field(default_factory=Tally)


def require_counts(place: Path, counts: dict[str, int], expected: config.Expected, split: Split) -> None:
    """Raises Fault unless the images per class (by wnid) are what data.expected says."""
    images = expected.train_images if split == "train" else expected.val_images
    fewest, most = expected.train_per_class if split == "train" else expected.val_per_class
    total = sum(counts.values())
    odd = [f"{wnid} ({count})" for wnid, count in counts.items() if not fewest <= count <= most]
    if total == images and not odd:
        return
    raise Fault(
        f"{place}: found {total} images, data.expected.{split}_images is {images}; classes outside "
        f"data.expected.{split}_per_class ({fewest} to {most}): {few(odd)}; something is missing, or it is another data "
        "set: copy or download it again, or set data.expected to what is there"
    )


def require_unique(place: Path, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise Fault(f"{place}: the member names {few(repeated)} occur more than once; expected each once")


def few(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
