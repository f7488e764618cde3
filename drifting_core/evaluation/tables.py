"""Tables of evaluations: a row each, one contract, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_core.artifacts import Metrics, MetricsTable, hashes, sha256_file
from drifting_core.artifacts.identity import digest
from drifting_core.artifacts.provenance import code_version
from drifting_core.evaluation.contract import contract_hash, require_same
from drifting_core.faults import Fault

COLUMNS = (
    "step", "alpha", "seed", "distance", "distance_error", "distance_residue", "distance_low", "distance_high",
    "distance_infinite", "distance_infinite_error", "kernel_distance", "kernel_distance_std", "score", "score_std",
    "precision", "recall", "label_accuracy", "within_class_diversity", "sample_std",
)  # fmt: skip


def row_name(row: Mapping[str, Any]) -> str:
    """How a row is called as an input, and in messages: step, alpha, seed."""
    return f"step_{row['step']}/alpha_{row['alpha']:g}/seed_{row['seed']}"


def make_table(title: str, paths: Sequence[Path]) -> MetricsTable:
    """The table of these metrics files, in the order of step, alpha, seed; each row carries the hash of its file.

    Raises Fault when contracts differ, names are not what the contract gives, or two files are the same evaluation.
    """
    metrics = {path: Metrics.read(path) for path in paths}
    contract = require_same({str(path): m.contract for path, m in metrics.items()})
    rows: list[dict[str, Any]] = []
    sources: dict[str, Path] = {}
    named = {
        "contract_hash": contract_hash(contract),
        "distance_name": contract.distance_name,
        "score_name": contract.score_name,
    }
    for path, measured in metrics.items():
        for field, expected in named.items():
            if getattr(measured, field) != expected:
                raise Fault(
                    f"{path}: {field} is {getattr(measured, field)}, its contract says {expected}; it was changed: "
                    "evaluate again"
                )
        row = {column: getattr(measured, column) for column in COLUMNS}
        if row_name(row) in sources:
            raise Fault(f"{path} and {sources[row_name(row)]} are the same evaluation ({row_name(row)}); give it once")
        sources[row_name(row)] = path
        rows.append(row | {"metrics_sha256": sha256_file(path)})
    rows.sort(key=lambda row: (row["step"], row["alpha"], row["seed"]))
    return MetricsTable(
        configuration=digest(sorted({m.configuration for m in metrics.values()})),
        code=code_version(),
        inputs=hashes(sources),
        title=title,
        contract=contract,
        rows=rows,
        **named,
    )
