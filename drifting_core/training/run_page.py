"""RUN.md: the page in a training's folder that a person reads first. What it is, where it stands, how it goes on.

Written whole when a training starts, at each milestone and at the end; what grows in between is linked, not copied.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_core.artifacts import LatentContract, Metrics, RunRecord, publish_text, sha256_file
from drifting_core.artifacts.identity import Section, identity
from drifting_core.config import load_file
from drifting_core.faults import Fault
from drifting_core.jobs.pool import granted_by_slurm
from drifting_core.training.records import last_metrics

PAGE = "RUN.md"

# What lies in a training's folder, and what it is.
_FILES = {
    "config.json": "the configuration, in full; also a file for `--configfile`",
    "metrics.jsonl": "a line per logged step, appended while the training runs",
    "tensorboard": "the same as TensorBoard events",
    "trained.json": "the training has reached its last step",
    "export": "the trained encoder's weights (EMA)",
    "exports": "the generator's weights (EMA) at each milestone",
    "state": "what the training continues from, private to it; the last two are kept",
    "eval": "one evaluation per export, guidance, seed and number of images: metrics.json and a grid of samples",
    "samples": "the generated latents that these evaluations are of",
    "tables": "these evaluations as tables: over the milestones, of the last exports, over the guidance, of the claim",
    "recommendation.json": "which export and guidance are reported",
    "claim": "samples and evaluation on fresh seeds, of what was recommended",
    "neighbours": "the nearest training images of generated ones",
    "latent_summary.json": "the latents in short: rows, shape, contract, moments",
    "mae_summary.json": "the encoder in short: architecture, recipe, last metrics",
    "env_snapshot.json": "where this last ran: host, GPUs, driver, SLURM job, packages",
    "env_fingerprint.json": "digest of the software environment, equal where two machines are",
    "codebase_fingerprint.json": "digest of the code, by file",
}

# What the numbers of metrics.jsonl mean; nested keys are joined by dots.
_MEANINGS = {
    "loss": "(1 - weight) x reconstruction + weight x classification",
    "gradient_norm": "global norm before the clip; in the first steps it is large",
    "learning_rate": "after a linear warm-up it is constant",
    "reconstruction": "mean squared error on masked patches: it should fall",
    "classification": "cross-entropy of the classifier; it counts while its weight is not 0",
    "classifier_weight": "that weight",
    "seconds": "since the line before",
    "time.seconds": "since the line before",
    "time.images_per_second": "latents seen, or images generated, in training",
    "time.data_seconds": "waiting for data, of these",
    "time.memory_mb": "peak: of the GPU, or resident",
    "time.utilisation": "model operations over what the devices could do, a fraction",
}
_DRIFT_LOSS = (
    "constant by construction, no measure of progress: each feature entry adds a value that for three temperatures lies "
    "between 0 and 9, whatever the samples look like"
)
_SCALE = "mean distance in this group of features, by which they are divided"
_FORCE = "mean size of the drift at this temperature; it plateaus early while samples go on improving"


def write_page(
    folder: Path,
    what: str,
    sections: Mapping[str, Section],
    *,
    configuration: str,
    horizon: int,
    made_from: Mapping[str, Path],
    contract: LatentContract,
) -> None:
    """Publish RUN.md of the training in `folder`.

    `what`: one sentence. `sections`: those that say how it is trained, by name. `made_from`: what it reads, by role.
    """
    parts = [
        [f"# {folder.name}", what, "Rewritten when a training starts here, at each milestone and at the end."],
        ["## Where it stands", *_standing(folder, horizon)],
        ["## To continue", "From the folder that the workflow runs in:", f"```sh\n{_continuation(folder, sections)}\n```"],
        ["## What it is", *_identity(folder, sections, configuration, made_from)],
        ["## Under which contract", *_contracts(folder, contract)],
        ["## What lies here", _table(("", ""), [(_link(folder, name), meaning) for name, meaning in _here(folder)])],
    ]
    publish_text(folder / PAGE, "\n\n".join(block for part in parts for block in part) + "\n")


# --- where it stands ------------------------------------------------------------------------------------------------


def _standing(folder: Path, horizon: int) -> Iterable[str]:
    exported = sorted(int(path.parent.name.removeprefix("step_")) for path in folder.glob("exports/step_*/metadata.json"))
    last = last_metrics(folder)
    done = max([0, *exported, last["step"] if last else 0])
    yield f"Steps logged or exported: {done:,} of {horizon:,}."
    if exported:
        links = ", ".join(f"[{step:,}](exports/step_{step}/metadata.json)" for step in exported)
        yield f"Milestones exported: {links}."
    if last:
        rows = [(name, f"{value:.4g}", _meaning(name, last)) for name, value in _numbers(last) if name != "step"]
        yield f"The last line of [metrics.jsonl](metrics.jsonl), step {last['step']:,}:"
        yield _table(("", "", "what it means"), rows)
    if last and "features" in last:
        yield (
            "Progress is seen in evaluations, not here: the distance to the reference falls, the within-class diversity "
            "nears that of real images (1), and the samples' spread grows from that of an untrained generator."
        )


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """Numbers of a nested mapping by dotted name; force norms and scales as their mean over the feature groups."""
    for name, value in values.items():
        if prefix == "" and name == "features":
            groups = list(value.values())
            yield "scale", sum(group["scale"] for group in groups) / len(groups)
            for temperature in groups[0]["force_norm"]:
                norms = [group["force_norm"][temperature] for group in groups]
                yield f"force norm at {temperature}", sum(norms) / len(norms)
        elif isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _meaning(name: str, line: Mapping[str, Any]) -> str:
    if name == "loss" and "features" in line:
        return _DRIFT_LOSS
    if name.startswith("force norm"):
        return _FORCE
    return _SCALE if name == "scale" else _MEANINGS.get(name, "")


# --- how it goes on -------------------------------------------------------------------------------------------------


def _continuation(folder: Path, sections: Mapping[str, Section]) -> str:
    """The Snakemake command that brings this training to its end; where no configuration is recorded, the job's own."""
    results = folder.parent.parent
    profile = "slurm" if granted_by_slurm() else "local"
    record = _record(folder)
    if record is None:
        return shlex.join([sys.executable, *sys.argv])
    target = results / "claim_bundle.done" if folder.parent.name == "runs" else folder / "export/metadata.json"
    changed = [f"--config 'training={{{', '.join(now)}}}'"] if (now := _horizon(record, sections)) else []
    return " ".join([f"snakemake --profile {profile} {target} --configfile {record}", *changed])


def _record(folder: Path) -> Path | None:
    """A run's own configuration, or for an encoder that of a run which needs it."""
    if folder.parent.name == "runs":
        return folder / "config.json" if (folder / "config.json").is_file() else None
    for path in sorted(folder.parent.parent.glob("runs/*/config.json")):
        if any(known.key("encoder") == folder.name for known in load_file(path).relatives()):
            return path
    return None


def _horizon(record: Path, sections: Mapping[str, Section]) -> list[str]:
    """Steps and milestones that are no longer those of the record: a run may be continued beyond it."""
    if "training" not in sections:
        return []
    recorded, now = RunRecord.read(record).values["training"], sections["training"].model_dump()
    names = ("steps", "milestone_every")
    return [f"{name}: {now[name]}" for name in names] if any(recorded[name] != now[name] for name in names) else []


# --- what it is -----------------------------------------------------------------------------------------------------


def _identity(
    folder: Path, sections: Mapping[str, Section], configuration: str, made_from: Mapping[str, Path]
) -> Iterable[str]:
    rows = [("configuration", f"`{configuration}`")]
    for role, path in made_from.items():
        place = os.path.relpath(path, folder)
        rows.append((role, f"[{place}]({place}), SHA-256 `{sha256_file(path)[:16]}`"))
    yield _table(("", ""), rows)
    yield _table(("section", "values"), [(f"`{name}`", ", ".join(_short(section))) for name, section in sections.items()])
    yield "Fields that are not named have their defaults (docs/configuration.md)."


def _short(section: Section) -> Iterable[str]:
    def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name} {value}"

    return flat(identity(section))


def _contracts(folder: Path, contract: LatentContract) -> Iterable[str]:
    yield "Trained on latents made under:"
    values = contract.model_dump()
    yield _table(("field", "value"), [(name, _shown(value)) for name, value in values.items()])
    found: dict[str, tuple[str, list[str]]] = {}
    for path in sorted(folder.glob("eval/**/metrics.json")) + sorted(folder.glob("claim/*/metrics.json")):
        try:
            metrics = Metrics.read(path)
        except Fault as fault:  # another job's file, which may be on its way: no reason for a training to stop
            yield f"Not read: {fault}."
            continue
        how = metrics.contract
        words = f"{metrics.distance_name} and {metrics.score_name} of {how.samples:,} images, network {how.network}"
        found.setdefault(metrics.contract_hash, (words, []))[1].append(os.path.relpath(path, folder))
    for digest, (words, places) in found.items():
        first = f"[{places[0]}]({places[0]})"
        yield f"Evaluated under `{digest[:16]}`: {words}; {len(places)} evaluation(s), the first is {first}."
    if not found and folder.parent.name == "runs":
        yield "Not evaluated when this page was written; each metrics.json below eval/ names its contract."


# --- the form -------------------------------------------------------------------------------------------------------


def _here(folder: Path) -> Iterable[tuple[str, str]]:
    return ((name, meaning) for name, meaning in _FILES.items() if (folder / name).exists())


def _link(folder: Path, name: str) -> str:
    place = f"{name}/" if (folder / name).is_dir() else name
    return f"[{place}]({place})"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
