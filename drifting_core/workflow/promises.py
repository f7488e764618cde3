"""What the road to a claim promises to leave behind, artifact by artifact, and whether each is there and whole. Light.

Paths follow from the configuration as they do for the rules (layout.py). Pictures and numbers are not judged: a bundle's
own verification does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from drifting_core import artifacts
from drifting_core.artifacts import Artifact
from drifting_core.config import Configuration
from drifting_core.faults import Fault
from drifting_core.jobs.job import duration
from drifting_core.workflow.layout import Layout


class Promise(NamedTuple):
    """One file, and what it must be: an artifact whose listed files are whole, a record, lines of JSON, or just there."""

    what: str
    path: Path
    kind: type[BaseModel] | None = None


def promises(config: Configuration) -> Iterator[Promise]:
    """Of one configuration, in the order in which the workflow makes them."""
    layout = Layout(config)
    data, run, bundle = (Path(layout.folder(stage)) for stage in ("data", "run", "bundle"))
    trained = not config.generator.imported
    yield Promise("archives, checked", data / "archives.json", artifacts.Archives)
    yield Promise("byte index", data / "index.json", artifacts.Index)
    yield Promise("tokenizer", Path(layout.folder("tokenizer")) / "manifest.json", artifacts.TokenizerManifest)
    yield Promise("feature network", Path(layout.folder("network")) / "manifest.json", artifacts.FeatureNetwork)
    yield Promise("reference statistics", Path(layout.folder("reference")) / "manifest.json", artifacts.ReferenceStatistics)
    if trained:
        for split in ("train", "val"):
            yield Promise(f"latents, {split}", data / f"latents/{split}/manifest.json", artifacts.LatentManifest)
            yield Promise(f"their verification, {split}", data / f"verify_{split}.json", artifacts.LatentVerification)
        yield from _encoder(config, Path(layout.folder("encoder")))
    yield Promise("configuration of the run", run / "config.json", artifacts.RunRecord)
    if trained:
        yield Promise("canary", run / "canary/passed.json", artifacts.Canary)
        yield Promise("latents in short", run / "latent_summary.json", artifacts.LatentSummary)
        yield from _training(run, config.training.steps)
    for step in config.milestones:
        yield Promise(f"export, step {step}", Path(layout.export(run.name, step)), artifacts.Export)
    for path in map(Path, layout.evaluations(run.name)):
        samples = run / "samples" / path.parent.relative_to(run / "eval") / "manifest.json"
        yield Promise("samples", samples, artifacts.Samples)
        yield Promise("evaluation", path, artifacts.Metrics)
    yield Promise("recommendation", run / "recommendation.json", artifacts.Recommendation)
    for path in map(Path, layout.table(run.name, "claim")):
        yield Promise("samples of the claim", path.parent / "samples/manifest.json", artifacts.Samples)
        yield Promise("evaluation of the claim", path, artifacts.Metrics)
    yield Promise("memorisation audit", run / "neighbours/neighbours.json", artifacts.Neighbours)
    yield Promise("bundle", bundle / "manifest.json", artifacts.Bundle)
    for name in ("CLAIM.md", "report.html", "RUN.md"):
        yield Promise(f"bundle: {name}", bundle / name)
    yield Promise("claim", Path(config.root) / "claim_bundle.done", artifacts.BundleDone)


def _encoder(config: Configuration, folder: Path) -> Iterator[Promise]:
    if not config.encoder.imported:
        training = config.encoder.finetune or config.encoder.training
        yield Promise("encoder in short", folder / "mae_summary.json", artifacts.EncoderSummary)
        yield from _training(folder, training.steps)
    yield Promise("encoder's export", folder / "export/metadata.json", artifacts.Export)
    yield Promise("encoder's audit", folder / "export/audit.json", artifacts.EncoderAudit)


def _training(folder: Path, steps: int) -> Iterator[Promise]:
    """What every training leaves beside what the rules declare."""
    yield Promise("last state", folder / f"state/step_{steps:08d}/COMMITTED.json", artifacts.StateMarker)
    yield Promise("metrics of the training", folder / "metrics.jsonl")
    yield Promise("page of the training", folder / "RUN.md")
    yield Promise("environment", folder / "env_snapshot.json", artifacts.EnvironmentSnapshot)
    yield Promise("software", folder / "env_fingerprint.json", artifacts.EnvironmentFingerprint)
    yield Promise("code", folder / "codebase_fingerprint.json", artifacts.CodebaseFingerprint)


def require_kept(promise: Promise) -> None:
    """Raises Fault saying what is missing or not whole."""
    path, kind = promise.path, promise.kind
    if not path.is_file() or not path.stat().st_size:
        raise Fault(f"{path}: {'empty' if path.is_file() else 'missing'}; run the workflow to make it")
    try:
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif kind and issubclass(kind, Artifact):
            kind.read(path).verify(path.parent)
        elif kind:
            kind.model_validate_json(path.read_bytes())
    except (ValidationError, json.JSONDecodeError) as error:
        raise Fault(f"{path}: not what was promised: {str(error).splitlines()[0]}; remove it to make it again") from None


def page(config: Configuration) -> tuple[list[str], list[str]]:
    """A line per promise, and what is wrong. Times are those of the files, since the oldest of them."""
    promised, wrong = list(promises(config)), list[str]()
    began = min((each.path.stat().st_mtime for each in promised if each.path.is_file()), default=0.0)
    width = max(len(each.what) for each in promised)
    lines = [f"{'promised':<{width}}   {'made':>6}   file"]
    for each in promised:
        try:
            require_kept(each)
            state = duration(each.path.stat().st_mtime - began)
        except Fault as fault:
            wrong.append(str(fault))
            state = "NO"
        lines.append(f"{each.what:<{width}}   {state:>6}   {each.path}")
    kept = len(promised) - len(wrong)
    lines.append(f"{kept} of {len(promised)} promised artifacts are there and whole; times are since the first")
    return lines, wrong
