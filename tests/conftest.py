"""What all tests share: the repository, the configurations, small stores."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

# Small tensors on shared cores: one thread each is faster than two that wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def demo_values() -> dict[str, Any]:
    """The demo's preset as parsed YAML, free to change."""
    return copy.deepcopy(yaml.safe_load((ROOT / "config" / "demo.yaml").read_text()))
