"""Formatting, lint and types are part of `make test`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
CHECKS = {
    "ruff check": [BIN / "ruff", "check", "."],
    "ruff format": [BIN / "ruff", "format", "--check", "."],
    "mypy": [BIN / "mypy"],
    "snakefmt": [BIN / "snakefmt", "--check", "Snakefile", "rules"],
    "snakemake --lint": [BIN / "snakemake", "--lint"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_is_clean(name: str, root: Path) -> None:
    done = subprocess.run([str(word) for word in CHECKS[name]], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
