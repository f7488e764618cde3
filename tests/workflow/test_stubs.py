"""Stub mode: the paper's run at its full width, in a minute; nothing real takes what it leaves."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from drifting_core.artifacts import STUB, Bundle
from drifting_core.config import load_file
from drifting_core.faults import Fault
from drifting_core.jobs.stubs import read_any
from tests.workflow.conftest import ROOT, STUB_TARGET, TARGET, Site, jobs_in

pytestmark = pytest.mark.workflow

L2 = str(ROOT / "config/l2.yaml")
THINNED = ("data={latents: {shards_train: 4}}", "training={milestone_every: 40000}")  # a job of each kind is left


class Stubs(NamedTuple):
    """What stub mode left of l2.yaml, and what Snakemake said on the way."""

    site: Site
    root: Path
    output: str
    changes: tuple[str, ...]

    @property
    def artifacts(self) -> list[Path]:
        found = [*self.root.rglob("*.json"), *self.root.rglob("*.done")]
        return [path for path in found if path.name != "config.json" or path.parent.parent.name == "runs"]


@pytest.fixture(scope="module", params=[THINNED, pytest.param((), marks=pytest.mark.slow)], ids=["thinned", "whole"])
def stubs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    site = Site(tmp_path_factory.mktemp("stubs").resolve())
    # Jobs that compute nothing need no cores of their own.
    done = site.snakemake("--cores", "16", "--config", "stub=true", *request.param, config=L2)
    assert done.returncode == 0, done.stdout
    return Stubs(site, site.folder / "stub/results", done.stdout, request.param)


def test_the_jobs_are_those_of_the_real_run(stubs: Stubs, tmp_path: Path) -> None:
    """Their keys, which name the folders, are therefore the same, too."""
    changes = ("--config", *stubs.changes) if stubs.changes else ()
    real = sorted(Site(tmp_path).planned(TARGET, *changes, config=L2))
    ran = sorted((rule, output.removeprefix("stub/")) for rule, output in jobs_in(stubs.output))
    assert len(real) > (60 if stubs.changes else 140)
    assert ran == real


def test_every_artifact_is_valid_and_marked(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUB, "1")
    listed = 0
    for path in stubs.artifacts:
        artifact = read_any(path)
        assert artifact.stub
        assert json.loads(path.read_text())["stub"] is True, path
        if "bundles" not in path.parts or isinstance(artifact, Bundle):  # which holds copies without their files
            artifact.verify(path.parent)
            listed += len(artifact.files)
    assert listed > (100 if stubs.changes else 200)
    assert sorted(path.name for path in stubs.site.folder.iterdir()) == [".snakemake", "stub"]


def test_no_reader_takes_one(stubs: Stubs) -> None:
    for path in stubs.artifacts:
        with pytest.raises(Fault, match=f"{path}: a stub"):
            read_any(path)


def commands(stubs: Stubs) -> dict[str, list[str]]:
    """One command line of each script that reads artifacts, as its job's log has it."""
    found = {}
    for log in sorted((stubs.root / "logs").rglob("*.log")):
        _, script, *arguments = shlex.split(log.read_text().partition("\n")[0])
        if any("stub/results" in word for word in arguments[: arguments.index("--output")]):
            found[Path(script).stem] = arguments
    return found


def without_gpus(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if isinstance(value, dict):
            without_gpus(value)
        elif name == "gpus":
            values[name] = 0
    return values


def test_no_real_job_takes_one(stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stubs.site.folder)
    given = commands(stubs)
    assert len(given) > 15
    for script, arguments in given.items():
        changed = {"--output": str(tmp_path / script / "a/b/c.json"), "--log": str(tmp_path / "log")}
        if "--operations" in arguments:
            operations = json.loads(arguments[arguments.index("--operations") + 1])
            changed["--operations"] = json.dumps(without_gpus(operations))
        for name, value in changed.items():
            arguments[arguments.index(name) + 1] = value
        if script == "make_bundle":  # takes in what lies below its results
            arguments[arguments.index("--output") + 1] = f"stub/results/bundles/{script}/claim_bundle.done"
        main = runpy.run_path(str(ROOT / f"workflow_scripts/{script}.py"))["main"]
        with pytest.raises(Fault, match="a stub, which holds nothing"):
            main(arguments)
        assert not list((tmp_path / script).rglob("*.json")), script


def test_a_real_plan_over_stubs_is_refused(stubs: Stubs) -> None:
    done = stubs.site.snakemake("-n", "--config", "results=stub/results", config=L2)
    assert done.returncode != 0
    assert "results: stub/results holds stubs" in done.stdout
    assert "Traceback" not in done.stdout
    here = Site(ROOT)  # where plan.py finds the Snakefile
    plan = here.run("plan.py", "--configfile", L2, "--config", f"results={stubs.root}")
    assert plan.returncode == 1
    assert f"results: {stubs.root} holds stubs" in plan.stderr


def test_stubs_are_not_made_over_results(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "stub/results/runs").mkdir(parents=True)
    done = site.snakemake(STUB_TARGET, "--config", "stub=true", config=L2)
    assert done.returncode != 0
    assert "stub: true makes its files in stub/results, where others are that are no stubs (runs)" in done.stdout
    assert not (tmp_path / "stub/results/STUBS").exists()


def test_a_finished_root_needs_nothing_more_and_its_run_goes_on_in_stub_mode(stubs: Stubs) -> None:
    [record] = stubs.root.glob("runs/*/config.json")
    assert load_file(record).root == Path("stub/results")
    assert stubs.site.planned(STUB_TARGET, config=str(record)) == []
