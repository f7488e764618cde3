"""Whether a claim bundle is whole, and its tables follow from its evaluations; light, so that anyone can check one.

`deep.py` goes on from there to features, latents, words and figures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from drifting_core.artifacts import Artifact, Bundle, BundleDone, MetricsTable, Recommendation, publish, sha256_file
from drifting_core.claims.sources import Sources
from drifting_core.config import Selection
from drifting_core.evaluation.recommend import recommend
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault

MANIFEST, DONE = "manifest.json", "claim_bundle.done"
_AGAIN = "copy the bundle again from where it was made, or make it again"
_LEASE = ".lease"  # of whoever is writing the bundle; no part of it


def marker(folder: Path) -> BundleDone:
    """What claim_bundle.done says of a folder whose manifest is there."""
    manifest, digest = Bundle.read(folder / MANIFEST), sha256_file(folder / MANIFEST)
    return BundleDone(
        configuration=manifest.configuration,
        code=manifest.code,
        inputs={"manifest": digest},
        run=manifest.run,
        folder=f"bundles/{manifest.run}",
        manifest_sha256=digest,
    )


def files_of(folder: Path) -> list[str]:
    """Everything in the bundle that its manifest must list."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in (MANIFEST, DONE, _LEASE))


def verify_bundle(folder: Path) -> Bundle:
    """Re-hash the whole bundle and recompute its tables. Raises Fault naming the first file that is missing, changed, not
    listed, or not what its inputs say.
    """
    done = BundleDone.read(folder / DONE)
    if not (folder / MANIFEST).is_file():
        raise Fault(f"{folder / MANIFEST}: missing; the bundle is not whole: make it again, or copy it again")
    found = sha256_file(folder / MANIFEST)
    if found != done.manifest_sha256:
        raise Fault(
            f"{folder / MANIFEST}: SHA-256 {found[:16]}…, {DONE} says {done.manifest_sha256[:16]}…; it was changed: {_AGAIN}"
        )
    manifest = Bundle.read(folder / MANIFEST)
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / DONE
        marker(folder).write(expected)
        if expected.read_bytes() != (folder / DONE).read_bytes():
            raise Fault(f"{folder / DONE}: is not what {MANIFEST} says; it was changed: {_AGAIN}")
    manifest.verify(folder)
    extra = sorted(set(files_of(folder)) - set(manifest.files))
    if extra:
        raise Fault(
            f"{folder / extra[0]}: not listed in {MANIFEST}; {len(extra)} file(s) were added to the bundle: remove them"
        )
    _recompute(folder, manifest)
    return manifest


def _recompute(folder: Path, manifest: Bundle) -> None:
    """Make tables and recommendation again from the evaluations in the bundle. Raises Fault where they are others.

    So an edited number is found even where every hash has been made to fit.
    """
    if not manifest.roles:
        raise Fault(f"{folder}: a bundle of version {manifest.code}, which does not say what is what; make the bundle again")
    sources = Sources.inside(folder, manifest.roles)
    for role, table in sources.tables.items():
        paths = [sources.of_row(row).path for row in table.rows]
        _require_equal(table, make_table(table.title, paths), folder / sources.source(role).place)
    for source in (each for each in sources.all if each.role == "space_table"):
        table = MetricsTable.read(source.path)
        paths = [sources.of_row(row).path for row in table.rows]
        _require_equal(table, make_table(table.title, paths), folder / source.place)
    selection = Selection(**manifest.configuration_values["evaluation"]["selection"])
    chosen, tables = sources.one("recommendation", Recommendation), sources.tables
    found = recommend(tables["last_k"], tables["alpha_sweep"], tie_errors=selection.tie_errors, rule=selection.rule)
    again = chosen.model_copy(update=found._asdict())
    _require_equal(chosen, again, folder / sources.source("recommendation").place)


def _require_equal(held: Artifact, again: Artifact, path: Path) -> None:
    ours, theirs = held.model_dump(exclude={"code"}), again.model_dump(exclude={"code"})
    differing = sorted(name for name in ours if ours[name] != theirs[name])
    if differing:
        raise Fault(
            f"{path}: does not follow from what it was made from: {', '.join(differing)} differ; it was changed: {_AGAIN}"
        )


def point_to(bundle: Path, output: Path) -> None:
    """Make results/claim_bundle.done from a bundle's own, after checking the bundle."""
    verify_bundle(bundle.parent)
    with publish(output) as scratch:
        scratch.write_bytes(bundle.read_bytes())


def summary(claim: Path) -> list[str]:
    """The claim in lines for a terminal, with the places of bundle, grid and report. `claim`: results/claim_bundle.done."""
    done = BundleDone.read(claim)
    folder = claim.parent / done.folder
    table = MetricsTable.read(folder / "tables/claim.json")
    places = {"bundle": "", "claim": "CLAIM.md", "report": "report.html", "sample grid": "figures/claim_grid.png"}
    return [
        f"claim of {done.run}",
        *claim_lines(table),
        *(f"{what + ':':<13}{folder / name}" for what, name in places.items()),
    ]


def claim_lines(table: MetricsTable) -> list[str]:
    """The claim as an aligned table for a terminal, a row per seed, and what its numbers may be called."""
    names = ("step", "alpha", "seed", "images", table.distance_name, table.score_name)
    header = [*names, "precision", "recall", "class accuracy", "diversity"]
    rows = [
        [
            str(row["step"]),
            f"{row['alpha']:g}",
            str(row["seed"]),
            f"{table.contract.samples:,}",
            f"{row['distance']:.4g} ± {row['distance_error']:.2g}",
            f"{row['score']:.3f} ± {row['score_std']:.2g}",
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            "-" if row["label_accuracy"] is None else f"{row['label_accuracy']:.3f}",
            f"{row['within_class_diversity']:.3f}",
        ]
        for row in table.rows
    ]
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in [header, *rows]]
    return [*lines, f"under contract {table.contract_hash[:12]} (network: {table.contract.network})"]
