"""From nothing to the claim bundle, through kills; then what may and what may not be done again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import BaseModel, TypeAdapter

from drifting_core import artifacts
from drifting_core import config as settings
from drifting_core.artifacts import Artifact, sha256_file
from drifting_core.costs import estimates
from drifting_core.workflow.heads import live_heads
from tests.conftest import until
from tests.workflow.conftest import RECORDS, ROOT, TARGET, Site, Walk

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module", name="walk")
def own_copy(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """One for these tests, which leave other runs in it."""
    folder = tmp_path_factory.mktemp("walk").resolve() / "site"
    shutil.copytree(walk.site.folder, folder, symlinks=True)
    return replace(walk, site=Site(folder))


def test_kills_at_random_moments_end_in_the_same_bundle(walk: Walk) -> None:
    assert len(walk.kills) == 4, walk.kills
    assert (walk.site.folder / TARGET).is_file()
    assert not walk.repeated, "finished jobs were repeated"
    assert not list((walk.site.folder / "results").rglob(".*.tmp.*")), "a scratch file was left"


def test_every_json_validates_and_records_where_it_comes_from(walk: Walk) -> None:
    models = {model.model_fields["kind"].default: model for model in descendants(Artifact) if "kind" in model.model_fields}
    plain: dict[str, Any] = {
        **RECORDS,
        "provenance.json": list[artifacts.ProvenanceNode],
        "configuration.json": settings.Configuration,
    }
    found = set()
    for path, values in walk.site.artifacts().items():
        if "vae" in path.parts:
            continue  # written by diffusers
        if path.name in plain:
            TypeAdapter(plain[path.name]).validate_python(values)
            continue
        models[values["kind"]].model_validate(values)
        found.add(values["kind"])
        assert values["configuration"], path
        assert values["code"].startswith("0."), path
        assert values["inputs"] or values["kind"] in ("packed_images", "archives", "run", "state"), path
    # What this walk does not make: downloads, files that somebody must ask for, and the experiment of `make toy`.
    assert found == set(models) - {
        "fetched",
        "image_folder",
        "image_export",
        "model_export",
        "seeds_table",
        "toy_experiment",
    }


def descendants(model: type[BaseModel]) -> list[Any]:
    return [m for child in model.__subclasses__() for m in (child, *descendants(child))]


def test_the_plan_says_about_how_many_files_there_will_be(walk: Walk) -> None:
    count = sum(1 for path in (walk.site.folder / "results").rglob("*") if path.is_file())
    assert count <= estimates.files(settings.load_file(walk.site.folder / "config.yaml")) <= 2 * count


def test_every_listed_file_is_as_recorded_and_every_input_is_there(walk: Walk) -> None:
    results = walk.site.folder / "results"
    hashes = {sha256_file(path) for path in walk.site.artifacts()}
    checked = 0
    for path, values in walk.site.artifacts().items():
        if "bundles" in path.parts:
            continue
        for name, record in values.get("files", {}).items():
            artifacts.check_file(path.parent / name, artifacts.FileRecord(**record))
            checked += 1
        for role, digest in values.get("inputs", {}).items():
            removed = role == "export" and "canary" in path.parts  # its weights are gone when it has passed
            assert removed or digest in hashes, f"{path.relative_to(results)}: nothing has the hash of its input '{role}'"
    assert checked > 15


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "workflow_scripts/verify_bundle.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_verify_bundle_finds_one_flipped_byte_anywhere(walk: Walk, tmp_path: Path) -> None:
    [bundle] = (walk.site.folder / "results/bundles").iterdir()
    assert verify(bundle).returncode == 0, verify(bundle).stderr
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != ".lease")[::5]:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        failed = verify(copy)
        assert failed.returncode == 1, path
        path.write_bytes(content)
    assert verify(copy).returncode == 0


def test_the_page_of_a_run_links_to_what_is_there_and_its_command_has_nothing_left_to_do(walk: Walk) -> None:
    pages = [page for stage in ("runs", "encoders") for page in walk.site.folder.glob(f"results/{stage}/*/RUN.md")]
    for page in pages:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (page.parent / link).exists(), f"{page}: {link}"
        [command] = re.findall(r"```sh\n(.*)\n```", text)
        words = command.split()
        assert words[:3] == ["snakemake", "--profile", "local"]
        assert walk.site.planned(words[3], config=words[5]) == [], command
    assert len(pages) == 2


def test_the_progress_of_a_run_is_drawn_by_hand_as_in_the_bundle(walk: Walk) -> None:
    [run] = (walk.site.folder / "results/runs").glob("*-*")
    drawn = walk.site.run("draw_progress.py", "--run", f"results/runs/{run.name}")
    assert drawn.returncode == 0, drawn.stderr
    figures = walk.site.folder / "results/bundles" / run.name / "figures"
    assert (run / "steps.png").stat().st_size > 1000
    assert (figures / "progress.png").is_file()
    assert (figures / "steps.png").is_file()


def test_nothing_is_done_again(walk: Walk) -> None:
    done = walk.site.snakemake(TARGET)
    assert "Nothing to be done" in done.stdout


@pytest.mark.parametrize("profile", [True, False])
def test_threads_intervals_and_devices_rerun_nothing(walk: Walk, profile: bool) -> None:
    walk.site.configure(
        "operations.yaml",
        **{
            "training.resources": {"threads": 2, "runtime_minutes": 7},
            "training.log_every": 3,
            "training.commit_every": 7,
            "encoder.log_every": 2,
            "evaluation.resources": {"threads": 2},
        },
    )
    assert walk.site.planned(TARGET, config="operations.yaml", profile=profile) == []


def test_a_touched_file_reruns_nothing(walk: Walk) -> None:
    for path in walk.site.artifacts():
        path.touch()
    assert walk.site.planned(TARGET) == []


def test_a_longer_horizon_runs_only_the_new_slices(walk: Walk) -> None:
    walk.site.configure("longer.yaml", **{"training.steps": 120, "training.export_raw": True})
    planned = walk.site.planned(TARGET, config="longer.yaml")
    slices = [output.split("/")[-2] for rule, output in planned if rule == "train_generator"]
    assert slices == ["step_90", "step_120"]
    rules = {rule for rule, _ in planned}
    assert rules <= {
        "train_generator", "sample", "evaluate", "tabulate", "recommend", "sample_claim", "evaluate_claim",
        "audit_neighbours", "make_bundle", "claim_bundle",
    }  # fmt: skip
    [run] = (walk.site.folder / "results/runs").iterdir()
    export = f"results/runs/{run.name}/exports/step_90/metadata.json"
    done = walk.site.snakemake(export, config="longer.yaml")
    assert done.returncode == 0, done.stdout
    assert "1 of 1 steps (100%) done" in done.stdout
    assert "continuing at step 60" in (walk.site.folder / f"results/logs/{run.name}/train_generator_90.log").read_text()
    assert set(artifacts.Export.read(walk.site.folder / export).files) == {"model.safetensors", "raw.safetensors"}
    raw = safetensors.torch.load_file(run / "exports/step_90/raw.safetensors")
    state = safetensors.torch.load_file(run / "state/step_00000090/state.safetensors")
    assert raw
    assert all(torch.equal(tensor, state[f"weights.{name}"]) for name, tensor in raw.items())


def test_another_learning_rate_is_a_run_beside_the_old_one(walk: Walk) -> None:
    walk.site.configure("faster.yaml", **{"training.learning_rate": 1e-3})
    planned = walk.site.planned(TARGET, config="faster.yaml")
    [old] = (walk.site.folder / "results/runs").iterdir()
    outputs = [output for _, output in planned]
    assert outputs
    assert not any(old.name in output for output in outputs)
    assert {rule for rule, _ in planned}.isdisjoint({"train_encoder", "encode_latents", "make_tokenizer", "make_reference"})


def test_an_evaluation_of_an_existing_run_is_had_by_name_from_another_configuration(walk: Walk) -> None:
    walk.site.configure("other.yaml", **{"training.learning_rate": 3e-3, "name": "other"})
    [run] = (walk.site.folder / "results/runs").iterdir()
    name = f"results/runs/{run.name}/eval/step_30/alpha_2.5/seed_77/n_50/metrics.json"
    done = walk.site.snakemake(name, config="other.yaml")
    assert done.returncode == 0, done.stdout
    metrics = json.loads((walk.site.folder / name).read_text())
    assert (metrics["step"], metrics["alpha"], metrics["seed"], metrics["contract"]["samples"]) == (30, 2.5, 77, 50)
    assert (metrics["distance_name"], metrics["score_name"]) == ("FD", "DS")


def test_a_run_that_nobody_made_is_a_clear_message(walk: Walk) -> None:
    done = walk.site.snakemake("results/runs/nobody-01234567/exports/step_0/metadata.json")
    assert done.returncode != 0
    assert "no known configuration has the run 'nobody-01234567'" in done.stdout


def test_a_second_head_is_refused_with_the_pid_of_the_first(walk: Walk) -> None:
    head = walk.site.start(TARGET, "--forcerun", "make_bundle", "--rerun-triggers", "mtime")
    try:
        until(lambda: head.pid in [process.pid for process in live_heads(walk.site.folder)])
        refused = walk.site.snakemake(TARGET)
        assert refused.returncode == 1
        assert f"process {head.pid}" in refused.stdout
    finally:
        head.wait()


def test_a_truncated_table_is_made_again_not_believed(walk: Walk, tmp_path: Path) -> None:
    site = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    [recommendation] = (site.folder / "results/runs").glob("*/recommendation.json")
    recommendation.write_text(recommendation.read_text()[:40])
    done = site.snakemake(TARGET)
    assert "Nothing to be done" not in done.stdout
    assert done.returncode == 1
    assert "recommendation.json: not a Recommendation" in done.stdout


def test_an_image_folder_is_made_by_name_and_removed_when_told_so(walk: Walk, tmp_path: Path) -> None:
    site = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    [data] = (site.folder / "results/data").iterdir()
    done = site.snakemake(f"results/data/{data.name}/imagefolder.done")
    assert done.returncode == 0, done.stdout
    assert "1 of 1 steps (100%) done" in done.stdout
    assert len(list((data / "imagefolder").rglob("*.JPEG"))) == 210
    listed = site.run("remove_sources.py", "imagefolder", "--configfile", "config.yaml")
    assert "imagefolder: 211 file(s)" in listed.stdout, listed.stderr
    assert "nothing was removed; --yes removes these" in listed.stdout
    assert (data / "imagefolder/meta.bin").is_file()
    assert site.run("remove_sources.py", "imagefolder", "--configfile", "config.yaml", "--yes").returncode == 0
    assert not list(data.glob("imagefolder*"))
    assert "train.tar" in site.run("remove_sources.py", "archives", "--configfile", "config.yaml").stdout
    # A quick verification is not enough, and neither is one that no longer fits.
    verification = data / "verify_val.json"
    whole = verification.read_text()
    verification.write_text(whole.replace('"full"', '"quick"'))
    refused = site.run("remove_sources.py", "archives", "--configfile", "config.yaml", "--yes")
    assert refused.returncode == 1
    assert "a quick verification; set data.verification to full" in refused.stderr
    verification.write_text(whole)
    next((site.folder / "results/reference").glob("*/manifest.json")).unlink()
    needed = site.run("remove_sources.py", "archives", "--configfile", "config.yaml", "--yes")
    assert "the images are still needed to make" in needed.stderr
    assert "(reference statistics)" in needed.stderr
    next(data.glob("latents/val/*.h5")).unlink()
    assert (
        "not as it was verified" in site.run("remove_sources.py", "archives", "--configfile", "config.yaml", "--yes").stderr
    )
    assert (site.folder / "results/archives/photos/train.tar").is_file()


def test_generated_images_are_exported_by_name_from_a_run_that_is_there(walk: Walk, tmp_path: Path) -> None:
    site = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    [run] = (site.folder / "results/runs").iterdir()
    claim, swept = f"results/runs/{run.name}/claim/seed_1000/samples", "samples/step_60/alpha_1.5/seed_1/n_100"
    targets = [f"{claim}/export/npz.done", f"results/runs/{run.name}/{swept}/export/tar.done"]
    done = site.snakemake(*targets)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^(?:local)?rule (\w+):", done.stdout, re.MULTILINE) == ["export_images"] * 2
    with np.load(site.folder / claim / "export/images.npz", allow_pickle=False) as held:
        assert (held["arr_0"].shape, held["arr_0"].dtype) == ((100, 32, 32, 3), np.uint8)
        assert held["arr_1"].tolist() == [i % 10 for i in range(100)]
    with (
        tarfile.open(run / swept / "export/images.tar", "r:") as archive,
        Image.open(run / "eval/step_60/alpha_1.5/seed_1/n_100/grid.png") as opened,
    ):
        name = archive.getnames()[13]
        assert name.endswith("/000013.png")
        image = np.asarray(Image.open(archive.extractfile(name)))
        assert np.array_equal(image, np.asarray(opened)[96:128, 32:64]), (
            "not what the evaluation saw: row of class 3, column 1"
        )
    assert site.planned(*targets) == []


def test_an_encoder_is_trained_on_stored_crops(walk: Walk) -> None:
    """augmentation: views adds a store of crops beside the latents, and encodes nothing else again."""
    site = walk.site
    preset = site.configure(
        "views.yaml", **{"encoder.augmentation": "views", "encoder.crop_views": 2, "encoder.name": "mae_views"}
    )
    trained = f"results/encoders/{settings.load_file(preset).key('encoder')}/trained.json"
    done = site.snakemake(trained, config="views.yaml")
    assert done.returncode == 0, done.stdout
    rules = re.findall(r"^(?:local)?rule (\w+):", done.stdout, re.MULTILINE)
    assert sorted(rules) == ["combine_latents", "encode_latents", "encode_latents", "train_encoder", "verify_latents"]
    [crops] = site.folder.glob("results/data/*/latents/crops_2/manifest.json")
    assert artifacts.LatentManifest.read(crops).contract.views == ["crop 1", "crop 2"]
    assert artifacts.EncoderTrained.read(site.folder / trained).inputs["crops"] == sha256_file(crops)


def test_an_encoder_is_trained_on_crops_encoded_in_the_loop(walk: Walk) -> None:
    """augmentation: online, as the paper's presets have it: from the archives, and no store beside the latents."""
    site = walk.site
    preset = site.configure("online.yaml", **{"encoder.augmentation": "online", "encoder.name": "mae_online"})
    encoder = settings.load_file(preset).key("encoder")
    done = site.snakemake(f"results/encoders/{encoder}/trained.json", config="online.yaml")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^(?:local)?rule (\w+):", done.stdout, re.MULTILINE) == ["train_encoder"]
    both = [encoder, settings.load_file(site.folder / "config.yaml").key("encoder")]
    of_crops, of_stored = ((site.folder / f"results/encoders/{key}/metrics.jsonl").read_text().splitlines() for key in both)
    assert json.loads(of_crops[-1])["step"] == json.loads(of_stored[-1])["step"]
    assert json.loads(of_crops[0])["loss"] != json.loads(of_stored[0])["loss"]


def test_online_crops_are_a_function_of_seed_step_and_place(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    from drifting_core.config import load_file
    from drifting_core.training.crops import OnlineCrops

    monkeypatch.chdir(walk.site.folder)
    config = load_file(Path("config.yaml"))
    [index], [tokenizer] = Path("results/data").glob("*/index.json"), Path("results/tokenizer").glob("*/manifest.json")

    def crops(rejects: list[str]) -> OnlineCrops:
        return OnlineCrops(
            config.data,
            config.encoder,
            index=index,
            tokenizer=tokenizer,
            rejects=rejects,
            device=torch.device("cpu"),
            threads=2,
        )

    source, rows, views = crops([]), torch.arange(20), torch.zeros(20, dtype=torch.int64)
    latents = source.latents(rows, views, 3, 0)
    assert latents.shape == (20, 4, 16, 16)
    assert torch.equal(latents, crops([]).latents(rows, views, 3, 0))
    assert not torch.equal(latents, source.latents(rows, views, 4, 0))
    # A rank's share of the batch is that part of it; the tokenizer's products have other shapes, so not to the bit.
    torch.testing.assert_close(source.latents(rows[7:], views[7:], 3, 7), latents[7:], rtol=1e-4, atol=1e-4)
    _crops_begin_beside_the_step_before(crops([]), rows, latents, monkeypatch)
    fewer = crops([source.reader.names[0]])
    assert len(fewer) == len(source) - 1
    assert torch.equal(fewer.labels, source.labels[1:])


def _crops_begin_beside_the_step_before(
    source: Any, rows: torch.Tensor, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is expected is decoded before it is asked for, once; what was not expected is right all the same."""
    read, views = [], torch.zeros_like(rows)
    monkeypatch.setattr(source.reader, "read", lambda row, read_file=source.reader.read: read.append(row) or read_file(row))
    source.expect(rows, 3, 0)
    until(lambda: len(read) == len(rows))
    assert torch.equal(source.latents(rows, views, 3, 0), latents)
    assert sorted(read) == rows.tolist()
    source.expect(rows, 4, 0)
    assert torch.equal(source.latents(rows, views, 3, 0), latents)


def test_another_alpha_gives_other_images_from_the_same_noise(walk: Walk) -> None:
    one, other = (
        safetensors.torch.load_file(
            next(walk.site.folder.glob(f"results/runs/*/samples/step_60/alpha_{alpha}/*/*/latents.safetensors"))
        )
        for alpha in ("1", "1.5")
    )
    assert torch.equal(one["labels"], other["labels"])
    assert not torch.equal(one["latents"], other["latents"])
