"""Pruning the results of a whole run: what it frees, what stays true after it, and how what went comes back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from drifting_core.claims.deep import verify_deeply
from drifting_core.claims.disk_use import measure
from tests.workflow.conftest import TARGET, Site, Walk

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def site(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A copy, in which a table that is no part of the claim was evaluated, too; the tests below go on from each other."""
    copy = Site(tmp_path_factory.mktemp("pruned").resolve() / "site")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


def run_of(site: Site) -> Path:
    [run] = (site.folder / "results/runs").iterdir()
    return run


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
        done = site.run("prune.py", *options)
        assert done.returncode == 0, done.stderr
    assert listing(site.folder) == before


def test_it_frees_what_it_says_and_the_claim_stays_whole(site: Site) -> None:
    results, bundle = site.folder / "results", site.folder / "results/bundles" / run_of(site).name
    assert site.planned(TARGET) == []
    pieces = json.loads(site.run("prune.py", "--json").stdout)
    going = [piece for piece in pieces if not piece["kept"] and piece["kind"] != "encoder_states"]
    assert {"states", "canary", "samples"} <= {piece["kind"] for piece in going}
    assert {"claim's samples", "the bundle", "a milestone", "newest state"} <= {
        reason for reason in ("claim's samples", "the bundle", "a milestone", "newest state")
        if any(reason in (piece["kept"] or "") for piece in pieces)
    }  # fmt: skip
    before = measure([results])
    done = site.run("prune.py", "--yes")
    assert done.returncode == 0, done.stderr
    record = results / "pruned.jsonl"
    said, freed = sum(piece["bytes"] for piece in going), before.bytes - measure([results]).bytes
    assert said > 0
    # Leases that were taken for it lie there as empty files; the record takes its blocks.
    assert freed == said - record.stat().st_blocks * 512
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["state"] for line in lines] == ["going", "gone"] * len(going)
    assert sum(line["bytes"] for line in lines if line["state"] == "gone") == said
    assert site.planned(TARGET) == []
    verify_deeply(bundle, images=16)
    assert not [piece for piece in json.loads(site.run("prune.py", "--json").stdout) if piece["paths"] == going[0]["paths"]]


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
    done = site.run("prune.py", "--only", "encoder_states", "--yes")
    assert done.returncode == 0, done.stderr
    assert not list(encoder.glob("state/step_*"))
    assert site.planned(TARGET) == []
