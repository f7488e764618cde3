"""What a claim bundle is good for once it is there: the report, the model, the jobs behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drifting_core.evaluation.contract import to_uint8
from drifting_core.evaluation.sampler import read_samples
from drifting_core.models.tokenizer import Tokenizer
from tests.workflow.conftest import TARGET, Walk

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


def test_a_model_makes_the_claims_pictures_without_this_project(walk: Walk, tmp_path: Path) -> None:
    run = run_of(walk)
    made = walk.site.snakemake("model")
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
    [tokenizer] = (walk.site.folder / "results/tokenizer").glob("*/manifest.json")
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


def test_the_report_is_one_file_with_the_bundles_pictures_tables_and_captions(walk: Walk) -> None:
    done = walk.site.snakemake(TARGET, "--report", "report.html", profile=False)
    assert done.returncode == 0, done.stdout
    text = (walk.site.folder / "report.html").read_text()
    for name in ("claim_grid.png", "alpha_sweep.png", "alpha_strip.png", "claim.csv", "last_k.csv", "report.html"):
        assert name in text, name
    for caption in ("the first of each class, unselected", "Equal noise and labels under each guidance strength"):
        assert caption in text, caption
