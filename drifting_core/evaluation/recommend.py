"""From the tables of the selection seeds to the export and guidance that the claim reports: a pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drifting_core.artifacts import Choice, MetricsTable, Recommendation, hashes
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Selection
from drifting_core.evaluation.contract import contract_hash, require_same
from drifting_core.evaluation.tables import row_name
from drifting_core.faults import Fault

# inception_score's standard deviation is over this many splits; the error of their mean is smaller by its root.
_SPLITS = 10


class Candidate(NamedTuple):
    """A step and alpha with its numbers, averaged over the selection seeds."""

    choice: Choice
    distance: float
    distance_error: float
    score: float
    score_error: float


class Selected(NamedTuple):
    """What `recommend` found; the fields of artifacts.Recommendation of the same names."""

    rule: str
    best_distance: Choice
    best_score: Choice
    tied: list[Choice]
    tied_score: list[Choice]
    recommended: Choice
    reason: str


# Which of the candidates that are tied by distance is taken (selection.rule), and how that is said.
RULES: dict[str, tuple[Callable[[Candidate], tuple[float, ...]], str]] = {
    "latest_tied": (lambda c: (-c.choice.step, c.choice.alpha), "the latest step, then the smallest alpha"),
    "best_score_tied": (
        lambda c: (-c.score, -c.choice.step, c.choice.alpha),
        "the highest {score}, then the latest step, then the smallest alpha",
    ),
    "lowest_distance": (lambda c: (c.distance, -c.choice.step, c.choice.alpha), "the lowest itself"),
}


def recommend(last_k: MetricsTable, sweep: MetricsTable, *, tie_errors: float, rule: str = "latest_tied") -> Selected:
    """Choose among all rows of both tables, by one of RULES.

    A candidate is tied with the best when it is within tie_errors * sqrt(e1^2 + e2^2) of it, e being standard errors.
    Raises Fault for unlike contracts, numbers that are not finite, and an evaluation that stands in both tables with
    different numbers.
    """
    contract = require_same({"the last-K table": last_k.contract, "the alpha sweep": sweep.contract})
    candidates = _candidates([last_k, sweep])
    name = contract.distance_name
    prefer, said = RULES[rule]
    by_distance = _tied(candidates, lambda c: c.distance, lambda c: c.distance_error, tie_errors)
    by_score = _tied(candidates, lambda c: -c.score, lambda c: c.score_error, tie_errors)
    recommended = min(by_distance, key=prefer)
    return Selected(
        rule=f"{rule}: lowest {name}; of all within {tie_errors:g} standard errors of the difference from it, "
        + said.format(score=contract.score_name),
        best_distance=by_distance[0].choice,
        best_score=by_score[0].choice,
        tied=_in_order(by_distance[1:]),
        tied_score=_in_order(by_score[1:]),
        recommended=recommended.choice,
        reason=_reason(by_distance, recommended, len(candidates), name),
    )


def write_recommendation(output: Path, how: Selection, *, last_k: Path, sweep: Path, configuration: str) -> None:
    """Publish the recommendation from the two tables' files."""
    tables = MetricsTable.read(last_k), MetricsTable.read(sweep)
    contract = tables[0].contract
    Recommendation(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"last_k": last_k, "alpha_sweep": sweep}),
        contract_hash=contract_hash(contract),
        distance_name=contract.distance_name,
        score_name=contract.score_name,
        **recommend(*tables, tie_errors=how.tie_errors, rule=how.rule)._asdict(),
    ).write(output)


def _candidates(tables: Sequence[MetricsTable]) -> list[Candidate]:
    """One per (step, alpha), in that order, whatever the order of the rows."""
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for table in tables for row in table.rows):
        name = row_name(row)
        numbers = [row[column] for column in ("distance", "distance_error", "score", "score_std")]
        if not all(math.isfinite(number) for number in numbers):
            raise Fault(f"recommendation: {name} has numbers that are not finite ({numbers}); look at its evaluation")
        if rows.setdefault(name, row) != row:
            raise Fault(f"recommendation: {name} stands in both tables with different numbers; make both tables again")
    by_choice: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for row in sorted(rows.values(), key=lambda row: (row["step"], row["alpha"], row["seed"])):
        by_choice.setdefault((row["step"], row["alpha"]), []).append(row)
    return [
        Candidate(
            Choice(step=step, alpha=alpha),
            _mean([row["distance"] for row in own]),
            _error_of_mean([row["distance_error"] for row in own]),
            _mean([row["score"] for row in own]),
            _error_of_mean([row["score_std"] / math.sqrt(_SPLITS) for row in own]),
        )
        for (step, alpha), own in by_choice.items()
    ]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _error_of_mean(errors: list[float]) -> float:
    return math.hypot(*errors) / len(errors)


def _tied(
    candidates: list[Candidate],
    loss: Callable[[Candidate], float],
    error: Callable[[Candidate], float],
    tie_errors: float,
) -> list[Candidate]:
    """The candidate of lowest loss, then all others within the tie limit of it."""
    best = min(candidates, key=lambda c: (loss(c), -c.choice.step, c.choice.alpha))
    others = [c for c in candidates if c is not best]
    return [best] + [c for c in others if loss(c) - loss(best) <= tie_errors * math.hypot(error(c), error(best))]


def _in_order(candidates: list[Candidate]) -> list[Choice]:
    return sorted((c.choice for c in candidates), key=lambda choice: (choice.step, choice.alpha))


def _reason(by_distance: list[Candidate], recommended: Candidate, total: int, name: str) -> str:
    best = by_distance[0]
    found = (
        f"Of {total} candidates, {_describe(best)} has the lowest {name}, {best.distance:.4g} ± {best.distance_error:.2g}."
    )
    if len(by_distance) == 1:
        return f"{found} No other is within the uncertainty of it."
    tie = f"{len(by_distance) - 1} other(s) cannot be told from it within the uncertainty."
    if recommended is best:
        return f"{found} {tie} It is also what the rule takes among them."
    return (
        f"{found} {tie} Among them the rule takes {_describe(recommended)}, "
        f"{recommended.distance:.4g} ± {recommended.distance_error:.2g}."
    )


def _describe(candidate: Candidate) -> str:
    return f"step {candidate.choice.step} at alpha {candidate.choice.alpha:g}"
