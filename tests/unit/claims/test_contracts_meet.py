"""Every place where numbers, or their parts, of two contracts could meet: each refuses, with both shown.

What decides a contract beside the samples: the VAE, the reference statistics, the uint8 rule, the feature weights.
"""

from __future__ import annotations

import re

import pytest

from drifting_core import artifacts
from drifting_core.claims.sources import Sources
from drifting_core.config import Contract
from drifting_core.evaluation.contract import STATISTICS, contract_hash, make_contract, require_same
from drifting_core.evaluation.recommend import recommend
from drifting_core.evaluation.seeds import compare_seeds
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from tests.unit.evaluation.samples import MADE, contract, write_claim, write_metrics

CHANGES = {
    "VAE": ("tokenizer_sha256", "e" * 64),
    "reference statistics": ("reference_sha256", "e" * 64),
    "uint8 rule": ("uint8", "round"),
    "feature weights": ("network_sha256", "e" * 64),
}
each_change = pytest.mark.parametrize(("field", "value"), CHANGES.values(), ids=CHANGES)


def both(field, value):
    """A refusal that names the field, and shows what stands on either side of it."""
    ours = contract().model_dump()[field]
    return rf"(?s){field}: ({ours!r} against {value!r}|{value!r} against {ours!r})"


def parts(**changes):
    """The artifacts of one evaluation, and what they are made into."""
    how = contract(**changes)
    files = {name: artifacts.FileRecord(bytes=1, sha256=digest) for name, digest in
             ((STATISTICS, how.reference_sha256), ("features_val.h5", how.manifold_sha256))}  # fmt: skip
    return {
        "samples": artifacts.Samples(
            **MADE, step=1, alpha=1.0, seed=1, samples=500, classes=2, compute_batch=50, export_sha256="f" * 64,
            tokenizer_sha256=how.tokenizer_sha256,
        ),
        "tokenizer": artifacts.TokenizerManifest(
            **MADE, source="t", folder="vae", weights_sha256=how.tokenizer_sha256, scaling_factor=1.0, channels=4, factor=2
        ),
        "network": artifacts.FeatureNetwork(
            **MADE, network="classifier", weights="w", weights_sha256=how.network_sha256, dimensions=8, classes=2,
            resize="none",
        ),
        "reference": artifacts.ReferenceStatistics(
            **MADE, files=files, images=3000, dimensions=8, network_sha256=how.network_sha256, image_transforms=[],
            compute_batch=50, precision_recall_images=500,
        ),
    }  # fmt: skip


@each_change
def test_each_changes_the_contract_that_an_evaluation_makes(field, value):
    before = make_contract(Contract(), **parts())
    how = Contract(uint8=value) if field == "uint8" else Contract()
    after = make_contract(how, **parts(**({} if field == "uint8" else {field: value})))
    assert contract_hash(after) != contract_hash(before)
    with pytest.raises(Fault, match=f"{field}: "):
        require_same({"before": before, "after": after})


@pytest.mark.parametrize(
    ("given", "changes", "field"),
    [
        ("tokenizer", {"tokenizer_sha256": "e" * 64}, "tokenizer_sha256"),
        ("samples", {"tokenizer_sha256": "e" * 64}, "tokenizer_sha256"),
        ("network", {"network_sha256": "e" * 64}, "network_sha256"),
        ("reference", {"network_sha256": "e" * 64}, "network_sha256"),
    ],
)
def test_an_evaluation_and_an_audit_refuse_parts_of_different_makes(given, changes, field):
    """`make_contract` is the first thing that either does."""
    mixed = parts() | {given: parts(**changes)[given]}
    ours, theirs = contract().model_dump()[field][:16], "e" * 16
    with pytest.raises(Fault) as refused:
        make_contract(Contract(), **mixed)
    assert ours in str(refused.value)
    assert theirs in str(refused.value)


@each_change
def test_a_table(tmp_path, field, value):
    paths = [write_metrics(tmp_path / "a/metrics.json", 1, 1.0, 1, 5.0),
             write_metrics(tmp_path / "b/metrics.json", 2, 1.0, 1, 5.0, **{field: value})]  # fmt: skip
    with pytest.raises(Fault, match=both(field, value)):
        make_table("last_k", paths)


@each_change
def test_the_recommendation(tmp_path, field, value):
    tables = [
        make_table(name, [write_metrics(tmp_path / name / "metrics.json", 1, 1.0, 1, 5.0, **changes)])
        for name, changes in (("last_k", {}), ("alpha_sweep", {field: value}))
    ]
    with pytest.raises(Fault, match=both(field, value)):
        recommend(*tables, tie_errors=2.0)


@each_change
def test_training_seeds(tmp_path, field, value):
    claims = {
        seed: make_table("claim", [write_metrics(tmp_path / f"{seed}/metrics.json", 1, 1.0, 1000, 5.0, **changes)])
        for seed, changes in ((0, {}), (1, {field: value}))
    }
    with pytest.raises(Fault, match=both(field, value)):
        compare_seeds(claims)


@each_change
def test_a_bundle_whose_claim_is_of_another_contract_than_its_selection(tmp_path, field, value):
    given = write_claim(tmp_path / "ours")
    other = dict(write_claim(tmp_path / "theirs", **{field: value}))
    swapped = [(role, other["claim"] if role == "claim" else path) for role, path in given]
    swapped += [("metrics", path) for role, path in write_claim(tmp_path / "theirs", **{field: value}) if role == "metrics"]
    with pytest.raises(Fault, match=both(field, value)):
        Sources.below(tmp_path, swapped)


@pytest.mark.parametrize("role", ["tokenizer", "network", "reference"])
def test_a_bundle_whose_parts_are_not_those_of_its_evaluations(tmp_path, role):
    field = {"tokenizer": "tokenizer_sha256", "network": "network_sha256", "reference": "reference_sha256"}[role]
    other = dict(write_claim(tmp_path / "theirs", **{field: "e" * 64}))
    given = [(name, other[role] if name == role else path) for name, path in write_claim(tmp_path / "ours")]
    message = f"the claim was made with the {role} {contract().model_dump()[field][:16]}.*is {'e' * 16}"
    with pytest.raises(Fault, match=message):
        Sources.below(tmp_path, given)


def test_a_forged_name_is_no_contract(tmp_path):
    """What a distance may be called follows from the contract beside it; a file that says otherwise is refused."""
    path = write_metrics(tmp_path / "metrics.json", 1, 1.0, 1, 5.0)
    path.write_text(re.sub(r'"distance_name": "FD"', '"distance_name": "FID"', path.read_text()))
    with pytest.raises(Fault, match="distance_name is FID, its contract says FD"):
        make_table("claim", [path])
