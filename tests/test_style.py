"""Formatting, lint, types, spelling: the hooks of .pre-commit-config.yaml, each as it stands there, in `make test`, too."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
[HOOKS] = [each["hooks"] for each in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]]


@pytest.mark.parametrize("hook", HOOKS, ids=[hook["id"] for hook in HOOKS])
def test_is_clean(hook: dict[str, str], root: Path) -> None:
    program, *arguments = shlex.split(hook["entry"])
    # In a checkout without a .venv of its own the tools are those of this interpreter.
    command = [str(Path(sys.executable).parent / Path(program).name), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_of_check_is_there() -> None:
    assert {hook["id"] for hook in HOOKS} >= {"ruff-check", "ruff-format", "mypy", "codespell", "snakefmt", "snakemake-lint"}
    assert all(hook["language"] == "system" for hook in HOOKS), "a hook from elsewhere could not be had without internet"
