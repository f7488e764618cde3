"""What a claim bundle is good for once it is there: the report, the model, the jobs behind it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drifting_core.claims import deep
from drifting_core.claims.deep import verify_deeply
from drifting_core.evaluation.contract import to_uint8
from drifting_core.evaluation.sampler import read_samples
from drifting_core.faults import Fault
from drifting_core.models.tokenizer import Tokenizer
from tests.unit.evaluation.samples import forge
from tests.workflow.conftest import TARGET, Site, Walk

pytestmark = pytest.mark.workflow


def run_of(walk: Walk) -> Path:
    [run] = (walk.site.folder / "results/runs").glob("tiny-*")
    return run


def test_all_jobs_behind_a_claim_ended_with_0(walk: Walk) -> None:
    page = (walk.site.folder / "results/bundles" / run_of(walk).name / "RUN.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and ".log |" in line]
    assert len(rows) > 30
    assert {row[2] for row in rows} == {"0"}
    assert {"index_archives", "train_encoder", "train_generator", "evaluate", "recommend"} <= {
        row[0].strip("| ") for row in rows
    }


@pytest.fixture(scope="module")
def site(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A copy of the folder, so that what is made or damaged here is not there for other tests."""
    copy = Site(tmp_path_factory.mktemp("copied").resolve() / "site")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


@pytest.fixture
def copied(walk: Walk, site: Site) -> Path:
    """The copy's bundle."""
    return site.folder / "results/bundles" / run_of(walk).name


@contextlib.contextmanager
def changed(path: Path, change: Callable[[bytes], bytes], *forged: Path) -> Iterator[None]:
    """The file as `change` makes it, with every hash of the bundles `forged` made to fit; then as it was."""
    before = {file: file.read_bytes() for each in (path, *forged) for file in (each.rglob("*") if each.is_dir() else [each])
              if file.is_file()}  # fmt: skip
    path.write_bytes(change(path.read_bytes()))
    for folder in forged:
        forge(folder)
    yield
    for file, content in before.items():
        file.write_bytes(content)


def flip(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


def test_a_bundle_is_verified_deeply_and_what_was_changed_is_found(copied: Path) -> None:
    """Also where a forger has made every hash in the bundle fit."""
    lines = verify_deeply(copied, images=16)
    assert any("all numbers recomputed from their features" in line for line in lines)
    run = copied.parents[1] / "runs" / copied.name
    figure, other = copied / "figures/alpha_sweep.png", copied / "figures/alpha_strip.png"
    number = re.compile(rb"(\| \[)[0-9.]+ ")
    cases: list[tuple[Path, Callable[[bytes], bytes], tuple[Path, ...], str]] = [
        (copied / "CLAIM.md", flip, (), "SHA-256"),
        (copied / "tables/claim.json", lambda text: text.replace(b'"recall": 0', b'"recall": 1'), (copied,), "claim"),
        (copied / "CLAIM.md", lambda text: number.sub(rb"\g<1>1.54 ", text), (copied,), "CLAIM.md: is not what"),
        (copied / "tables/claim.csv", lambda text: text.replace(b",0.", b",9.", 1), (copied,), "claim.csv: is not what"),
        (figure, lambda _: other.read_bytes(), (copied,), "alpha_sweep.png: is not what"),
        (run / "claim/seed_1000/features.h5", flip, (), "features.h5: SHA-256"),
        (run / "claim/seed_1000/samples/latents.safetensors", flip, (), "latents.safetensors: SHA-256"),
        (run / "claim/seed_1000/metrics.json", lambda text: text + b" ", (), "is another file than the one in"),
    ]
    for path, change, forged, message in cases:
        with changed(path, change, *forged), pytest.raises(Fault, match=message):
            verify_deeply(copied, images=16)
    for path in (copied / "figures/steps.png", run / "claim/seed_1000/features.h5"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(Fault, match=f"{path.name}: missing"):
            verify_deeply(copied, images=16)
        path.write_bytes(content)
    verify_deeply(copied, images=16)


def test_a_number_that_its_features_do_not_give_is_found(copied: Path) -> None:
    """Edited at its source and in every table, before the bundle was made: only the features tell."""
    results = copied.parents[1]
    source = results / "runs" / copied.name / "claim/seed_1000/metrics.json"
    held = json.loads(source.read_text())
    edits = {
        "distance": held["distance"] / 2, "distance_error": held["distance_error"] / 2, "kernel_distance": 0.0,
        "kernel_distance_std": None, "precision": 1.0,
    }  # fmt: skip
    for name, wrong in edits.items():
        before = source.read_text()
        source.write_text(json.dumps(held | {name: wrong}, indent=1, sort_keys=True) + "\n")
        with pytest.raises(Fault, match=f"{name} is .*, its features give"):
            deep._recompute(source, reference=next((results / "reference").glob("*/manifest.json")), device="cpu")
        source.write_text(before)


def test_a_model_makes_the_claims_pictures_without_this_project(walk: Walk, site: Site, tmp_path: Path) -> None:
    run = site.folder / "results/runs" / run_of(walk).name
    made = site.snakemake("model")
    assert made.returncode == 0, made.stdout
    samples, latents, labels = read_samples(run / "claim/seed_1000/samples/manifest.json")
    code = f"""
import sys
sys.modules["drifting_core"] = None  # not installed
sys.path.insert(0, {str(run / "model")!r})
from pipeline import DriftingPipeline
pipe = DriftingPipeline.from_pretrained({str(run / "model")!r})
assert pipe.alpha == {samples.alpha} and len(pipe.class_names) == 10
for i, picture in enumerate(pipe({labels[:20].tolist()}, seed=1000)):
    picture.save(f"{{i}}.png")
print(sorted(name for name in sys.modules if name.startswith(("drifting", "snakemake", "h5py"))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("['drifting_core']"), done.stdout
    [tokenizer] = (site.folder / "results/tokenizer").glob("*/manifest.json")
    with torch.inference_mode():
        expected = to_uint8(Tokenizer.of(tokenizer).decode(latents[:20]), "truncate").permute(0, 2, 3, 1).numpy()
    for i in range(20):
        with Image.open(tmp_path / f"{i}.png") as picture:
            # Latents are stored as float16, half a step of 8 bits at most; truncation can show it as a whole one.
            assert np.abs(np.asarray(picture).astype(int) - expected[i]).max() <= 1
    card = (run / "model/README.md").read_text()
    assert "not FID and IS" in card
    assert "pip install" not in card
    assert set(json.loads((run / "model/manifest.json").read_text())["files"]) >= {"pipeline.py", "generator.safetensors"}


def test_the_report_is_one_file_with_the_bundles_pictures_tables_and_captions(site: Site) -> None:
    done = site.snakemake(TARGET, "--report", "report.html", profile=False)
    assert done.returncode == 0, done.stdout
    text = (site.folder / "report.html").read_text()
    for name in ("claim_grid.png", "alpha_sweep.png", "alpha_strip.png", "claim.csv", "last_k.csv", "report.html"):
        assert name in text, name
    for caption in ("the first of each class, unselected", "Equal noise and labels under each guidance strength"):
        assert caption in text, caption
