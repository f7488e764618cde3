"""The plan's arithmetic against the figures of protocol 2.1, 3 and 4.3."""

from __future__ import annotations

from pathlib import Path

import pytest

from drifting_core import data_plan, plan
from drifting_core.config import Configuration, EncoderFinetune, load_file
from drifting_core.config import Space as SpaceSection
from drifting_core.data import tars
from drifting_core.faults import Fault


def preset(root: Path, name: str, **training: int) -> Configuration:
    loaded = load_file(root / "config" / f"{name}.yaml")
    return loaded.model_copy(update={"training": loaded.training.model_copy(update=training)})


def test_multiply_adds_are_those_of_the_protocol(root: Path) -> None:
    ablation, b2, l2 = (preset(root, name, micro_batches=1) for name in ("ablation", "b2", "l2"))
    assert plan.generator_macs(b2) == pytest.approx(24.5e9, rel=5e-3)
    assert plan.generator_macs(l2) == pytest.approx(86.4e9, rel=5e-3)
    assert plan.encoder_macs(ablation) == pytest.approx(18.5e9, rel=5e-3)
    assert plan.encoder_macs(b2) == pytest.approx(115.8e9, rel=5e-3)
    assert plan.decoder_macs(ablation) == pytest.approx(9.7e9, rel=5e-3)
    assert plan.step_macs(ablation) == pytest.approx(0.55e15, rel=1e-2)
    assert plan.step_macs(b2) == pytest.approx(3.9e15, rel=2e-2)
    assert plan.generator_parameters(b2) == pytest.approx(132_708_880, rel=1e-2)


def test_the_data_road_is_cut_over_gpus_and_ends_where_shards_do(root: Path) -> None:
    """21.8 GB of latents (protocol: 8 kB each, image and mirror); encoding is shared out until every shard has a GPU."""
    ablation, rates = preset(root, "ablation"), plan.read_rates()
    assert data_plan.latent_bytes(ablation) == pytest.approx(1_331_167 * 2 * 8192)
    [encode] = [stage for stage in data_plan.stages(ablation, rates, (1, 8, 32, 64)) if stage.name.startswith("encode")]
    assert encode.hours[0] == pytest.approx(1_331_167 * 2 * 2 * 135e9 / 50e12 / 3600, rel=1e-3)
    assert encode.hours[1] == pytest.approx(encode.hours[0] / 8, rel=0.05)
    assert encode.hours[3] == pytest.approx(encode.hours[0] / 34, rel=0.1)
    more = ablation.model_copy(
        update={
            "data": ablation.data.model_copy(
                update={"latents": ablation.data.latents.model_copy(update={"shards_train": 64})}
            )
        }
    )
    [faster] = [stage for stage in data_plan.stages(more, rates, (64,)) if stage.name.startswith("encode")]
    assert faster.hours[0] < 0.6 * encode.hours[3]
    assert data_plan.files(more) > data_plan.files(ablation)


def test_the_data_road_speaks_of_imagenet_only(root: Path) -> None:
    with pytest.raises(Fault, match="3,500 images; .* known for ImageNet's 1,331,167 only"):
        data_plan.table(preset(root, "demo"), plan.read_rates())
    assert data_plan.READERS == tars._READERS


def test_micro_batches_cost_a_second_forward_pass(root: Path) -> None:
    whole, parts = (plan.step_macs(preset(root, "ablation", micro_batches=n)) for n in (1, 8))
    assert 1.2 < parts / whole < 1.4


def test_twice_the_horizon_is_twice_the_generator(root: Path) -> None:
    rates = plan.read_rates()
    once, twice = (
        {cost.stage: plan.gpu_hours(cost, rates) for cost in plan.costs(preset(root, "l2", steps=steps), rates)}
        for steps in (200_000, 400_000)
    )
    assert twice["generator"] == pytest.approx(2 * once["generator"])
    assert twice["latent-MAE"] == once["latent-MAE"]


def test_a_finetune_costs_its_own_steps_and_its_own_export(root: Path) -> None:
    plain, rates = preset(root, "b2"), plan.read_rates()
    training = plain.encoder.training
    stage = EncoderFinetune(steps=training.steps // 4, batch=training.batch, learning_rate=1e-3, ema=0.999)
    tuned = plain.model_copy(update={"encoder": plain.encoder.model_copy(update={"finetune": stage})})
    imported = tuned.model_copy(update={"encoder": tuned.encoder.model_copy(update={"source": "released:mae_latent_640"})})
    hours = [
        {cost.stage: plan.gpu_hours(cost, rates) for cost in plan.costs(each, rates)} for each in (plain, tuned, imported)
    ]
    assert [each["latent-MAE: fine-tune"] for each in hours] == [0.0, *(2 * [hours[0]["latent-MAE"] / 4])]
    assert [each["latent-MAE"] for each in hours] == [hours[0]["latent-MAE"]] * 2 + [0.0]
    assert hours[0]["audit of the encoder"] < 0.01 * hours[0]["latent-MAE"]
    sizes = [next(s.bytes for s in plan.disk(each) if s.what.startswith("latent-MAE")) for each in (plain, tuned, imported)]
    assert sizes[1] == 2 * sizes[0] > sizes[2] > sizes[0]


def test_features_of_generated_images_are_counted(root: Path) -> None:
    """12 kB each with Inception: 2,048 features and 1,008 logits, float32."""
    space = {each.what: each.bytes for each in plan.disk(preset(root, "ablation"))}
    images = plan.evaluations(preset(root, "ablation"))[1]
    assert space["features of generated images"] == pytest.approx(images * 12_240)
    assert space["generated latents"] == images * 8192


def test_further_spaces_cost_a_cache_and_a_pass_each(root: Path) -> None:
    plain, rates = preset(root, "ablation"), plan.read_rates()
    spaces = tuple(SpaceSection(kind=kind, weights="x") for kind in ("dinov2", "clip"))
    more = plain.model_copy(update={"evaluation": plain.evaluation.model_copy(update={"spaces": spaces})})
    costs, disk = ({each[0]: each[1] for each in found} for found in (plan.costs(more, rates), plan.disk(more)))
    assert disk["further feature spaces"] == (1_281_167 + 50_000) * (1024 + 768) * 4
    assert costs["further feature spaces"] == pytest.approx(2 * (1_381_167 * 81e9 + 50_000 * 310e9))
    assert plan.costs(plain, rates)[-1].macs == plan.disk(plain)[-1].bytes == 0


def test_the_demo_takes_no_gpu_and_says_so(root: Path) -> None:
    text = plan.report(load_file(root / "config/demo.yaml"), {"train_generator": 5})
    assert "asks for no GPU" in text
    assert "train_generator" in text
