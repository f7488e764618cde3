"""The FID Inception network: structure against the published list of entries, numbers against torch-fidelity's."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from drifting_core.evaluation.networks.inception import InceptionV3, resize_tf1

GOLDEN = Path(__file__).parents[3] / "data" / "golden" / "inception.npz"


def random_state() -> dict[str, torch.Tensor]:
    """The weights of golden/README.md: anyone can make them again."""
    with np.load(GOLDEN) as golden:
        shapes = {str(k): ast.literal_eval(str(s)) for k, s in zip(golden["keys"], golden["shapes"], strict=True)}
    state = {}
    for index, name in enumerate(sorted(shapes)):
        rng, shape = np.random.default_rng(index), shapes[name]
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith(".bn.weight"):
            value = rng.uniform(0.8, 1.2, shape)
        elif name.endswith(("bias", "running_mean")):
            value = 0.1 * rng.normal(size=shape)
        else:
            value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> InceptionV3:
    return InceptionV3(weights)


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(network: InceptionV3, case: str) -> None:
    with np.load(GOLDEN) as golden:
        output = network(torch.from_numpy(golden[f"images_{case}"]), taps=True)
        found = {
            "64": output.features_64,
            "192": output.features_192,
            "768": output.features_768,
            "2048": output.features,
            "logits_unbiased": output.logits_unbiased,
            "logits": output.logits,
        }
        for name, value in found.items():
            expected = golden[f"{case}_{name}"]
            assert value is not None
            assert value.shape == expected.shape
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_stays_frozen_and_in_evaluation_mode(network: InceptionV3) -> None:
    network.train()
    assert not network.training
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


def test_safetensors_hold_the_same_network(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "inception.safetensors")
    loaded = InceptionV3(tmp_path / "inception.safetensors").state_dict()
    assert loaded.keys() == state.keys()
    assert len(loaded) == 566
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_every_difference_is_named_at_once(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    broken = {name: value for name, value in state.items() if name != "fc.bias"}
    broken["AuxLogits.fc.weight"] = torch.zeros(2)
    broken["fc.weight"] = torch.zeros(1000, 2048)
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="3 differences") as error:
        InceptionV3(tmp_path / "broken.pth")
    message = str(error.value)
    assert "missing fc.bias" in message
    assert "unexpected AuxLogits.fc.weight" in message
    assert "fc.weight is (1000, 2048), expected (1008, 2048)" in message


def test_a_pickle_in_place_of_weights_runs_nothing(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sentinel",)

    torch.save({"fc.bias": Exploit()}, tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        InceptionV3(tmp_path / "weights.pth")
    assert not (tmp_path / "sentinel").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "sentinel").exists(), "the exploit would have worked"


def test_only_uint8_rgb(network: InceptionV3) -> None:
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            network(images)


def test_resize_is_asymmetric_and_exact_at_its_own_size() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    resized = resize_tf1(ramp, 8)
    # source = target / 2, the last column repeated; half-pixel centres would start at 0, 0.25.
    assert resized[0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert torch.equal(resize_tf1(ramp, 4), ramp)
    assert not torch.allclose(resized, F.interpolate(ramp, size=8, mode="bilinear", align_corners=False))
