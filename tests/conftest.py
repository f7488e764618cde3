"""What all tests share: the repository, the configurations, small stores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def demo_values() -> dict[str, Any]:
    """The demo's preset as parsed YAML, free to change."""
    return copy.deepcopy(yaml.safe_load((ROOT / "config" / "demo.yaml").read_text()))
