"""Who, what, when, with which code, packages and hardware."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from drifting_core import __version__
from drifting_core.artifacts import CodebaseFingerprint, EnvironmentSnapshot, sha256_file
from drifting_core.artifacts.identity import digest

PACKAGES = ("torch", "diffusers", "h5py", "numpy", "scipy", "pydantic", "safetensors", "snakemake", "pillow")
ROOT = Path(__file__).resolve().parents[2]  # of the checkout
_SOURCES = ("drifting_core/**/*", "workflow_scripts/*.py", "rules/*.smk", "Snakefile")


@functools.cache
def code_version() -> str:
    """Package version, with the commit (and `+changes`) when run from a git checkout."""
    if not (ROOT / ".git").exists():
        return __version__
    commit = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return f"{__version__}+{commit or 'no_commit'}{'.changes' if changes else ''}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def codebase() -> CodebaseFingerprint:
    """Version, commit and content of the code, of this folder as it is now."""
    checkout = (ROOT / ".git").exists()
    patterns = _SOURCES if (ROOT / "Snakefile").is_file() else _SOURCES[:1]  # an installed package lies among others
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if path.suffix != ".pyc")
    sources = {path.relative_to(ROOT).as_posix(): sha256_file(path) for path in files}
    return CodebaseFingerprint(
        digest=digest(sources),
        version=__version__,
        commit=_git("rev-parse", "HEAD") or None if checkout else None,
        changes=bool(_git("status", "--porcelain", "--untracked-files=no")) if checkout else None,
        sources=sources,
    )


def environment() -> EnvironmentSnapshot:
    """Python, packages and hardware of this process; of GPUs, who imports torch knows more (training/records.py)."""
    return EnvironmentSnapshot(
        python=sys.version.split()[0],
        platform=platform.platform(),
        host=socket.gethostname(),
        cpus=os.cpu_count(),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        packages={name: _version_of(name) for name in PACKAGES},
    )


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
