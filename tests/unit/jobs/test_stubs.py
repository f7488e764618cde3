"""Stub mode knows every script, and every root is one kind's only."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from drifting_core import artifacts, config
from drifting_core.artifacts import STUB, Artifact, PackedImages
from drifting_core.faults import Fault
from drifting_core.jobs import pool
from drifting_core.jobs.stubs import REAL, STUBS, make_stub, smallest
from drifting_core.workflow.layout import Layout


def test_every_rules_script_is_known(root: Path) -> None:
    rules = "".join(path.read_text() for path in (root / "rules").glob("*.smk"))
    scripts = set(re.findall(r"\$WORKFLOW_SCRIPTS/(\w+)\.py", rules))
    assert scripts == REAL | set(STUBS)


def test_a_script_that_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        Fault, match=r"does not know what new_stage.py writes; add it to STUBS in drifting_core/jobs/stubs.py"
    ):
        make_stub("new_stage", Namespace(output=tmp_path / "x.json"))


def test_a_rule_that_gives_the_wrong_artifact_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUB, "1")
    given, output = tmp_path / "packed.json", tmp_path / "verify_train.json"
    smallest(PackedImages).write(given)
    with pytest.raises(Fault, match=r"--latents: found .*/packed.json, a PackedImages; give a LatentManifest"):
        make_stub("verify_latents", Namespace(latents=given, output=output, log=tmp_path / "log"))
    assert not output.exists()


def test_every_artifact_has_a_smallest_instance() -> None:
    kinds = [kind for kind in vars(artifacts).values() if isinstance(kind, type) and issubclass(kind, Artifact)]
    assert len(kinds) > 25
    for kind in kinds:
        made = smallest(kind)
        assert kind.model_validate_json(made.model_dump_json()) == made


def test_only_stubs_are_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What real jobs write has no word of it: its bytes are as they always were."""
    smallest(PackedImages).write(tmp_path / "real.json")
    assert "stub" not in json.loads((tmp_path / "real.json").read_text())
    monkeypatch.setenv(STUB, "1")
    smallest(PackedImages).write(tmp_path / "stub.json")
    assert json.loads((tmp_path / "stub.json").read_text())["stub"] is True
    assert PackedImages.read(tmp_path / "stub.json").stub
    monkeypatch.delenv(STUB)
    assert not PackedImages.read(tmp_path / "real.json").stub
    with pytest.raises(Fault, match="a stub, which holds nothing that was computed"):
        PackedImages.read(tmp_path / "stub.json")


def test_names_of_folders_are_the_real_ones(demo_values: dict[str, Any]) -> None:
    real, stub = config.load(demo_values), config.load(demo_values | {"stub": True})
    for stage in ("data", "tokenizer", "network", "reference", "encoder", "run"):
        assert stub.key(stage) == real.key(stage)
    assert stub.stage_slice("bundle") == real.stage_slice("bundle")
    assert str(stub.root) == "stub/results"
    assert str(config.load(demo_values | {"stub": True, "results": "/scratch/me/drift"}).root) == "/scratch/me/stub/drift"


def test_a_root_is_of_stubs_or_of_results(
    demo_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stub, over = config.load(demo_values | {"stub": True}), config.load(demo_values | {"results": "stub/results"})
    (tmp_path / "stub/results/logs").mkdir(parents=True)  # logs alone are nothing that was made
    Layout(over).mark_stubs()  # does nothing: it is no stub mode
    Layout(stub).mark_stubs()
    Layout(stub)
    (tmp_path / "stub/results/runs").mkdir()
    Layout(stub)
    for below in ("", "/runs", "/runs/new"):
        with pytest.raises(Fault, match=f"results: stub/results{below} holds stubs"):
            Layout(config.load(demo_values | {"results": f"stub/results{below}"}))
    (tmp_path / "stub/results/STUBS").unlink()
    Layout(over)
    with pytest.raises(Fault, match=r"others are that are no stubs \(runs\)"):
        Layout(stub)


def test_stubs_need_no_gpus(demo_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "installed", dict)
    assert pool.share(config.load(demo_values | {"stub": True}), {"train_generator": 8, "sample": 1}, None) == 8
