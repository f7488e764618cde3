"""The recommendation is a pure function of its tables' rows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_core.artifacts import Choice, MetricsTable
from drifting_core.config import Selection
from drifting_core.evaluation.contract import contract_hash
from drifting_core.evaluation.recommend import RULES, recommend
from drifting_core.faults import Fault
from tests.unit.evaluation.samples import contract


def row(step, alpha, distance, error=0.1, score=2.0, seed=1, **others):
    return {
        "step": step, "alpha": alpha, "seed": seed, "distance": distance, "distance_error": error,
        "score": score, "score_std": 0.1,
    } | others  # fmt: skip


def table(rows, **changes):
    made = contract(**changes)
    return MetricsTable(
        configuration="0" * 64, code="0", title="t", contract=made, contract_hash=contract_hash(made),
        distance_name=made.distance_name, score_name=made.score_name, rows=rows,
    )  # fmt: skip


def chosen(rows, split=None, tie_errors=2.0, rule="latest_tied"):
    split = len(rows) // 2 if split is None else split
    return recommend(table(rows[:split]), table(rows[split:]), tie_errors=tie_errors, rule=rule)


number = st.floats(1, 100)
candidates = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1.0, 1.5, 2.0]), number, st.floats(0, 10), number),
    min_size=1, max_size=8, unique_by=lambda c: c[:2],
)  # fmt: skip


@given(candidates, st.data())
def test_order_of_rows_and_their_table_do_not_matter(made, data):
    rows = [row(*values) for values in made]
    shuffled = data.draw(st.permutations(rows))
    assert chosen(rows) == chosen(shuffled, split=data.draw(st.integers(0, len(rows))))


@given(candidates)
def test_the_rule_is_obeyed(made):
    rows = [row(*values) for values in made]
    found = chosen(rows)
    of = {(r["step"], r["alpha"]): r for r in rows}
    best = of[found.best_distance.step, found.best_distance.alpha]
    assert best["distance"] == min(r["distance"] for r in rows)
    limit = {
        key for key, r in of.items()
        if r["distance"] - best["distance"] <= 2 * math.hypot(r["distance_error"], best["distance_error"])
    }  # fmt: skip
    assert {(c.step, c.alpha) for c in found.tied} | {(best["step"], best["alpha"])} == limit
    assert (found.recommended.step, found.recommended.alpha) == min(limit, key=lambda key: (-key[0], key[1]))
    assert of[found.best_score.step, found.best_score.alpha]["score"] == max(r["score"] for r in rows)


@given(candidates)
def test_every_declared_rule_is_obeyed_and_said(made):
    rows = [row(*values) for values in made]
    of = {(r["step"], r["alpha"]): r for r in rows}
    for rule in RULES:
        found = chosen(rows, rule=rule)
        tied = [of[c.step, c.alpha] for c in [found.best_distance, *found.tied]]
        taken = of[found.recommended.step, found.recommended.alpha]
        assert taken in tied
        assert found.rule.startswith(f"{rule}: lowest FD")
        if rule == "best_score_tied":
            assert taken["score"] == max(r["score"] for r in tied)
        if rule == "lowest_distance":
            assert taken["distance"] == min(r["distance"] for r in rows)


def test_the_configuration_can_declare_every_rule_and_no_other():
    declared = Selection.model_fields["rule"].annotation
    assert set(declared.__args__) == set(RULES)


@given(candidates, st.data())
def test_a_candidate_that_is_worse_beyond_the_uncertainty_changes_nothing(made, data):
    """Better dominates worse: neither the choice nor the ties look at it."""
    rows = [row(*values) for values in made]
    found = chosen(rows)
    worst = max(r["distance"] + 3 * math.hypot(r["distance_error"], 1.0) for r in rows) + 1
    score = min(r["score"] for r in rows) - 1
    far = row(99, 3.0, worst + data.draw(number), error=data.draw(st.floats(0, 1)), score=score, score_std=0.0)
    with_it = chosen([*rows, far])
    assert (with_it.recommended, with_it.tied, with_it.best_score) == (found.recommended, found.tied, found.best_score)


def test_clearly_better_wins_whatever_its_step():
    found = chosen([row(250, 1.5, 5.0), row(500, 1.5, 9.0), row(1000, 1.0, 9.0)])
    assert found.recommended == Choice(step=250, alpha=1.5)
    assert found.tied == []


def test_ties_stay_ties_and_the_later_step_is_taken():
    found = chosen([row(500, 1.5, 9.9), row(1000, 1.5, 10.0), row(1000, 1.0, 10.0)])
    assert found.best_distance == Choice(step=500, alpha=1.5)
    assert found.tied == [Choice(step=1000, alpha=1.0), Choice(step=1000, alpha=1.5)]
    assert found.recommended == Choice(step=1000, alpha=1.0)
    assert "step 1000 at alpha 1" in found.reason


def test_seeds_of_a_candidate_are_averaged():
    rows = [row(500, 1.0, 1.0, seed=1), row(500, 1.0, 9.0, seed=2), row(1000, 1.0, 4.0, seed=1), row(1000, 1.0, 4.0, seed=2)]
    assert chosen(rows).best_distance == Choice(step=1000, alpha=1.0)


def test_the_same_evaluation_in_both_tables_counts_once():
    rows = [row(1000, 1.5, 10.0)]
    assert "Of 1 candidates" in recommend(table(rows), table(rows), tie_errors=2.0).reason
    with pytest.raises(Fault, match="different numbers"):
        recommend(table(rows), table([row(1000, 1.5, 11.0)]), tie_errors=2.0)


@pytest.mark.parametrize("column", ["distance", "distance_error", "score", "score_std"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(column, value):
    with pytest.raises(Fault, match=r"step_500/alpha_1\.5/seed_1 has numbers that are not finite"):
        chosen([row(500, 1.5, 9.9) | {column: value}, row(1000, 1.5, 10.0)])


def test_unlike_contracts_are_refused():
    with pytest.raises(Fault, match="uint8: 'truncate' against 'round'"):
        recommend(table([row(1, 1.0, 1.0)]), table([row(2, 1.0, 1.0)], uint8="round"), tie_errors=2.0)
