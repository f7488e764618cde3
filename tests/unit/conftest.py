"""Fixtures that several unit tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drifting_core.config import Configuration
from drifting_core.data.latents import LatentStore
from tests.unit.data.samples import write_archives
from tests.unit.training.samples import small_configuration, write_store


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives and index of a few photos, made once."""
    return write_archives(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    """Random latents for a training."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def small(demo_values: dict[str, Any]) -> Configuration:
    """The demo's configuration with networks that take milliseconds."""
    return small_configuration(demo_values)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB. Mounting needs privileges; elsewhere the test says that it was skipped."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
