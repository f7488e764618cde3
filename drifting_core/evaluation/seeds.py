"""How far the claim depends on the seed of the training: the claims of runs that differ in nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_core.artifacts import MetricsTable, SeedsTable, Spread, hashes, publish_text, records
from drifting_core.artifacts.identity import digest
from drifting_core.artifacts.provenance import code_version
from drifting_core.evaluation.contract import contract_hash, explain_name, require_same
from drifting_core.faults import Fault

PAGE = "table.md"
NUMBERS = (
    "distance", "distance_infinite", "kernel_distance", "score", "precision", "recall", "label_accuracy",
    "within_class_diversity", "sample_std",
)  # fmt: skip


def write_seeds_table(output: Path, claims: Mapping[int, Path]) -> None:
    """Publish table.md and then `output` from the claim's table of each training seed. Raises Fault as `compare_seeds`."""
    table = compare_seeds({seed: MetricsTable.read(path) for seed, path in claims.items()})
    publish_text(output.parent / PAGE, page(table))
    table.inputs = hashes({f"seed_{seed}": path for seed, path in claims.items()})
    table.files = records(output.parent, [PAGE])
    table.write(output)


def compare_seeds(claims: Mapping[int, MetricsTable]) -> SeedsTable:
    """The claims by training seed, in the order of the seeds, and mean, smallest and largest of every number over them.

    Raises Fault when contracts differ, or when claims were drawn with unlike sampling seeds.
    """
    contract = require_same({f"training seed {seed}": table.contract for seed, table in claims.items()})
    drawn = {seed: sorted(row["seed"] for row in table.rows) for seed, table in claims.items()}
    for seed, sampling in drawn.items():
        if sampling != next(iter(drawn.values())):
            raise Fault(f"claims were drawn with unlike sampling seeds ({drawn}); make that of training seed {seed} again")
    rows = [_row(seed, claims[seed]) for seed in sorted(claims)]
    return SeedsTable(
        configuration=digest(sorted(table.configuration for table in claims.values())),
        code=code_version(),
        contract=contract,
        contract_hash=contract_hash(contract),
        distance_name=contract.distance_name,
        score_name=contract.score_name,
        seeds=len(rows),
        rows=rows,
        spread={name: _spread([row[name] for row in rows]) for name in NUMBERS if rows[0][name] is not None},
    )


def _row(seed: int, claim: MetricsTable) -> dict[str, Any]:
    """Step and guidance that this run's recommendation chose, and its numbers: means over the claim's sampling seeds."""
    first = claim.rows[0]
    chosen = {"training_seed": seed, "step": first["step"], "alpha": first["alpha"]}
    return chosen | {name: _mean([row.get(name) for row in claim.rows]) for name in NUMBERS}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=statistics.mean(values), smallest=min(values), largest=max(values))


def page(table: SeedsTable) -> str:
    """The table in Markdown."""
    names = [name for name in NUMBERS if name in table.spread]
    titles = {
        "distance": table.distance_name,
        "distance_infinite": f"{table.distance_name}∞",
        "kernel_distance": table.contract.kernel_name,
        "score": table.score_name,
    }
    head = ["training seed", "step", "alpha", *(titles.get(name, name.replace("_", " ")) for name in names)]
    lines = [
        [str(row["training_seed"]), str(row["step"]), f"{row['alpha']:g}", *(f"{row[name]:.4g}" for name in names)]
        for row in table.rows
    ]
    for which in ("mean", "smallest", "largest"):
        lines.append([which, "", "", *(f"{getattr(table.spread[name], which):.4g}" for name in names)])
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(
        [
            f"# {table.seeds} training seed(s)",
            "",
            f"Claims of runs that differ in training.seed only; {table.contract.samples:,} images each, evaluation contract "
            f"{table.contract_hash[:16]}. {explain_name(table.contract)}",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )
