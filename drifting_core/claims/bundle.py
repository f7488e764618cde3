"""The claim bundle: a folder that holds every number, picture, value, hash and command, and can be checked by itself.

Files are written one by one, manifest.json (the hash of each) after them and claim_bundle.done (the hash of the
manifest) last, so a bundle without the last is no bundle.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_core.artifacts import (
    Bundle,
    Index,
    Metrics,
    MetricsTable,
    Neighbours,
    ProvenanceNode,
    TrainingCurve,
    publish,
    records,
)
from drifting_core.artifacts.identity import Section
from drifting_core.artifacts.provenance import code_version
from drifting_core.claims import card, commands, figures, pages, progress
from drifting_core.claims.sources import Sources
from drifting_core.claims.verifying import DONE, MANIFEST, files_of, marker

log = logging.getLogger(__name__)


def make_bundle(
    folder: Path,
    run: str,
    given: Sequence[tuple[str, Path]],
    *,
    typed: Mapping[str, Section],
    configuration: str,
) -> None:
    """Make the bundle of `run` in `folder`, bundles/RUN below the results, from the artifacts `given` as (role, path).

    `typed`: the sections of the whole configuration. Raises Fault when artifacts are missing or do not fit together.
    """
    results = folder.parent.parent
    sources = Sources.below(results, [*given, *_records(given)])
    values: dict[str, Any] = {"name": run.rsplit("-", 1)[0], "results": results.as_posix()}
    values |= {name: section.model_dump(mode="json") for name, section in typed.items()}
    (folder / DONE).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    written = _write(folder, {**contents(sources, values, run, code=code_version()), **_as_it_ran(sources, results, run)})
    for stale in set(files_of(folder)) - set(written):
        (folder / stale).unlink()
    Bundle(
        configuration=configuration,
        code=code_version(),
        inputs={source.below_results: source.sha256 for source in sources.all},
        files=records(folder, sorted(written)),
        run=run,
        roles={source.below_results: source.role for source in sources.all},
        configuration_values=values,
    ).write(folder / MANIFEST)
    marker(folder).write(folder / DONE)


def _records(given: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """What the training left for readers beside the run's configuration."""
    beside = [path.parent / name for role, path in given if role == "run" for name in card.RECORDS]
    return [("record", path) for path in beside if path.is_file()]


def _write(folder: Path, made: Mapping[str, bytes]) -> list[str]:
    for place, content in made.items():
        with publish(folder / place) as scratch:
            scratch.write_bytes(content)
    return list(made)


def _as_it_ran(sources: Sources, results: Path, run: str) -> dict[str, bytes]:
    """RUN.md and commands.txt, from the logs of all jobs that the artifacts come from."""
    jobs = commands.jobs_of(results, {"/".join(source.below_results.split("/")[:2]) for source in sources.all})
    page = pages.markdown(commands.page(run, jobs, _commands(results.as_posix(), run)))
    return {commands.PAGE: page.encode(), commands.COMMANDS: commands.text(jobs).encode()}


def contents(
    sources: Sources,
    values: Mapping[str, Any],
    run: str,
    *,
    code: str,
    shown: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Every file of the bundle, by its place, that follows from its artifacts: a function of them and of this code.

    `code`: the version that makes, or made, it. `shown`: the pictures that the report embeds, by default those drawn.
    """
    made = {source.place: source.path.read_bytes() for source in sources.all}
    training, nodes = _training(sources, code), sources.graph()
    if training is not None:
        made[card.TRAINING] = _json(training.model_dump(mode="json"))
        nodes.append(_training_node(training, made[card.TRAINING]))
    made |= {f"tables/{role}.csv": _csv(table) for role, table in sources.tables.items()}
    pictures, captions = _pictures(sources, training)
    made |= {f"figures/{name}": picture for name, picture in pictures.items()}
    made["configuration.json"] = _json(values)
    made["provenance.json"] = _json([node.model_dump() for node in nodes])
    blocks = card.claim_content(sources, values, run, _commands(values["results"], run), captions, training is not None)
    made["CLAIM.md"] = pages.markdown(blocks).encode()
    report = pages.report(blocks, f"Claim of {run}", lambda place: base64.b64encode((shown or made)[place]).decode())
    made["report.html"] = report.encode()
    return made


def _csv(table: MetricsTable) -> bytes:
    """A table of evaluations for spreadsheets: all its numbers, in full, under the names that the contract gives them."""
    names = {
        "distance": table.distance_name, "distance_error": f"{table.distance_name} standard error",
        "score": table.score_name, "score_std": f"{table.score_name} standard deviation",
    }  # fmt: skip
    shown = [column for column in table.rows[0] if column != "metrics_sha256"]
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow([*(names.get(column, column.replace("_", " ")) for column in shown), "images", "evaluation contract"])
    for row in table.rows:
        writer.writerow([*(row[column] for column in shown), table.contract.samples, table.contract_hash[:16]])
    return held.getvalue().encode()


def _training(sources: Sources, code: str) -> TrainingCurve | None:
    """What the training logged, from beside the run's configuration, up to the last evaluation of the curve.

    metrics.jsonl is no input of the job: it grows while later slices train, which must not make a bundle again.
    """
    runs = [source.path.parent for source in sources.all if source.role == "run"]
    if "curve" not in sources.tables or not runs:
        return None
    if not (runs[0] / progress.METRICS).is_file():
        log.warning("%s: missing, so the bundle shows evaluations only", runs[0] / progress.METRICS)
        return None
    return progress.read_training(runs[0], sources.tables["curve"].rows[-1]["step"], code)


def _training_node(training: TrainingCurve, content: bytes) -> ProvenanceNode:
    return ProvenanceNode(
        artifact=card.TRAINING,
        kind=training.kind,
        sha256=hashlib.sha256(content).hexdigest(),
        configuration=training.configuration,
        code=training.code,
        made_from={role: f"sha256:{digest}" for role, digest in training.inputs.items()},
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _commands(results: str, run: str) -> str:
    return "\n".join(
        [
            "# from the root of a checkout of the version that manifest.json names under 'code'",
            f"python workflow_scripts/verify_bundle.py {results}/bundles/{run}  # --deep: from features and latents",
            f"snakemake --profile local {results}/claim_bundle.done --configfile {results}/bundles/{run}/configuration.json",
        ]
    )


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(sources: Sources, training: TrainingCurve | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """PNG and caption of every figure that the artifacts allow, by file name."""
    tables = sources.tables
    distance = tables["claim"].distance_name
    made: dict[str, tuple[bytes, str]] = {"claim_grid.png": _claim_grid(sources)}
    if "curve" in tables:
        curve = tables["curve"]
        drawn = figures.progress(curve, training) if training else figures.curve(curve)
        made["progress.png"] = (drawn, progress.caption(curve, training))
        made["steps.png"] = (_over_steps(sources, curve), "Equal noise over training steps: one sample of each class.")
    sweep = tables["alpha_sweep"]
    made["alpha_sweep.png"] = (
        figures.sweep(sweep),
        f"{distance} and diversity of step {sweep.rows[0]['step']} by guidance strength.",
    )
    made["alpha_strip.png"] = (
        _over_alpha(sources, sweep),
        f"Equal noise and labels under each guidance strength, step {sweep.rows[0]['step']}.",
    )
    made["neighbour_pairs.png"] = _neighbour_pairs(sources)
    return {name: picture for name, (picture, _) in made.items()}, {name: words for name, (_, words) in made.items()}


def _grid(sources: Sources, row: Mapping[str, Any]) -> figures.Pixels:
    """The grid beside the metrics of a row, checked against their record."""
    source = sources.of_row(row)
    assert isinstance(source.content, Metrics)
    return progress.read_grid(source.content, source.path.parent)


def _claim_grid(sources: Sources) -> tuple[bytes, str]:
    row = sources.tables["claim"].rows[0]
    names = _class_names(sources, sources.tables["claim"])
    words = "a row per class" if len(names) == len(sources.one("index", Index).wnids) else f"{len(names)} of the classes"
    caption = f"Generated images of the claim set, the first of each class, unselected; {words} (seed {row['seed']})."
    return figures.labelled_rows(_grid(sources, row), names), caption


def _class_names(sources: Sources, table: MetricsTable) -> list[str]:
    metrics = sources.of_row(table.rows[0]).content
    assert isinstance(metrics, Metrics)
    return progress.class_names(sources.one("index", Index), metrics)


def _of_one_seed(table: MetricsTable) -> list[dict[str, Any]]:
    """The rows of the first selection seed: equal seeds are equal noise, whatever step and guidance."""
    seed = min(row["seed"] for row in table.rows)
    return [row for row in table.rows if row["seed"] == seed]


def _over_steps(sources: Sources, table: MetricsTable) -> bytes:
    grids = {row["step"]: _grid(sources, row) for row in _of_one_seed(table)}
    return figures.over_steps(grids, _class_names(sources, table))


def _over_alpha(sources: Sources, table: MetricsTable) -> bytes:
    """The first sample of each class, a row for each guidance strength."""
    rows, count = _of_one_seed(table), len(_class_names(sources, table))
    picture = figures.stacked([figures.first_column(_grid(sources, row), count) for row in rows])
    return figures.labelled_rows(picture, [f"alpha {row['alpha']:g}" for row in rows])


def _neighbour_pairs(sources: Sources) -> tuple[bytes, str]:
    """The closest pairs of every space of the audit, under each other."""
    folder, found = sources.source("neighbours").path.parent, sources.one("neighbours", Neighbours)
    found.verify(folder)
    picture = figures.stacked([figures.read_picture(folder / space.picture) for space in found.spaces])
    rows = [label for space in found.spaces for label in (f"{space.name}: generated", "nearest real")]
    words = (
        "For each space, the generated images nearest to the training set, closest first, above their nearest image of it."
    )
    return figures.labelled_rows(picture, rows), words
