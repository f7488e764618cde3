"""envs/ against what it must agree with: pyproject.toml, the constraints, the files that are there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from drifting_core.doctor.software import pinned


def test_every_dependency_is_pinned_within_its_bounds(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = [Requirement(each) for each in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    versions = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pinned().items()}
    for requirement in asked:
        if requirement.name != project["name"]:
            assert versions[requirement.name.lower()] in requirement.specifier, requirement


def test_conda_refers_to_no_file_that_snakemake_leaves_behind(root: Path) -> None:
    held = yaml.safe_load((root / "envs/drifting.yaml").read_text())
    assert held["dependencies"] == ["python =3.11", "pip"]
    deploy = root / "envs/drifting.post-deploy.sh"
    assert subprocess.run(["sh", "-n", deploy], capture_output=True).returncode == 0
    named = re.findall(r"\$WORKFLOW_SCRIPTS(/[^\"]*)", deploy.read_text())
    assert [(root / "workflow_scripts" / name.lstrip("/")).resolve() for name in named] == [
        root / "envs/constraints.txt",
        root,
    ]


def test_the_image_copies_what_is_there_and_installs_it(root: Path) -> None:
    text = (root / "envs/drifting.def").read_text()
    files = re.search(r"^%files\n((?:    .*\n)+)", text, re.MULTILINE)
    assert files
    copied = [name for line in files[1].splitlines() for name in line.split()[:-1]]
    assert [name for name in copied if not (root / name).exists()] == []
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", project["readme"], "drifting_core", "envs/constraints.txt"} <= set(copied)
    assert "pip install --no-cache-dir --constraint /opt/drifting/constraints.txt /opt/drifting\n" in text
