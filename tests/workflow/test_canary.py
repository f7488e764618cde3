"""The canary in the workflow: it finds faults before the first slice, and is no reason to train a begun run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drifting_core import config as settings
from drifting_core.artifacts import Canary, Metrics
from tests.workflow.conftest import TARGET, Site, Walk

pytestmark = pytest.mark.workflow
CANARY = {"canary_train", "canary_sample", "canary_evaluate", "canary"}


@pytest.fixture
def site(walk: Walk, tmp_path: Path) -> Site:
    """A copy of the finished tiny run, free to be damaged."""
    copy = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


def run_of(site: Site) -> Path:
    return site.folder / "results/runs" / settings.load_file(site.folder / "config.yaml").key("run")


def test_a_run_keeps_what_its_canary_measured_and_nothing_large(walk: Walk) -> None:
    run = run_of(walk.site)
    metrics = Metrics.read(run / "canary/eval/metrics.json")
    assert (metrics.step, metrics.contract.samples, metrics.contract.label_plan) == (1, 20, "spaced")
    assert Canary.read(run / "canary/passed.json").contract_hash == metrics.contract_hash
    assert not (run / "canary/state").exists()
    assert not (run / "canary/exports").exists()
    others = [Metrics.read(path).contract_hash for path in run.glob("eval/**/metrics.json")]
    assert others
    assert metrics.contract_hash not in others


def test_a_fault_at_the_end_of_the_road_is_found_before_the_first_slice(site: Site) -> None:
    """Reference statistics that are not what their manifest says: only an evaluation would notice."""
    preset = site.configure("new.yaml", name="new", **{"training.learning_rate": 1e-3})
    [statistics] = (site.folder / "results/reference").glob("*/statistics.npz")
    content = bytearray(statistics.read_bytes())
    content[-1] ^= 1
    statistics.write_bytes(content)
    failed = site.snakemake(TARGET, "--keep-going", config="new.yaml")
    assert failed.returncode != 0
    assert "statistics.npz" in failed.stdout
    assert "it was changed" in failed.stdout
    assert "Traceback" not in failed.stdout
    run = site.folder / "results/runs" / settings.load_file(preset).key("run")
    assert (run / "canary/exports/step_1/metadata.json").is_file()
    assert not (run / "exports").exists()
    assert not (run / "state").exists()


def test_an_outdated_canary_is_not_made_again_and_hides_nothing_behind_it(site: Site) -> None:
    site.configure("contract.yaml", **{"evaluation.contract": {"compute_batch": 16, "bootstrap": 5}})
    planned = [rule for rule, _ in site.planned(TARGET, config="contract.yaml")]
    assert {"train_generator", *CANARY}.isdisjoint(planned)
    assert planned.count("evaluate") == 3


def test_a_lost_canary_is_not_made_again_and_trains_nothing_again(site: Site) -> None:
    """Also what happens to a run that is older than the canary."""
    shutil.rmtree(run_of(site) / "canary")
    assert site.planned(TARGET) == []
    site.configure("longer.yaml", **{"training.steps": 180, "evaluation.contract": {"compute_batch": 16, "bootstrap": 5}})
    longer = site.planned(TARGET, config="longer.yaml")
    slices = {Path(output).parent.name for rule, output in longer if rule == "train_generator"}
    assert {"step_150", "step_180"} <= slices
    assert slices.isdisjoint({"step_0", "step_30", "step_60"})
    assert CANARY.isdisjoint(rule for rule, _ in longer)


def test_every_run_that_is_trained_has_one_and_its_size_is_no_reason_for_another(site: Site) -> None:
    site.configure("new.yaml", name="new", **{"training.learning_rate": 1e-3, "training.canary_samples": 30})
    planned = [rule for rule, _ in site.planned(TARGET, config="new.yaml")]
    assert all(planned.count(rule) == 1 for rule in CANARY)
    site.configure("larger.yaml", **{"training.canary_samples": 30})
    assert site.planned(TARGET, config="larger.yaml") == []
