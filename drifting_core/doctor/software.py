"""Python, packages, the SLURM plugin and torch's build, by what the installed packages say of themselves. Light."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from drifting_core.artifacts.provenance import ROOT
from drifting_core.doctor.findings import Finding
from drifting_core.doctor.profile import Ask

PLUGIN = "snakemake-executor-plugin-slurm"
CONSTRAINTS = ROOT / "envs/constraints.txt"
_INSTALL = "pip install --constraint envs/constraints.txt --editable ."


def pinned(constraints: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions that CI runs with, by package."""
    lines = [line for line in constraints.read_text().splitlines() if line and not line.startswith("#")]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def check_packages(pyproject: Path = ROOT / "pyproject.toml") -> Iterator[Finding]:
    """What pyproject.toml asks for is installed; in other versions than CI's it may do as well."""
    from packaging.requirements import Requirement

    project, known = tomllib.loads(pyproject.read_text())["project"], pinned()
    python = sys.version.split()[0]
    asked = [Requirement(f"python{project['requires-python']}"), *map(Requirement, project["dependencies"])]
    wrong, other = [], []
    for requirement in asked:
        version = python if requirement.name == "python" else _installed(requirement.name)
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement} is needed, found {version or 'none'}")
        elif _public(version) != known.get(requirement.name, _public(version)):
            other.append(f"{requirement.name} {version} (CI: {known[requirement.name]})")
    if wrong:
        yield Finding("FAIL", "packages", ", ".join(wrong), _INSTALL)
    elif other:
        yield Finding("warn", "packages", f"not CI's versions: {', '.join(other)}", f"if something fails: {_INSTALL}")
    else:
        yield Finding("ok", "packages", f"Python {python} and {len(asked) - 1} packages in CI's versions")


def check_plugin() -> Iterator[Finding]:
    """The SLURM plugin, whose behaviour the profile is written for."""
    version, known = _installed(PLUGIN), pinned()[PLUGIN]
    if version is None:
        yield Finding("FAIL", "slurm plugin", f"{PLUGIN} is not installed", _INSTALL)
    elif version != known:
        found = f"{PLUGIN} {version}; profiles/slurm was tried with {known}"
        yield Finding("warn", "slurm plugin", found, f"pip install {PLUGIN}=={known}")
    else:
        yield Finding("ok", "slurm plugin", version)


def check_torch(asked: list[Ask]) -> Iterator[Finding]:
    """A build for CPUs alone cannot do what asks for GPUs."""
    version, keys = _installed("torch"), sorted({f"{ask.key}.gpus" for ask in asked if ask.gpus})
    if keys and version and version.endswith("+cpu"):
        found = f"{version} computes on CPUs only, but {', '.join(keys)} ask for GPUs"
        yield Finding("FAIL", "torch", found, f"install the CUDA build of torch {pinned()['torch']}")
    else:
        yield Finding("ok", "torch", f"{version}; GPUs are {'' if keys else 'not '}asked for")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """2.13.0+cpu -> 2.13.0."""
    return version.partition("+")[0]
