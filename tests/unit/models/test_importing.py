"""Networks from elsewhere as exports: the same numbers, checked against the configuration."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from drifting_core import config as settings
from drifting_core.artifacts import TokenizerManifest
from drifting_core.faults import Fault
from drifting_core.models.exports import AUTOENCODER, load_encoder, load_generator, read_weights, write_export
from drifting_core.models.generator import Generator
from drifting_core.models.importing import import_network
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.models.released import load_released
from tests.unit.training.samples import CONTRACT

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
GENERATOR = {
    "source": str(GOLDEN / "generator"), "patch_size": 2, "hidden_size": 64, "depth": 2, "num_heads": 4, "cond_dim": 48,
    "in_context_tokens": 4, "style_tables": 4, "style_entries": 8,
}  # fmt: skip
ENCODER = {"source": str(GOLDEN / "mae"), "base_width": 32, "blocks": [2, 2, 2, 2], "input_patch_size": 1, "norm_groups": 32}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    TokenizerManifest(
        configuration="0", code="1", source="test", folder="vae", weights_sha256="t", scaling_factor=1.0, channels=4,
        factor=2,
    ).write(tmp_path / "tokenizer.json")  # fmt: skip
    return tmp_path / "tokenizer.json"


def take(
    values: dict[str, Any],
    network: Literal["encoder", "generator"],
    tokenizer: Path,
    fetched: Path | None = None,
    step: int | None = None,
    **changes: Any,
) -> Path:
    """Import into a folder beside the tokenizer."""
    values["generator"], values["encoder"] = GENERATOR, values["encoder"] | ENCODER
    values[network] = values[network] | changes
    loaded = settings.load(values)
    output = tokenizer.parent / "export" / "metadata.json"
    parts = {"data": loaded.data, "tokenizer": loaded.tokenizer, network: getattr(loaded, network)}
    import_network(parts, network, configuration="0" * 64, tokenizer=tokenizer, fetched=fetched, step=step, output=output)
    return output


def test_a_published_generator(demo_values: dict[str, Any], tokenizer: Path) -> None:
    module, export = load_generator(take(demo_values, "generator", tokenizer, step=1000))
    published = load_released(GOLDEN / "generator").state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in module.state_dict().items())
    assert (export.step, export.ema_decay, export.parameters) == (1000, 0.999, sum(t.numel() for t in published.values()))
    assert export.imported is not None
    assert (export.imported.source, export.imported.step) == (GENERATOR["source"], 456)
    assert export.latents.tokenizer_sha256 == "t"


def test_a_published_encoder_has_its_decoder_in_a_file_of_its_own(demo_values: dict[str, Any], tokenizer: Path) -> None:
    metadata = take(demo_values, "encoder", tokenizer)
    module, export = load_encoder(metadata)
    published = load_released(GOLDEN / "mae")
    autoencoder = read_weights(metadata, export, AUTOENCODER)
    assert autoencoder.keys() == published.state_dict().keys()
    assert all(torch.equal(tensor, autoencoder[name]) for name, tensor in published.state_dict().items())
    assert not [name for name in module.state_dict() if "decoder" in name]
    assert isinstance(published, MaskedAutoencoder)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = module.features(x), published.features(x)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert export.step == 123


def test_an_export_of_our_own(demo_values: dict[str, Any], tokenizer: Path) -> None:
    architecture = {key: value for key, value in GENERATOR.items() if key != "source"}
    architecture |= {"input_size": 16, "channels": 4, "num_classes": 10, "attention_fp32": True}
    own = Generator(**architecture)  # type: ignore[arg-type]
    own.reset_parameters(1)
    folder = tokenizer.parent / "own"
    write_export(
        folder / "metadata.json", "generator", own.state_dict(), architecture, step=7, ema_decay=0.9, latents=CONTRACT,
        configuration="0" * 64, inputs={},
    )  # fmt: skip
    module, export = load_generator(take(demo_values, "generator", tokenizer, source=str(folder)))
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in module.state_dict().items())
    assert export.imported is not None
    assert export.imported.step == 7
    with pytest.raises(Fault, match="holds weights of kind generator; give those of kind encoder"):
        take(demo_values, "encoder", tokenizer, source=str(folder))


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("generator", {"depth": 3}, r"is not what the configuration describes:\n  generator.depth: 3, the source has 2"),
        ("generator", {"attention_fp32": False}, "generator.attention_fp32: False, the source has True"),
        ("encoder", {"blocks": [2, 2, 2, 3]}, "encoder.blocks"),
        ("encoder", {"norm_groups": 8}, "encoder.norm_groups: 8, the source has 32"),
        ("generator", {"source": "nowhere"}, "generator.source: nowhere: no such folder"),
        ("generator", {"source": str(GOLDEN)}, "metadata.json: missing"),
    ],
)
def test_what_is_not_described_is_refused(
    demo_values: dict[str, Any], tokenizer: Path, network: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Fault, match=message):
        take(demo_values, network, tokenizer, **changes)
    assert not (tokenizer.parent / "export" / "metadata.json").exists()


def test_other_latents_and_classes_are_refused(demo_values: dict[str, Any], tokenizer: Path) -> None:
    manifest = TokenizerManifest.read(tokenizer)
    manifest.model_copy(update={"channels": 8, "factor": 4}).write(tokenizer)
    demo_values["data"]["expected"]["classes"] = 20
    with pytest.raises(Fault) as caught:
        take(demo_values, "generator", tokenizer)
    for said in ("channels is 8, the source's 4", "input_size is 8, the source's 16", "num_classes is 20, the source's 10"):
        assert said in str(caught.value)


def test_released_weights_want_the_latents_that_they_know(demo_values: dict[str, Any], tokenizer: Path) -> None:
    """The scale of SD-VAE is part of what the published weights mean."""
    demo_values["tokenizer"].update(source="trained")
    folder = tokenizer.parent / "sources" / "models/gen/jax/ablation"
    shutil.copytree(GOLDEN / "generator", folder)
    packed = folder / "ema_params.msgpack.xz"
    (folder / "ema_params.msgpack").write_bytes(lzma.decompress(packed.read_bytes()))
    from drifting_core.sources.fetching import write_fetched
    from drifting_core.sources.published import download

    manifest = tokenizer.parent / "sources" / "manifest.json"
    write_fetched(download("ablation"), manifest, "0" * 64)
    with pytest.raises(Fault, match="knows latents of SD-VAE at scale 0.18215"):
        take(demo_values, "generator", tokenizer, fetched=manifest, source="released:ablation")
    TokenizerManifest.read(tokenizer).model_copy(update={"scaling_factor": 0.18215}).write(tokenizer)
    output = take(demo_values, "generator", tokenizer, fetched=manifest, source="released:ablation")
    assert json.loads(output.read_text())["inputs"].keys() == {"tokenizer", "fetched"}


def test_names_that_are_not_published_are_refused_by_the_configuration(demo_values: dict[str, Any]) -> None:
    demo_values["encoder"]["source"] = "released:latent_L_sota"
    demo_values["generator"]["source"] = "released:mae_latent_640"
    with pytest.raises(Fault) as caught:
        settings.load(demo_values)
    assert "no encoder 'latent_L_sota'; known: released:mae_latent_256, released:mae_latent_640" in str(caught.value)
    assert "no generator 'mae_latent_640'; known: released:ablation" in str(caught.value)
