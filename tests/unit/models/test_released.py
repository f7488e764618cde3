"""The authors' weights without flax: their numbers (golden/generator, golden/mae), and refusal of what is not theirs."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.drift.guidance import unconditional_weight
from drifting_core.drift.objective import DriftObjective, EntryLoss, total
from drifting_core.faults import Fault
from drifting_core.models.generator import Generator
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.released import flax_names, load_released, read_metadata, read_tensors
from drifting_core.training.loop import Optimisation

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


def golden(path: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / path) as file:
        return {name: file[name] for name in file.files}


def channels_first(images: NDArray[Any]) -> Tensor:
    """(..., H, W, C) -> (..., C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))


def index(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).long()


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    module = load_released(GOLDEN / "mae")
    assert isinstance(module, MaskedAutoencoder)
    return module


def generator() -> Generator:
    module = load_released(GOLDEN / "generator")
    assert isinstance(module, Generator)
    return module


# --- the authors' numbers -------------------------------------------------------------------------------------------


def test_generator() -> None:
    expected, module = golden("generator/expected.npz"), generator()
    assert not module.training
    condition = index(expected["labels"]), torch.from_numpy(expected["alpha"]), index(expected["style_index"])
    with torch.inference_mode():
        cond = module.condition(*condition)
        samples = module(channels_first(expected["noise"]), *condition)
    torch.testing.assert_close(cond, torch.from_numpy(expected["cond"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(samples, channels_first(expected["samples"]), rtol=0, atol=1e-5)


def test_features_of_the_encoder(mae: MaskedAutoencoder) -> None:
    expected = golden("mae/expected.npz")
    with torch.inference_mode():
        features = mae.features(channels_first(expected["x"]))
    assert set(features) == {name.removeprefix("act_shape/") for name in expected if name.startswith("act_shape/")}
    for name, entry in features.items():
        assert list(entry.shape) == expected[f"act_shape/{name}"].tolist(), name
        head = torch.from_numpy(expected[f"act_head/{name}"])
        assert (entry[:, :3, :8] - head).abs().max() <= 1e-4 * head.abs().max(), name
        moments = entry.mean(dim=(1, 2)), entry.square().mean(dim=(1, 2))
        for moment, kind in zip(moments, ("act_mean", "act_sq"), strict=True):
            scale = float(entry.abs().max()) ** (2 if kind == "act_sq" else 1)
            wanted = torch.from_numpy(expected[f"{kind}/{name}"]).reshape(moment.shape)
            assert (moment - wanted).abs().max() <= 1e-4 * scale, (kind, name)


@pytest.mark.parametrize("masked", [0, 1])
def test_forward_pass_of_the_encoder(mae: MaskedAutoencoder, masked: int) -> None:
    expected = golden("mae/expected.npz")
    with torch.inference_mode():
        output = mae(
            channels_first(expected["x"]), index(expected["labels"]), torch.full((2, 1, 16, 16), float(masked)), 0.25
        )
    assert float(expected["lambda_cls"]) == 0.25
    names = {"loss": "loss", "cls_loss": "classification", "recon_loss": "reconstruction", "mask_ratio": "mask_ratio"}
    for theirs, ours in names.items():
        wanted = torch.from_numpy(expected[f"fwd_mask{masked}_{theirs}"])
        torch.testing.assert_close(getattr(output, ours), wanted, rtol=1e-4, atol=1e-7)


class Trajectory:
    """Four steps of the released objective with both networks, over the entries that the golden file sums."""

    def __init__(self, mae: MaskedAutoencoder) -> None:
        self.g = golden("generator/objective.npz")
        self.names = [str(name) for name in self.g["per_feature_names"]]
        self.mae, self.model = mae, generator().requires_grad_()
        self.optimisation = Optimisation(
            self.model, learning_rate=2e-3, warmup_steps=2, weight_decay=float(self.g["weight_decay"]),
            clip=float(self.g["max_grad_norm"]), ema=float(self.g["ema_decay"]),
        )  # fmt: skip
        self.weight = unconditional_weight(
            torch.from_numpy(self.g["alpha"]), len(self.g["noise"][0]) // 3, self.g["unconditional"].shape[1]
        )
        with torch.no_grad():
            self.real = [
                self.features(channels_first(self.g[kind]).flatten(0, 1)) for kind in ("positives", "unconditional")
            ]

    def features(self, latents: Tensor) -> dict[str, Tensor]:
        entries = {"global": latents.flatten(1)[:, None], **self.mae.features(latents)}
        return {name: entries[name] for name in self.names}

    def step(self, number: int) -> tuple[dict[str, EntryLoss], dict[str, float]]:
        g, each = self.g, len(self.g["noise"][0]) // 3
        labels, alpha = (torch.from_numpy(g[name]).repeat_interleave(each) for name in ("labels", "alpha"))
        latents = self.model(channels_first(g["noise"][number]), labels.long(), alpha, index(g["style_index"][number]))
        features = self.features(latents)
        weights = self.weight[:, None].expand(-1, g["unconditional"].shape[1])
        objective = DriftObjective(features, *self.real, weights, g["temperatures"].tolist())
        gradients = objective.gradients()
        torch.autograd.backward(list(features.values()), [gradients[name] for name in features])
        return objective.results(), self.optimisation.apply(number)

    def norm(self, ema: bool) -> float:
        tensors = self.optimisation.ema if ema else self.optimisation.parameters
        return float(torch.stack([t.detach().double().square().sum() for t in tensors.values()]).sum().sqrt())


def test_four_steps_of_the_objective(mae: MaskedAutoencoder) -> None:
    run = Trajectory(mae)
    g = run.g
    torch.testing.assert_close(run.weight, torch.from_numpy(g["weight_unconditional"]), rtol=1e-6, atol=0)
    for number in range(4):
        results, update = run.step(number)
        if number == 0:
            for name, theirs, exact in zip(run.names, g["per_feature_loss"], g["per_feature_loss_float64"], strict=True):
                ours = float(results[name].loss)
                assert ours == pytest.approx(float(theirs), rel=1e-4), name
                assert ours == pytest.approx(float(exact), rel=1e-4), name
        loose = 5e-3 if number else None
        assert float(total(results)) == pytest.approx(g["loss"][number], rel=loose or 1e-5)
        assert update["gradient_norm"] == pytest.approx(g["grad_norm"][number], rel=loose or 1e-3)
        assert update["learning_rate"] == pytest.approx(g["lr"][number], rel=1e-5)
        assert run.norm(ema=False) == pytest.approx(g["param_norm"][number], rel=loose or 1e-5)
        assert run.norm(ema=True) == pytest.approx(g["ema_norm"][number], rel=loose or 1e-5)


# --- the format -----------------------------------------------------------------------------------------------------


def test_neither_jax_nor_flax_nor_pickle_is_imported(root: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'flax', 'orbax')))\n"  # importing them now fails
        "from drifting_core.models.released import load_released\n"
        f"load_released({str(GOLDEN / 'generator')!r}); load_released({str(GOLDEN / 'mae')!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


def test_every_parameter_has_flax_names_of_its_own(mae: MaskedAutoencoder) -> None:
    for module, folder in ((mae, "mae"), (generator(), "generator")):
        names = [part for parts in flax_names(module).values() for part in parts]
        assert len(names) == len(set(names))
        assert set(names) == set(read_tensors(GOLDEN / folder / "ema_params.msgpack.xz"))


def array(values: NDArray[Any], name: str = "") -> msgpack.ExtType:
    """As flax writes one."""
    return msgpack.ExtType(1, msgpack.packb((values.shape, name or values.dtype.name, values.tobytes())))


Tree = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published generator, unpacked, free to change."""
    shutil.copy(GOLDEN / "generator" / "metadata.json", tmp_path)
    packed = (GOLDEN / "generator" / "ema_params.msgpack.xz").read_bytes()
    (tmp_path / "ema_params.msgpack").write_bytes(lzma.decompress(packed))
    return tmp_path


def rewrite(folder: Path, change: Callable[[Tree], object]) -> None:
    path = folder / "ema_params.msgpack"
    tree = msgpack.unpackb(path.read_bytes())
    change(tree)
    path.write_bytes(msgpack.packb(tree))


def redescribe(folder: Path, **changes: Any) -> None:
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["model_config"].update(changes)
    metadata["model_config"] = {key: value for key, value in metadata["model_config"].items() if value is not ...}
    path.write_text(json.dumps(metadata))


def test_plain_and_packed_are_the_same(folder: Path) -> None:
    plain, packed = load_released(folder).state_dict(), generator().state_dict()
    assert all(torch.equal(plain[name], packed[name]) for name in packed)


def test_chunked_and_half_precision_arrays(folder: Path) -> None:
    """flax cuts arrays above a gigabyte into chunks, and writes bfloat16 as such."""
    values = read_tensors(folder / "ema_params.msgpack")["LightningDiT_0/pos_embed"]

    def change(tree: Tree) -> None:
        flat = values.flatten().numpy()
        tree["LightningDiT_0"]["pos_embed"] = {
            "__msgpack_chunked_array__": True,
            "shape": {str(axis): size for axis, size in enumerate(values.shape)},
            "chunks": {"0": array(flat[:1000]), "1": array(flat[1000:])},
        }
        half = torch.full((10, 48), 1.5, dtype=torch.bfloat16)
        tree["Embed_0"]["embedding"] = array(half.view(torch.int16).numpy(), "bfloat16")

    rewrite(folder, change)
    state = load_released(folder).state_dict()
    assert torch.equal(state["position_embedding"], values)
    assert state["class_embedding.weight"].eq(1.5).all()
    assert state["class_embedding.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["LightningDiT_0"].pop("cls_embed"), r"1 missing: LightningDiT_0/cls_embed \(1, 4, 64\)"),
        (lambda tree: tree.update(more=array(np.zeros(3, np.float32))), r"1 extra: more \(3,\)"),
        (
            lambda tree: tree["Embed_0"].update(embedding=array(np.zeros((11, 48), np.float32))),
            r"1 misshaped: Embed_0/embedding \(11, 48\), expected \(10, 48\)",
        ),
        (
            lambda tree: tree["Embed_0"].update(embedding=array(np.full((10, 48), np.nan, np.float32))),
            "1 not finite: Embed_0/embedding",
        ),
        (lambda tree: tree.update(more=array(np.zeros(3, np.int64))), "an array of int64"),
        (lambda tree: tree.update(more=msgpack.ExtType(3, b"1")), "extension type 3"),
        (lambda tree: tree.update(more="text"), "a str, expected an array"),
        (lambda tree: tree.update(more=msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"12")))), "2 bytes for"),
    ],
)
def test_every_tensor_is_accounted_for(folder: Path, change: Callable[[Tree], object], message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(Fault, match=message):
        load_released(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_is_refused(tmp_path: Path, folder: Path, packed: bool) -> None:
    path = folder / "ema_params.msgpack"
    content = path.read_bytes()
    if packed:
        path.unlink()
        path, content = folder / "ema_params.msgpack.xz", lzma.compress(content, preset=0)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Fault, match=f"{path}: no whole file of arrays"):
        load_released(folder)
    path.write_bytes(content + b"more")
    with pytest.raises(Fault, match="no whole file of arrays"):
        load_released(folder)


def test_metadata_decides_the_architecture(folder: Path) -> None:
    redescribe(folder, hidden_size=128)
    with pytest.raises(Fault, match=r"42 misshaped: .*TorchLinear_0/Dense_0/kernel \(16, 64\), expected \(16, 128\)"):
        load_released(folder)
    redescribe(folder, use_rope=False, layers=3)
    with pytest.raises(Fault, match=r"layers: Extra inputs(.|\n)*use_rope|use_rope(.|\n)*layers: Extra inputs"):
        load_released(folder)
    (folder / "metadata.json").unlink()
    with pytest.raises(Fault, match="metadata.json: missing"):
        load_released(folder)


def test_an_encoder_without_num_classes_has_the_thousand_of_the_release(tmp_path: Path) -> None:
    """The published encoders leave num_classes out and say use_bf16; parameters and computation are float32 here."""
    shutil.copy(GOLDEN / "mae" / "metadata.json", tmp_path)
    tree = msgpack.unpackb(lzma.decompress((GOLDEN / "mae" / "ema_params.msgpack.xz").read_bytes()))
    tree["fc"] = {"kernel": array(np.zeros((256, 1000), np.float32)), "bias": array(np.zeros(1000, np.float32))}
    (tmp_path / "ema_params.msgpack").write_bytes(msgpack.packb(tree))
    redescribe(tmp_path, num_classes=..., use_bf16=True)
    module = load_released(tmp_path)
    assert isinstance(module, MaskedAutoencoder)
    assert module.classifier.out_features == 1000
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.compute_dtype == torch.float32
    expected = golden("mae/expected.npz")
    with torch.inference_mode():
        found = module.features(channels_first(expected["x"]))["layer3"][:, :3, :8]
    torch.testing.assert_close(found, torch.from_numpy(expected["act_head/layer3"]), rtol=1e-4, atol=1e-4)
    redescribe(tmp_path, num_classes=10)
    with pytest.raises(Fault, match=r"misshaped: fc/bias \(1000,\), expected \(10,\); fc/kernel"):
        load_released(tmp_path)


def test_rotary_angles_are_those_that_the_weights_have_learned(folder: Path) -> None:
    """The published B/2 and L/2 ran in bfloat16 without attn_fp32: positions and angles rounded, in any compute dtype."""
    redescribe(folder, use_bf16=True, attn_fp32=False)
    module = load_released(folder)
    assert isinstance(module, Generator)
    rounded, exact = module._rotary(torch.zeros(1, 68, 64)), generator()._rotary(torch.zeros(1, 68, 64))
    assert rounded[0].dtype == torch.bfloat16
    assert (rounded[0].float() - exact[0]).abs().max() > 0.05
    redescribe(folder, use_bf16=True, attn_fp32=True)
    assert read_metadata(folder).typed.build().rotary_dtype == torch.float32  # type: ignore[union-attr]


def test_a_name_that_is_not_published_is_refused() -> None:
    with pytest.raises(Fault, match="neither a folder nor a published network.*latent_L_sota.*mae_latent_640"):
        load_released("latent_XL")


def test_without_internet_the_message_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(repository: str, file: str, **options: Any) -> str:
        assert (repository, file) == ("Goodeat/drifting", "models/gen/jax/latent_L_sota/metadata.json")
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        Fault,
        match=r"hf download Goodeat/drifting models/gen/jax/latent_L_sota/metadata.json(.|\n)*FOLDER/models/gen",
    ):
        load_released("latent_L_sota")


# --- the sizes of the release ---------------------------------------------------------------------------------------

COMMON = {
    "num_classes": 1000, "noise_classes": 64, "noise_coords": 32, "input_size": 32, "in_channels": 4, "out_channels": 4,
    "n_cls_tokens": 16, "patch_size": 2, "use_bf16": True, "attn_fp32": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ({"hidden_size": 768, "depth": 12, "num_heads": 12, "cond_dim": 768}, 132_708_880),
        ({"hidden_size": 1024, "depth": 24, "num_heads": 16, "cond_dim": 1024}, 462_909_456),
    ],
)
def test_published_sizes(tmp_path: Path, sizes: dict[str, int], parameters: int) -> None:
    values = {"format": "flax.msgpack", "kind": "gen", "ema_decay": 0.999, "step": 1, "model_config": COMMON | sizes}
    (tmp_path / "metadata.json").write_text(json.dumps(values))
    with torch.device("meta"):
        module = read_metadata(tmp_path).typed.build()
    assert sum(p.numel() for p in module.parameters()) == parameters
