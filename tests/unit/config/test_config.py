"""The configuration: what is refused and how it is said, what is hashed, what is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drifting_core import config as settings
from drifting_core.artifacts.identity import Section, digest, identity, operations
from drifting_core.config import Configuration, load, load_file, sections
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout

STAGES = ("data", "tokenizer", "network", "reference", "encoder", "run", "bundle")
PRESETS = ("demo", "smoke", "ablation", "b2", "l2")


def keys(values: dict[str, Any]) -> dict[str, str]:
    loaded = load(values)
    return {stage: digest(loaded.stage_slice(stage)) for stage in STAGES}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_name_themselves(preset: str, root: Path) -> None:
    assert load_file(root / "config" / f"{preset}.yaml").name == preset


def test_all_problems_are_told_at_once_with_dotted_keys(demo_values: dict[str, Any]) -> None:
    demo_values["training"]["lerning_rate"] = demo_values["training"].pop("learning_rate")
    demo_values["data"]["latents"]["compute_batch"] = -3
    demo_values["evaluatoin"] = {}
    with pytest.raises(Fault) as caught:
        load(demo_values)
    message = str(caught.value)
    assert "training.lerning_rate: unknown key; did you mean 'learning_rate'?" in message
    assert "training.learning_rate: missing" in message
    assert "data.latents.compute_batch: found -3" in message
    assert "evaluatoin: unknown key; did you mean 'evaluation'?" in message


def test_an_unknown_key_with_no_neighbour_lists_the_known_ones(demo_values: dict[str, Any]) -> None:
    demo_values["objective"]["bank"]["zzz"] = 1
    with pytest.raises(Fault, match="objective.bank.zzz: unknown key; known keys here: per_class, pushes_per_step"):
        load(demo_values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["training"].update(milestone_every=300), "must be a multiple of milestone_every"),
        (lambda v: v["evaluation"]["report"].update(seeds=[1]), "a claim needs seeds that chose nothing"),
        (lambda v: v["tokenizer"].update(source="hub"), "needs the key 'hub'"),
        (lambda v: v["generator"].update(patch_size=3), "generator.patch_size"),
        (lambda v: v["evaluation"]["selection"].update(last_k=9), "exceeds the 4 trained milestones"),
        (lambda v: v["evaluation"]["report"].update(samples=1001), "evaluation.report.samples"),
        (
            lambda v: v["evaluation"].update(sampling={"label_plan": "validation"}),
            r"evaluation.report.samples: 1000, but evaluation.sampling.label_plan: .* 500 .*data.expected.val_images",
        ),
        (lambda v: v["objective"]["bank"].update(pushes_per_step=2), "labels come from the pushes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(demo_values: dict[str, Any], change: Any, said: str) -> None:
    change(demo_values)
    with pytest.raises(Fault, match=said):
        load(demo_values)


def test_validation_labels_need_no_multiple_of_the_classes(demo_values: dict[str, Any]) -> None:
    demo_values["evaluation"]["sampling"]["label_plan"] = "validation"
    demo_values["evaluation"]["selection"]["samples"] = 123
    demo_values["evaluation"]["report"]["samples"] = 500
    made = load(demo_values)
    run = made.key("run")
    assert Layout(made).labels_of(run) == [f"results/data/{made.key('data')}/index.json"]
    demo_values["evaluation"] |= {"sampling": {}, "selection": demo_values["evaluation"]["selection"] | {"samples": 120}}
    assert Layout(load(demo_values)).labels_of(run) == []


def test_operations_rename_nothing_and_identity_renames_what_is_below(demo_values: dict[str, Any]) -> None:
    before = keys(demo_values)
    for section, gpus in (("training", 5), ("encoder", 2)):
        demo_values[section]["resources"] = {"threads": 7, "gpus": gpus}
        demo_values[section]["log_every"] = 3
    demo_values["training"].update(steps=2000, commit_every=9, micro_batches=5)
    demo_values["data"]["archives"]["train"] = "elsewhere.tar"
    demo_values["results"] = "other"
    assert keys(demo_values) == before

    demo_values["training"]["learning_rate"] = 1e-3
    after = keys(demo_values)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"run", "bundle"}
    demo_values["data"]["latents"]["seed"] = 5
    assert all(keys(demo_values)[stage] != before[stage] for stage in STAGES)


FINETUNE = {"steps": 50, "batch": 32, "learning_rate": 5e-4, "ramp_steps": 10, "weight": 0.2, "ema": 0.9}


def test_a_finetune_is_a_stage_with_a_folder_of_its_own(demo_values: dict[str, Any]) -> None:
    """The encoder before it is the very one that a configuration without a fine-tune has, and is shared with it."""
    plain = load(demo_values)
    demo_values["encoder"]["finetune"] = FINETUNE
    tuned = load(demo_values)
    _, before = tuned.relatives()
    assert plain.relatives() == [plain]
    assert before.encoder == plain.encoder
    assert before.key("encoder") == plain.key("encoder")
    assert tuned.key("encoder").startswith("mae_w32_ft-")
    assert tuned.key("run") != plain.key("run")
    demo_values["encoder"]["finetune"] = FINETUNE | {"steps": 60}
    longer = load(demo_values)
    assert longer.key("encoder") != tuned.key("encoder")
    assert longer.relatives()[1].key("encoder") == plain.key("encoder")


def test_the_recipe_of_a_finetune_is_finetune_from_its_first_step(demo_values: dict[str, Any]) -> None:
    demo_values["encoder"]["finetune"] = FINETUNE
    encoder = load(demo_values).encoder
    recipe = encoder.recipe
    assert (recipe.steps, recipe.finetune_steps, recipe.finetune_ramp_steps) == (50, 50, 10)
    assert (recipe.batch, recipe.learning_rate, recipe.finetune_weight, recipe.ema) == (32, 5e-4, 0.2, 0.9)
    assert encoder.before_finetune.recipe == encoder.training


def test_a_finetuned_import_is_trained_here_and_what_it_starts_from_is_not(demo_values: dict[str, Any]) -> None:
    demo_values["encoder"].update(source="released:mae_latent_256", finetune=FINETUNE)
    tuned, before = load(demo_values).relatives()
    assert not tuned.encoder.imported
    assert before.encoder.imported
    assert list(tuned.downloads) == list(before.downloads) == ["mae_latent_256-1a5afa9f"]


def test_width_variants_are_what_a_configuration_of_that_width_makes(demo_values: dict[str, Any]) -> None:
    before = keys(demo_values)
    demo_values["encoder"]["variants"] = [16, 64]
    assert keys(demo_values) == before, "asking for variants renames nothing"
    _, narrow, wide = load(demo_values).relatives()
    del demo_values["encoder"]["variants"]
    demo_values["encoder"].update(name="mae_w64", base_width=64)
    assert wide.key("encoder") == load(demo_values).key("encoder")
    assert narrow.key("encoder").startswith("mae_w16-")


@pytest.mark.parametrize(("section", "changed", "message"), [
    ("encoder", {"init_from": "m.json", "source": "folder"}, r"encoder.init_from: the encoder is imported \(folder\)"),
    ("encoder", {"init_from": "m.json", "source": "folder", "finetune": FINETUNE}, "the encoder is imported"),
    ("training", {"init_from": "m.json", "_generator": "folder"}, r"init_from: the generator is imported \(folder\)"),
    ("encoder", {"variants": [64], "source": "folder"}, "encoder.variants: folder has one width"),
    ("encoder", {"variants": [64], "init_from": "m.json"}, "encoder.variants: m.json has one width"),
    ("encoder", {"variants": [64, 64]}, "each width is named once"),
    ("encoder", {"variants": [32]}, "each width is named once"),
])  # fmt: skip
def test_stages_that_cannot_be_are_refused(
    demo_values: dict[str, Any], section: str, changed: dict[str, Any], message: str
) -> None:
    demo_values["generator"]["source"] = changed.pop("_generator", "trained")
    demo_values[section].update(changed)
    with pytest.raises(Fault, match=message):
        load(demo_values)


def test_a_published_tokenizer_is_shared_by_all_data(root: Path) -> None:
    ablation, l2 = (load_file(root / "config" / f"{name}.yaml") for name in ("ablation", "l2"))
    assert ablation.key("tokenizer") == l2.key("tokenizer")
    assert ablation.key("data") == l2.key("data")
    assert ablation.key("encoder") != l2.key("encoder")


def test_a_field_at_its_default_is_not_hashed(demo_values: dict[str, Any]) -> None:
    before = keys(demo_values)
    del demo_values["objective"]["encoder_features"]
    del demo_values["data"]["latents"]["posterior"]
    assert keys(demo_values) == before


def test_a_family_is_all_that_decides_the_claims_but_the_active_seed(demo_values: dict[str, Any]) -> None:
    def family(**changes: Any) -> str:
        values = copy.deepcopy(demo_values) | {"seeds": changes.pop("seeds", [0, 1])}
        for section, own in changes.items():
            values[section] |= own
        return load(values).family

    plain = family()
    assert plain == family(training={"seed": 7}) == family(seeds=["1", "0"]) == family(training={"canary_samples": 20})
    others = [
        family(seeds=[0, 1, 2]),
        family(training={"learning_rate": 1e-3}),
        family(evaluation={"report": {"samples": 20, "seeds": [5]}}),
    ]
    assert len({plain, *others}) == 4


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        (None, {"seeds": [1, 2, 1]}, "name each seed once"),
        ("training", {"canary_samples": 9}, "greater than or equal to 10"),
        ("evaluation", {"contract": {"precision_recall_k": 500}}, "must exceed evaluation.contract.precision_recall_k"),
    ],
)
def test_seeds_and_canaries_that_cannot_be_are_said(
    demo_values: dict[str, Any], section: str | None, change: dict[str, Any], said: str
) -> None:
    (demo_values[section] if section else demo_values).update(change)
    with pytest.raises(Fault, match=said):
        load(demo_values)


@pytest.mark.parametrize("preset", PRESETS)
def test_identity_and_operations_make_the_sections_again(preset: str, root: Path) -> None:
    loaded = load_file(root / "config" / f"{preset}.yaml")
    paths = [name for name in Configuration.model_fields if isinstance(getattr(loaded, name), Section)]
    typed = sections(json.loads(json.dumps(loaded.slice(*paths))), operations(loaded))
    assert all(typed[path] == getattr(loaded, path) for path in paths)


@pytest.mark.parametrize(("section", "changed", "message"), [
    ("encoder", {"augmentation": "views"}, "views needs some crops"),
    ("encoder", {"crop_views": 4}, "views needs some crops"),
    ("encoder", {"augmentation": "views", "crop_views": 4, "crop_scale": [0.5, 1.0]}, "stored crops have the scale"),
    ("encoder", {"augmentation": "views", "crop_views": 3, "_batch": 128}, "a chunk's crops"),
    ("data", {"latents": {"precision_tolerance": 0}}, "greater than 0"),
])  # fmt: skip
def test_crops_and_precision_that_cannot_be_are_refused(
    demo_values: dict[str, Any], section: str, changed: dict[str, Any], message: str
) -> None:
    demo_values["data"]["latents"]["compute_batch"] = changed.pop("_batch", 64)
    demo_values[section].update(changed)
    with pytest.raises(Fault, match=message):
        load(demo_values)


def test_how_many_rejects_are_tolerated_names_no_folder(demo_values: dict[str, Any]) -> None:
    """A store that was refused for its rejects goes on in the same folder when more are tolerated."""
    before = keys(demo_values)
    demo_values["data"].update(max_rejects=5, verification="quick")
    demo_values["data"]["latents"].update(residency="ram", precision_tolerance=0.1)
    assert keys(demo_values) == before


def test_overrides_may_be_strings(demo_values: dict[str, Any]) -> None:
    demo_values["training"]["steps"] = "2000"
    demo_values["training"]["learning_rate"] = "1e-4"
    loaded = load(demo_values)
    assert loaded.training.steps == 2000
    assert loaded.training.learning_rate == 1e-4


@given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=5), st.randoms())
def test_digest_does_not_depend_on_key_order(values: dict[str, Any], random: Any) -> None:
    shuffled = list(values.items())
    random.shuffle(shuffled)
    assert digest(values) == digest(dict(shuffled))


def test_every_field_is_either_identity_or_operation() -> None:
    def walk(model: type[settings.Section], path: str) -> None:
        for name, field in model.model_fields.items():
            role = (field.json_schema_extra or {}).get("role", "identity")  # type: ignore[union-attr]
            assert role in ("identity", "operation"), f"{path}.{name}"

    walk(Configuration, "")
    assert "steps" not in identity(load_file(Path(__file__).parents[3] / "config/demo.yaml").training)
