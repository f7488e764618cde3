"""Pruning the results of a whole run: what it frees, what stays true after it, and how what went comes back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from drifting_core.claims.deep import verify_deeply
from drifting_core.housekeeping.disk_use import measure
from tests.workflow.conftest import TARGET, Site, Walk
from workflow_scripts.prune import main

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def site(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A copy; the tests below go on from each other."""
    copy = Site(tmp_path_factory.mktemp("pruned").resolve() / "site")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


def run_of(site: Site) -> Path:
    [run] = (site.folder / "results/runs").iterdir()
    return run


def prune(site: Site, *options: str) -> None:
    main(["--results", str(site.folder / "results"), *options])


def pieces_of(site: Site, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    prune(site, "--json")
    return json.loads(capsys.readouterr().out)


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(Path(parent, name))
            found[f"{parent}/{name}"] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def test_without_yes_nothing_is_touched(site: Site) -> None:
    before = listing(site.folder)
    for options in ((), ("--json",), ("--only", "encoder_states,states")):
        prune(site, *options)
    assert listing(site.folder) == before


def test_it_frees_what_it_says_and_the_claim_stays_whole(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    results, bundle = site.folder / "results", site.folder / "results/bundles" / run_of(site).name
    assert site.planned(TARGET) == []
    pieces = pieces_of(site, capsys)
    going = [piece for piece in pieces if not piece["kept"] and piece["kind"] != "encoder_states"]
    assert {"states", "canary", "samples"} <= {piece["kind"] for piece in going}
    for reason in ("claim's samples", "the bundle", "a milestone", "newest state"):
        assert any(reason in (piece["kept"] or "") for piece in pieces), reason
    before = measure([results])
    prune(site, "--yes")
    record = results / "pruned.jsonl"
    said, freed = sum(piece["bytes"] for piece in going), before.bytes - measure([results]).bytes
    assert said > 0
    assert freed == said - record.stat().st_blocks * 512
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["state"] for line in lines] == ["going", "gone"] * len(going)
    assert sum(line["bytes"] for line in lines if line["state"] == "gone") == said
    assert site.planned(TARGET) == []
    verify_deeply(bundle, images=16)
    assert not [piece for piece in pieces_of(site, capsys) if not piece["kept"] and piece["kind"] != "encoder_states"]


def test_what_is_asked_for_is_made_again_and_nothing_else(site: Site) -> None:
    run = run_of(site)
    retired = min(run.glob("samples/**/pruned.json"))
    manifest, content = retired.with_name("manifest.json"), retired.read_bytes()
    wanted = f"{manifest.parent.relative_to(site.folder)}/export/sheet.done"
    assert {rule for rule, _ in site.planned(wanted)} == {"sample", "export_images"}
    done = site.snakemake(wanted)
    assert done.returncode == 0, done.stdout
    assert manifest.read_bytes() == content  # so that nothing after it is out of date
    assert not retired.exists()
    assert site.planned(TARGET) == []


def test_training_goes_on_from_the_state_that_is_left(site: Site) -> None:
    run = run_of(site)
    export = f"results/runs/{run.name}/exports/step_90/metadata.json"
    site.configure("longer.yaml", **{"training.steps": 90})
    assert site.planned(export, config="longer.yaml") == [("train_generator", export)]
    done = site.snakemake(export, config="longer.yaml")
    assert done.returncode == 0, done.stdout
    assert "continuing at step 60" in (site.folder / f"results/logs/{run.name}/train_generator_90.log").read_text()


def test_the_state_of_an_encoder_goes_when_it_is_named(site: Site) -> None:
    [encoder] = (site.folder / "results/encoders").iterdir()
    assert list(encoder.glob("state/step_*"))
    prune(site, "--only", "encoder_states", "--yes")
    assert not list(encoder.glob("state/step_*"))
    assert site.planned(TARGET) == []
