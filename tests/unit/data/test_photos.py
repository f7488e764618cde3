"""The embedded photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drifting_core.data import photos
from drifting_core.faults import Fault


def test_every_class_has_its_photos_and_none_occurs_twice() -> None:
    train, val = photos.photos("train"), photos.photos("val")
    assert train.shape == (10, 300, 32, 32, 3)
    assert val.shape == (10, 50, 32, 32, 3)
    assert train.dtype == val.dtype == np.uint8
    everything = np.concatenate([train, val], axis=1).reshape(3500, -1)
    assert len(np.unique(everything, axis=0)) == 3500


def test_rows_are_classes() -> None:
    """Ships and planes are bluer than deer and frogs: a shifted or transposed mosaic would mix the classes."""
    red, _, blue = photos.photos("train").mean(axis=(1, 2, 3)).T
    bluest = np.argsort(red - blue)[:2]
    assert {photos.NAMES[index] for index in bluest} == {"airplane", "ship"}


def test_names_and_wnids_are_ten_different_ones_in_another_order_than_sorted() -> None:
    assert len(set(photos.NAMES)) == len(set(photos.WNIDS)) == 10
    assert list(photos.WNIDS) != sorted(photos.WNIDS)


def test_the_file_fits_into_the_package() -> None:
    assert photos.FILE.stat().st_size <= 8 * 2**20
    assert (photos.FILE.parent / "PHOTOS.md").read_text().count(f"{photos.FILE.stat().st_size:,}") == 1


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "photos.webp"
    cut.write_bytes(photos.FILE.read_bytes()[:100_000])
    with pytest.raises(Fault, match="install it again"):
        photos.photos("train", cut)
    Image.new("RGB", (64, 64)).save(cut, "webp")
    with pytest.raises(Fault, match="expected"):
        photos.photos("train", cut)
