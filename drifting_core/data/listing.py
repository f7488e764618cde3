"""The images of a data set as its source lists them, and the counts that they must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.faults import Fault

Split = Literal["train", "val"]


def images_of(store: str) -> Split:
    """The images that a latent store (train, val or crops_K) is made of."""
    return "val" if store == "val" else "train"


@dataclass(frozen=True)
class Table:
    """One row per image: byte offset int64, length int32, class int16 and name (bytes).

    Archives: `name` is the member's base name. Folders: `name` is the path below the folder, the offset is 0.
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    label: NDArray[np.int16]
    name: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def sorted(
        cls,
        place: Path,
        *,
        name: NDArray[np.bytes_],
        offset: NDArray[np.int64],
        length: NDArray[np.int64],
        label: NDArray[np.int64],
        by_class: bool,
    ) -> Table:
        """Rows by name, or by class and name. Raises Fault, which names `place`, when a name occurs twice."""
        name = name.astype(f"S{max(1, int(np.char.str_len(name).max(initial=1)))}")
        order = np.argsort(name, kind="stable")
        again = np.flatnonzero(name[order[1:]] == name[order[:-1]])
        if len(again):
            raise _repeated(place, sorted({found.decode() for found in name[order[again]]}))
        if by_class:
            order = order[np.argsort(label[order].astype(np.int16), kind="stable")]
        return cls(
            offset[order], length[order].astype(np.int32), label[order].astype(np.int16), np.ascontiguousarray(name[order])
        )


@dataclass(frozen=True)
class Found:
    """The images of a split; `place` is the archive or folder that they lie in, `bytes` its size."""

    place: Path
    bytes: int
    table: Table


@dataclass(frozen=True)
class Listing:
    """Both splits; class c is wnids[c], named names[c]. `reads`: what the listing asked of the file system, in words."""

    wnids: list[str]
    names: list[str]
    splits: dict[Split, Found]
    reads: str


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


def counts_of(wnids: list[str], label: NDArray[np.int64]) -> dict[str, int]:
    """Images per class, by wnid."""
    return dict(zip(wnids, np.bincount(label, minlength=len(wnids)).tolist(), strict=True))


def require_unique(place: Path, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise _repeated(place, repeated)


def _repeated(place: Path, names: list[str]) -> Fault:
    return Fault(f"{place}: the names {few(names)} occur more than once; give each image a name of its own")


def few(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
