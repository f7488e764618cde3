"""Evaluations made by hand, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drifting_core import artifacts
from drifting_core.artifacts import EvaluationContract
from drifting_core.claims.sources import _place
from drifting_core.claims.verifying import marker
from drifting_core.config import Selection
from drifting_core.data.index import FILE, write_tables
from drifting_core.data.listing import Table
from drifting_core.evaluation.contract import STATISTICS, contract_hash
from drifting_core.evaluation.recommend import write_recommendation
from drifting_core.evaluation.tables import make_table

PLAIN = {
    "network": "classifier", "network_sha256": "a" * 64, "resize": "none", "uint8": "truncate", "label_plan": "balanced",
    "sampling_batch": 50, "compute_batch": 50, "precision": "float32", "tokenizer_sha256": "b" * 64,
    "reference_split": "train", "reference_images": 3000, "reference_sha256": "c" * 64, "manifold_images": 500,
    "manifold_sha256": "d" * 64, "precision_recall_k": 3, "bootstrap": 20, "samples": 500,
}  # fmt: skip
PUBLISHED = {"network": "inception", "network_sha256": "6726825d" + "0" * 56, "reference_images": 1_281_167}
MADE = {"configuration": "0" * 64, "code": "test"}


def contract(**changes) -> EvaluationContract:
    return EvaluationContract(**(PLAIN | changes))


def write_index(folder: Path, labels: NDArray[np.int64]) -> Path:
    """index.json (and npz) of validation images with these labels, and of one training image."""
    names = np.array([f"{i}.JPEG".encode() for i in range(len(labels))])
    table = Table(np.zeros(len(labels), np.int64), np.ones(len(labels), np.int32), labels.astype(np.int16), names)
    one = Table(*(getattr(table, field)[:1] for field in ("offset", "length", "label", "name")))
    folder.mkdir(parents=True)
    write_tables(folder / FILE, {"train": one, "val": table})
    classes = int(labels.max()) + 1
    split = {"archive": "a.tar", "archive_bytes": 1, "fewest_per_class": 1, "most_per_class": 1}
    artifacts.Index(
        **MADE, files=artifacts.records(folder, [FILE]), wnids=[f"n{i}" for i in range(classes)],
        names=[f"name {i}, other" for i in range(classes)],
        splits={"train": split | {"images": 1}, "val": split | {"images": len(labels)}},
    ).write(folder / "index.json")  # fmt: skip
    return folder / "index.json"


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)


def write_metrics(path: Path, step: int, alpha: float, seed: int, distance: float, **changes) -> Path:
    """metrics.json with its grid of 2 classes x 10 samples of 4 x 4 pixels."""
    picture(path.parent / "grid.png", 8, 40)
    made = contract(**changes)
    artifacts.Metrics(
        **MADE, inputs={"samples": f"{seed:064d}"}, files=artifacts.records(path.parent, ["grid.png"]), contract=made,
        contract_hash=contract_hash(made), distance_name=made.distance_name, score_name=made.score_name, step=step,
        alpha=alpha, seed=seed, distance=distance, distance_error=0.1, distance_residue=0.0, score=2.0, score_std=0.1,
        precision=0.5, recall=0.5, label_accuracy=0.3, within_class_diversity=0.8, sample_std=0.2,
    ).write(path)  # fmt: skip
    return path


def write_claim(results: Path, **changes) -> list[tuple[str, Path]]:
    """Everything that a bundle needs, below `results`: (role, path)."""
    run = results / "runs/demo-00000000"
    last_k = [write_metrics(run / f"eval/step_{s}/metrics.json", s, 1.5, 1, 20 - s / 100, **changes) for s in (0, 500, 1000)]
    sweep = [write_metrics(run / f"eval/alpha_{a}/metrics.json", 1000, a, 1, 15 + a, **changes) for a in (1.0, 2.5)]
    sweep.append(last_k[-1])
    claim = write_metrics(run / "claim/metrics.json", 1000, 1.5, 1000, 10.1, **(changes | {"samples": 1000}))
    given = [("metrics", path) for path in dict.fromkeys((*last_k, *sweep, claim))]
    for title, paths in (("curve", last_k), ("last_k", last_k), ("alpha_sweep", sweep), ("claim", [claim])):
        make_table(title, paths).write(run / f"tables/{title}.json")
        given.append((title, run / f"tables/{title}.json"))
    write_recommendation(
        run / "recommendation.json", Selection(samples=500, seeds=(1,), last_k=3, alpha=1.5, alphas=(1.0,)),
        last_k=run / "tables/last_k.json", sweep=run / "tables/alpha_sweep.json", configuration="0" * 64,
    )  # fmt: skip
    given.append(("recommendation", run / "recommendation.json"))
    return given + _neighbours(run) + _stages(results, contract(**changes))


def write_training(run: Path, steps: range = range(0, 1001, 100)) -> tuple[str, Path]:
    """What a training leaves beside its exports: config.json and metrics.jsonl; (role, path) of the former."""
    artifacts.RunRecord(**MADE, values={}).write(run / "config.json")
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(training_line(max(1, step)))}\n" for step in steps))
    return "run", run / "config.json"


def training_line(step: int) -> dict[str, Any]:
    """A line of metrics.jsonl; the mean force norm at 0.2 is the step."""
    groups = {name: {"scale": 1.0, "force_norm": {"0.2": factor * step, "0.05": 0.1}} for name, factor in
              (("global", 0.5), ("conv1", 1.5))}  # fmt: skip
    return {"step": step, "loss": 500.0, "features": groups, "time": {"seconds": 1.0, "utilisation": None}}


def forge(folder: Path) -> None:
    """Make all hashes of a bundle fit what is there now."""
    manifest = artifacts.Bundle.read(folder / "manifest.json")
    manifest.files = artifacts.records(folder, list(manifest.files))
    manifest.inputs = {b: artifacts.sha256_file(folder / _place(role, b)) for b, role in manifest.roles.items()}
    manifest.write(folder / "manifest.json")
    marker(folder).write(folder / "claim_bundle.done")


def _neighbours(run: Path) -> list[tuple[str, Path]]:
    names = [f"pairs_{space}.png" for space in ("features", "pixels")]
    for name in names:
        picture(run / "neighbours" / name, 8, 40)
    search = artifacts.NeighbourSearch(
        baseline_percentile_1=1.0, baseline_median=2.0, generated_median=3.0, share_below_percentile_1=0.125, pairs=[]
    )
    spaces = [
        artifacts.NeighbourSpace(
            name=name[6:-4],
            description="test",
            sha256="a" * 64,
            training_images=3000,
            baseline_images=500,
            picture=name,
            any_class=search,
            same_class=search,
        )
        for name in names
    ]
    artifacts.Neighbours(
        **MADE, inputs={"samples": f"{1000:064d}"}, files=artifacts.records(run / "neighbours", names), step=1000, alpha=1.5,
        seed=1000, samples=10, top=1, wnids=["n1", "n2"], spaces=spaces, left_out={"latents": "there are none"},
    ).write(run / "neighbours/neighbours.json")  # fmt: skip
    return [("neighbours", run / "neighbours/neighbours.json")]


def _stages(results: Path, how: EvaluationContract) -> list[tuple[str, Path]]:
    split = {"archive": "a.tar", "archive_bytes": 1, "fewest_per_class": 1, "most_per_class": 1}
    made = {
        "index": artifacts.Index(
            **MADE, wnids=["n1", "n2"], names=["cat, feline", "dog | hound"],
            splits={"train": split | {"images": 3000}, "val": split | {"images": 500}},
        ),
        "tokenizer": artifacts.TokenizerManifest(
            **MADE, source="test", folder="vae", weights_sha256=how.tokenizer_sha256, scaling_factor=1.0, channels=4,
            factor=2,
        ),
        "network": artifacts.FeatureNetwork(
            **MADE, network=how.network, weights="w", weights_sha256=how.network_sha256, dimensions=8, classes=2,
            resize="none",
        ),
        "reference": artifacts.ReferenceStatistics(
            **MADE, files={STATISTICS: artifacts.FileRecord(bytes=1, sha256=how.reference_sha256)}, images=3000,
            dimensions=8, network_sha256=how.network_sha256, image_transforms=[], compute_batch=50,
            precision_recall_images=500, real_accuracy=0.5,
        ),
    }  # fmt: skip
    for role, artifact in made.items():
        artifact.write(results / role / "manifest.json")
    return [(role, results / role / "manifest.json") for role in made]
