"""Contracts: names that are promises, refusals that show both sides, the uint8 rules."""

from __future__ import annotations

import pytest
import torch

from drifting_core.artifacts import EvaluationContract
from drifting_core.artifacts.identity import digest
from drifting_core.evaluation.contract import contract_hash, explain_name, require_same, to_uint8
from drifting_core.faults import Fault
from tests.unit.evaluation.samples import PLAIN, PUBLISHED, contract


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ("FD", "DS")),
        (PUBLISHED, ("FID", "IS")),
        (PUBLISHED | {"network": "classifier"}, ("FD", "DS")),
        (PUBLISHED | {"network_sha256": "0" * 64}, ("FD", "DS")),  # random or other weights
        (PUBLISHED | {"reference_images": 3000}, ("FD", "IS")),
        (PUBLISHED | {"reference_split": "val", "reference_images": 50_000}, ("FID-val", "IS")),
    ],
)
def test_only_published_weights_and_all_training_images_make_an_fid(changes, names):
    made = contract(**changes)
    assert (made.distance_name, made.score_name) == names
    assert made.kernel_name == {"DS": "KD", "IS": "KID"}[names[1]]
    assert ("not comparable" in explain_name(made)) == (names[0] != "FID")


ADDED = {"sampling_precision": "float32", "kernel_subsets": 0, "kernel_subset_size": 0, "extrapolation": 0}


def test_fields_that_came_later_change_no_older_contract():
    assert EvaluationContract.model_fields.keys() == PLAIN.keys() | ADDED.keys()
    assert contract_hash(contract(**ADDED)) == contract_hash(contract())
    assert contract_hash(contract()) == digest(PLAIN)


@pytest.mark.parametrize("field", sorted(PLAIN | ADDED))
def test_every_field_changes_the_hash_and_is_named_in_the_refusal(field):
    value = (PLAIN | ADDED)[field]
    other = contract(**{field: value + 1 if isinstance(value, int) else f"{value}x"})
    assert contract_hash(other) != contract_hash(contract())
    with pytest.raises(Fault, match=rf"(?s)one\.json and two\.json .*{field}: .* against .*"):
        require_same({"one.json": contract(), "two.json": other})


def test_equal_contracts_stand_together():
    assert require_same({"one": contract(), "two": contract()}) == contract()
    with pytest.raises(Fault, match="at least one"):
        require_same({})


def test_uint8_rules_where_they_differ():
    images = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0], dtype=torch.float64)
    assert to_uint8(images, "truncate").tolist() == [0, 0, 0, 254, 255]
    assert to_uint8(images, "round").tolist() == [0, 0, 1, 255, 255]
    assert to_uint8(images, "adm").tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize("rule", ["truncate", "round", "adm"])
def test_bytes_survive_the_way_there_and_back(rule):
    every = torch.arange(256, dtype=torch.float64) / 255
    # x * 255 / 255 is exact or a rounding below: the release's rule may lose one there, which is why rules are recorded.
    assert (to_uint8(every, rule).int() - torch.arange(256)).abs().max() <= (1 if rule == "truncate" else 0)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, float("nan")])
def test_pixels_outside_the_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        to_uint8(torch.tensor([0.5, wrong]), "truncate")
