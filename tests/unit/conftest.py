"""Fixtures that several unit tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.latent_samples import write_archives


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives and index of a few photos, made once."""
    return write_archives(tmp_path_factory.mktemp("packed"))
