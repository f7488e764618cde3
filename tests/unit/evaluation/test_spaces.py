"""Further feature spaces: transformers' own numbers, our preprocessing, refusals, and where everything lies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from drifting_core import config
from drifting_core.artifacts import FEATURES, Metrics, ReferenceStatistics, sha256_file
from drifting_core.artifacts.identity import operations
from drifting_core.data.removing import _require_nothing_to_read
from drifting_core.doctor.staging import needs
from drifting_core.evaluation.measuring import read_features
from drifting_core.evaluation.networks.loading import load_network
from drifting_core.evaluation.networks.making import make_network
from drifting_core.evaluation.networks.vision_transformers import VisionTransformer, resize_bicubic
from drifting_core.evaluation.rechecking import look_again, recompute
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout
from tests.unit.data.samples import HASH
from tests.unit.evaluation.whole import CPU, Parts, write_evaluation, write_parts, write_reference

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models as published: a DINOv2, a whole CLIP, and its image tower alone."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vision = {**SMALL, "intermediate_size": 32, "patch_size": 56, "image_size": 224, "projection_dim": 12}
    text = {**SMALL, "intermediate_size": 32, "vocab_size": 20}
    made = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, patch_size=56, image_size=280)),
        "clip": transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)),
        "tower": transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision)),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name, safe_serialization=True)
    return {name: folder / name for name in made}


def photo(side: int = 48) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, side, side), np.uint8))


def adopt(folder: Path, kind: str, given: Path) -> Path:
    section = config.Network.model_validate({"kind": kind, "weights": str(given)})
    make_network(folder / "manifest.json", section, None, None, device=CPU, threads=1, configuration=HASH)
    return folder / "manifest.json"


def pixels(mean: list[float], std: list[float]) -> torch.Tensor:
    shape = (1, 3, 1, 1)
    return (resize_bicubic(photo(), 224) / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def test_dinov2_is_the_class_token_after_the_norm(weights: dict[str, Path], tmp_path: Path) -> None:
    network, record = load_network(adopt(tmp_path, "dinov2", weights["dinov2"]), CPU)
    theirs = transformers.AutoModel.from_pretrained(weights["dinov2"]).eval()
    with torch.inference_mode():
        found = network(photo())
        expected = theirs(pixels([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).pooler_output
    assert isinstance(theirs, transformers.Dinov2Model)
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-6)
    assert found.logits.shape == found.logits_unbiased.shape == (3, 0)
    assert (record.network, record.dimensions, record.classes) == ("dinov2", 16, 0)
    assert record.weights_sha256 == sha256_file(weights["dinov2"] / "model.safetensors")
    assert "224" in record.resize


@pytest.mark.parametrize("given", ["clip", "tower"])
def test_clip_is_the_image_embedding(weights: dict[str, Path], tmp_path: Path, given: str) -> None:
    network, record = load_network(adopt(tmp_path, "clip", weights[given]), CPU)
    images = pixels([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    with torch.inference_mode():
        found = network(photo()).features
        if given == "clip":
            whole = transformers.AutoModel.from_pretrained(weights["clip"]).eval()
            expected = whole.visual_projection(whole.vision_model(images).pooler_output)
        else:
            tower = transformers.CLIPVisionModelWithProjection.from_pretrained(weights["tower"]).eval()
            expected = tower(images).image_embeds
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (record.network, record.dimensions) == ("clip", 12)


@pytest.mark.parametrize("side", [32, 256, 300])
def test_resize_is_pillows_to_one_step(side: int) -> None:
    images = photo(side)
    ours = resize_bicubic(images, 224).permute(0, 2, 3, 1).numpy()
    for image, own in zip(images, ours, strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(theirs, np.float32) - own)
        assert difference.max() <= 1
        assert difference.mean() < 0.01
    assert np.array_equal(ours, ours.round())


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_such_model_is_refused(weights: dict[str, Path], tmp_path: Path) -> None:
    for kind, other in (("dinov2", "clip"), ("clip", "dinov2")):
        with pytest.raises(Fault, match=rf"config.json: model_type is '{other}', expected {kind}.* for the space {kind}"):
            VisionTransformer(kind, weights[other])  # type: ignore[arg-type]
    with pytest.raises(Fault, match=r"evaluation.spaces: .*config.json is missing; expected a clip model .* set `weights`"):
        VisionTransformer("clip", tmp_path)
    (tmp_path / "config.json").write_bytes((weights["dinov2"] / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(Fault, match="model.safetensors is missing"):
        VisionTransformer("dinov2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(Fault, match=f"{tmp_path}: no dinov2 model that transformers .* can load"):
        VisionTransformer("dinov2", tmp_path)


def test_weights_that_are_not_whole_are_refused(weights: dict[str, Path], tmp_path: Path) -> None:
    """transformers would warn and fill in random numbers."""
    (tmp_path / "config.json").write_bytes((weights["dinov2"] / "config.json").read_bytes())
    held = load_file(weights["dinov2"] / "model.safetensors")
    del held["layernorm.weight"]
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(Fault, match="not a whole dinov2 model: missing_keys: .*layernorm.weight"):
        VisionTransformer("dinov2", tmp_path)


def test_without_the_package_the_remedy_is_said(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Fault, match=r"the space clip needs the package transformers .*pip install .*\[features\]"):
        VisionTransformer("clip", weights["clip"])


def test_only_uint8_rgb(weights: dict[str, Path]) -> None:
    network = VisionTransformer("clip", weights["tower"])
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            network(images)


# --- an evaluation in it --------------------------------------------------------------------------------------------


def test_an_evaluation_without_classes(weights: dict[str, Path], packed: Path, tmp_path: Path) -> None:
    network = adopt(tmp_path / "space", "clip", weights["clip"])
    parts = write_parts(tmp_path / "parts", packed)
    parts = Parts(parts.samples, parts.tokenizer, network, write_reference(tmp_path / "ref/manifest.json", packed, network))
    path = write_evaluation(tmp_path / "eval/metrics.json", parts)
    made = Metrics.read(path)
    assert (made.distance_name, made.contract.kernel_name) == ("FD-CLIP", "KD")
    assert (made.score, made.score_std, made.label_accuracy) == (None, None, None)
    assert made.distance > 0
    seen = read_features(path.parent / FEATURES)
    assert (seen.features.shape[1], seen.logits_unbiased.shape[1], set(seen.predicted)) == (12, 0, {-1})
    assert recompute(path, reference=parts.reference)["distance"] == made.distance
    again = look_again(
        path, samples=parts.samples, tokenizer=parts.tokenizer, network=network, how_many=8, device="cpu"
    )  # fmt: skip
    assert again == 0.0
    assert ReferenceStatistics.read(parts.reference).real_accuracy is None
    [row] = make_table("claim_clip", [path]).rows
    assert row["score"] is None


# --- configuration and places ---------------------------------------------------------------------------------------

SPACES = [{"kind": "dinov2", "weights": "data/dinov2"}, {"kind": "clip", "weights": "/models/clip"}]


def with_spaces(values: dict[str, Any]) -> config.Configuration:
    values["evaluation"]["spaces"] = SPACES
    return config.load(values)


def test_spaces_rename_nothing_above_the_claim(demo_values: dict[str, Any]) -> None:
    plain, spaces = config.load(demo_values), with_spaces(demo_values)
    stages = ("data", "tokenizer", "network", "reference", "encoder", "run")
    assert [plain.key(stage) for stage in stages] == [spaces.key(stage) for stage in stages]
    assert "spaces" not in plain.stage_slice("bundle")["evaluation"]
    assert spaces.stage_slice("bundle")["evaluation"]["spaces"] == SPACES
    typed = config.sections(spaces.stage_slice("bundle"), operations(spaces))
    assert typed["evaluation"].spaces == spaces.evaluation.spaces


def test_each_space_has_its_own_network_and_reference(demo_values: dict[str, Any], tmp_path: Path) -> None:
    demo_values["results"] = str(tmp_path)
    demo_values["evaluation"]["reference"]["statistics"] = {"path": "stats.npz", "sha256": "0" * 64, "split": "val"}
    made = with_spaces(demo_values)
    layout, run = Layout(made), made.key("run")
    for space in ("dinov2", "clip"):
        reference = Path(layout.of_space(run, space, "reference", "manifest.json"))
        key = reference.parent.name
        network = layout.of_space(run, space, "network", "manifest.json")
        assert (key.rsplit("-")[0], Path(network).parent.name.rsplit("-")[0]) == (f"photos_{space}", space)
        assert layout.of("reference", key, "network", "manifest.json") == network
        part = json.loads(layout.slice("reference", key))
        assert part["evaluation.network"]["kind"] == space
        assert part["evaluation.reference"]["split"] == "val"
        assert "statistics" not in part["evaluation.reference"], "they are of another network"
        assert layout.table(run, f"claim_{space}") == [f"{tmp_path}/runs/{run}/claim/seed_1000/spaces/{space}/metrics.json"]
        assert layout.index_of("network", made.in_space(space).key("network")) == []
    assert layout.find("run", run).evaluation.network.kind == "classifier"
    assert [Path(path).name for path in layout.in_spaces(run, "table")] == ["claim_dinov2.json", "claim_clip.json"]
    assert len({made.key("reference"), *(Path(p).parent.name for p in layout.in_spaces(run, "reference"))}) == 3
    assert {need.place: need.key for need in needs(made)}[Path("/models/clip")] == "evaluation.spaces"
    with pytest.raises(Fault, match="reference statistics in the space clip"):
        _require_nothing_to_read(made, layout)


@pytest.mark.parametrize(("changed", "message"), [
    ({"spaces": [SPACES[0], SPACES[0]]}, r"spaces: found the kinds \['dinov2', 'dinov2'\]; each once"),
    ({"spaces": [{"kind": "clip"}]}, "evaluation.spaces.0.weights: missing"),
    ({"spaces": [{"kind": "clip", "weigths": "x", "weights": "y"}]}, "weigths: unknown key; did you mean 'weights'"),
    ({"network": {"kind": "clip", "weights": "x"}}, "network.kind: clip has no classes, so no score to select by"),
    ({"network": {"kind": "clip"}}, "kind: clip needs the key 'weights'"),
])  # fmt: skip
def test_bad_spaces_are_named(demo_values: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    demo_values["evaluation"] |= changed
    with pytest.raises(Fault, match=message):
        config.load(demo_values)


def test_a_space_that_the_configuration_does_not_have(demo_values: dict[str, Any]) -> None:
    with pytest.raises(Fault, match="evaluation.spaces: found .*, asked for 'clip'"):
        config.load(demo_values).in_space("clip")
