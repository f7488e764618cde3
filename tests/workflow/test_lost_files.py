"""A run that has lost an export or its state: one message, and nothing is lost beyond it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from drifting_core.artifacts import sha256_file
from tests.workflow.conftest import TARGET, Site, Walk

pytestmark = pytest.mark.workflow


@pytest.fixture
def site(walk: Walk, tmp_path: Path) -> Site:
    copy = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


def contents(run: Path) -> dict[Path, str]:
    """Everything in a run's folder but what says who was there last."""
    said = (".lease", "RUN.md", "env_snapshot.json", "env_fingerprint.json", "codebase_fingerprint.json")
    files = (path for path in run.rglob("*") if path.is_file())
    return {path: sha256_file(path) for path in files if path.name not in said}


def test_an_export_behind_the_kept_states_cannot_be_made_again(site: Site) -> None:
    [run] = (site.folder / "results/runs").iterdir()
    shutil.rmtree(run / "exports/step_30")
    before = contents(run)
    assert site.planned(TARGET) == []  # nothing in the claim needs it any more
    refused = site.snakemake(f"results/runs/{run.name}/exports/step_30/metadata.json")
    assert refused.returncode != 0
    assert re.search(
        r"past step 30 \(states: \[\d+, \d+\]\), so step 30 cannot be made again; nothing was ch", refused.stdout
    )
    assert "Traceback" not in refused.stdout
    assert contents(run) == before
    assert site.planned(TARGET) == []


def test_a_run_without_its_state_is_not_trained_over(site: Site) -> None:
    [run] = (site.folder / "results/runs").iterdir()
    shutil.rmtree(run / "state")
    before = contents(run)
    site.configure("longer.yaml", **{"training.steps": 180})
    refused = site.snakemake(TARGET, config="longer.yaml")
    assert refused.returncode != 0
    assert "no whole state is left, but" in refused.stdout
    assert "holds steps [0, 30, 60" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert contents(run) == before
    assert site.planned(TARGET) == []
