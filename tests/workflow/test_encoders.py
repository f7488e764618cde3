"""The encoder's stages: what `snakemake encoders` plans and makes, and networks that start from an export."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from drifting_core import config as settings
from drifting_core.artifacts import EncoderAudit, EncoderTrained, Export, sha256_file
from tests.workflow.conftest import ROOT, Site, Walk

pytestmark = pytest.mark.workflow
FINETUNE = {"steps": 6, "batch": 8, "learning_rate": 1e-3, "ema": 0.9, "weight": 0.3}
STAGES = {"encoder.finetune": FINETUNE, "encoder.variants": [16]}


def inputs_of(site: Site, *arguments: str) -> dict[str, str]:
    """The line of inputs of each training of an encoder that a dry run would start, by its output."""
    lines = site.snakemake("-n", *arguments).stdout.splitlines()
    places = [place for place, line in enumerate(lines) if line == "rule train_encoder:"]
    return {lines[place + 2].split()[-1]: lines[place + 1] for place in places}


def test_the_plan_has_an_independent_road_for_each_width(tmp_path: Path) -> None:
    site = Site(tmp_path)
    preset = site.configure(**STAGES)
    rules = Counter(rule for rule, _ in site.planned("encoders"))
    assert {rule: rules[rule] for rule in ("train_encoder", "export_encoder", "audit_encoder")} == {
        "train_encoder": 4,
        "export_encoder": 4,
        "audit_encoder": 4,
    }
    assert "train_generator" not in rules
    keys = [relative.key("encoder") for relative in settings.load_file(preset).relatives()]
    assert [key.rsplit("-", 1)[0] for key in keys] == ["mae_w8_ft", "mae_w16_ft", "mae_w8", "mae_w16"]
    found = inputs_of(site, "encoders")
    for tuned, before in ((keys[0], keys[2]), (keys[1], keys[3])):
        assert f"results/encoders/{before}/export/metadata.json" in found[f"results/encoders/{tuned}/trained.json"]
        assert "results/encoders" not in found[f"results/encoders/{before}/trained.json"]
        assert sum(key in found[f"results/encoders/{tuned}/trained.json"] for key in keys) == 1


def test_the_claim_needs_the_finetuned_encoder_and_its_audit_only(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(**STAGES)
    rules = Counter(rule for rule, _ in site.planned())
    assert (rules["train_encoder"], rules["export_encoder"], rules["audit_encoder"]) == (2, 2, 1)


def test_an_imported_encoder_is_imported_and_then_finetuned(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(**{"encoder.source": str(ROOT / "tests/data/golden/mae"), "encoder.finetune": FINETUNE})
    rules = Counter(rule for rule, _ in site.planned())
    assert (rules["import_encoder"], rules["train_encoder"], rules["export_encoder"]) == (1, 1, 1)


def test_an_export_that_no_known_configuration_made_is_a_file_by_its_absolute_path(tmp_path: Path) -> None:
    site, export = Site(tmp_path), "results/encoders/nobody-01234567/export/metadata.json"
    (site.folder / export).parent.mkdir(parents=True)
    (site.folder / export).write_text("{}")
    site.configure(**{"encoder.init_from": export})
    refused = site.snakemake("-n", "encoders")
    assert refused.returncode != 0
    assert "no known configuration has the encoder 'nobody-01234567'" in refused.stdout
    assert "its absolute path does as well" in refused.stdout
    site.configure(**{"encoder.init_from": str(site.folder / export)})
    [(_, inputs)] = inputs_of(site, "encoders").items()
    assert str(site.folder / export) in inputs


@pytest.fixture(scope="module")
def site(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A copy of the folder in which the tiny run has left its data, encoder and exports."""
    copy = Site(tmp_path_factory.mktemp("encoders").resolve() / "site")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


def weights(folder: Path, file: str = "model") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"{file}.safetensors")


def test_stages_and_widths_are_made_and_audited(site: Site) -> None:
    preset = site.configure("stages.yaml", **STAGES)
    done = site.snakemake("encoders", config="stages.yaml")
    assert done.returncode == 0, done.stdout
    relatives = settings.load_file(preset).relatives()
    folders = {each.encoder.name + ("_ft" if each.encoder.finetune else ""): each.key("encoder") for each in relatives}
    exports = {name: site.folder / "results/encoders" / key / "export" for name, key in folders.items()}
    assert f"train_encoder/{folders['mae_w8']}.log" not in done.stdout, "the run's own encoder is shared, not trained again"
    for name, folder in exports.items():
        audit, export = EncoderAudit.read(folder / "audit.json"), Export.read(folder / "metadata.json")
        assert audit.base_width == (16 if "w16" in name else 8)
        assert audit.files == export.files
        assert audit.held_out.images == 50
        assert export.step == (6 if name.endswith("_ft") else 30)
    tuned = EncoderTrained.read(exports["mae_w8_ft"].parent / "trained.json")
    assert tuned.inputs["init_from"] == sha256_file(exports["mae_w8"] / "metadata.json")
    before, after = (weights(exports[name], "autoencoder") for name in ("mae_w8", "mae_w8_ft"))
    # Six steps on a learning rate of 1e-3 leave an encoder near the one that it started from.
    apart = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < apart < 0.05
    assert "Nothing to be done" in site.snakemake("encoders", config="stages.yaml").stdout
    table = site.run("show_encoders.py", *(str(folder / "audit.json") for folder in exports.values()))
    assert len(table.stdout.splitlines()) == 6, table.stderr


def test_a_generator_starts_from_an_export(site: Site) -> None:
    own = settings.load_file(site.folder / "config.yaml")
    start = f"results/runs/{own.key('run')}/exports/step_60/metadata.json"
    preset = site.configure("warm.yaml", **{"training.init_from": start})
    run = settings.load_file(preset).key("run")
    output = f"results/runs/{run}/exports/step_0/metadata.json"
    done = site.snakemake(output, config="warm.yaml")
    assert done.returncode == 0, done.stdout
    # Its record, its canary (four jobs) and itself: nothing that it shares with the other run is made again.
    assert "6 of 6 steps (100%) done" in done.stdout
    export = Export.read(site.folder / output)
    assert export.inputs["init_from"] == sha256_file(site.folder / start)
    assert "audit" in export.inputs
    ours: dict[str, Any] = weights((site.folder / output).parent)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in weights((site.folder / start).parent).items())
