"""Networks that were trained elsewhere, as exports of this project: what later stages read is the same file format."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import FileRecord, Imported, TokenizerManifest, hashes
from drifting_core.data.encoding import contract_of
from drifting_core.faults import Fault
from drifting_core.models import released
from drifting_core.models.exports import AUTOENCODER, WEIGHTS, load_export, read_weights, write_export
from drifting_core.models.mae import MaskedAutoencoder
from drifting_core.sources.fetching import fetched_folder
from drifting_core.sources.published import METADATA, SCALING_FACTOR

log = logging.getLogger(__name__)


class _Source(NamedTuple):
    """A network as it was found."""

    network: Literal["encoder", "generator"]
    weights: dict[str, Tensor]
    architecture: dict[str, Any]
    step: int
    ema_decay: float
    weights_sha256: str
    autoencoder: dict[str, Tensor] | None = None  # of an encoder, where it comes with its decoder


def import_network(
    parts: Mapping[str, Any],
    network: Literal["encoder", "generator"],
    *,
    configuration: str,
    tokenizer: Path,
    fetched: Path | None,
    step: int | None,
    output: Path,
) -> None:
    """Publish the network that `parts[network].source` names as an export at `output`.

    `fetched`: manifest of its download, where it is one. `step`: what the export is called, by default what the source
    says. Raises Fault when the source is no such network or not the one that the configuration describes.
    """
    section: config.Importable = parts[network]
    folder = fetched_folder(fetched) if fetched else Path(section.source)
    source = _read(folder, f"{network}.source: {section.source}")
    if source.network != network:
        raise Fault(
            f"{network}.source: {section.source} holds weights of kind {source.network}; give those of kind {network}"
        )
    manifest = TokenizerManifest.read(tokenizer)
    latent = (manifest.channels, parts["data"].image_size // manifest.factor)
    _require_described(section, network, source.architecture, latent, parts["data"].expected.classes)
    _require_scale(section, manifest)
    if step not in (None, source.step):
        log.info("%s: the source says step %d; here it is step %d (training.steps)", section.source, source.step, step)
    write_export(
        output,
        network,
        source.weights,
        source.architecture,
        step=source.step if step is None else step,
        ema_decay=source.ema_decay,
        latents=contract_of(parts["data"], "train", manifest.weights_sha256, manifest.scaling_factor),
        configuration=configuration,
        inputs=hashes({"tokenizer": tokenizer} | ({"fetched": fetched} if fetched else {})),
        imported=Imported(source=section.source, step=source.step, weights_sha256=source.weights_sha256),
        autoencoder=source.autoencoder,
    )


def _read(folder: Path, where: str) -> _Source:
    if not folder.is_dir():
        raise Fault(f"{where}: no such folder; give a published one ({METADATA} and weights) or an export of this project")
    if released.is_export(folder):
        module, export = load_export(folder / METADATA)
        return _Source(
            export.network, module.state_dict(), export.architecture, export.step, export.ema_decay,
            export.files[WEIGHTS].sha256,
            read_weights(folder / METADATA, export, AUTOENCODER) if AUTOENCODER in export.files else None,
        )  # fmt: skip
    published = released.load_released(folder)
    # Of a latent-MAE the later stages need the encoder only; a fine-tune needs the rest.
    autoencoder = published if isinstance(published, MaskedAutoencoder) else None
    weights = autoencoder.encoder if autoencoder else published
    metadata = released.read_metadata(folder)
    return _Source(
        metadata.network, weights.state_dict(), metadata.typed.architecture(), metadata.step, metadata.ema_decay,
        FileRecord.of(released.parameters_file(folder)).sha256, autoencoder.state_dict() if autoencoder else None,
    )  # fmt: skip


def undescribed(
    section: config.Importable, network: str, found: Mapping[str, Any], data: Mapping[str, int], of: str
) -> list[str]:
    """A line for each part of the architecture `found`, that of `of`, which configuration or `data` have otherwise."""
    said = section.model_dump()
    problems = [
        f"  {network}.{key}: {said[key]!r}, the {of} has {value!r}"
        for key, value in found.items()
        if key in said and _plain(said[key]) != _plain(value)
    ]
    return problems + [
        f"  the data's {key} is {data[key]}, the {of}'s {value}"
        for key, value in found.items()
        if data.get(key, value) != value
    ]


def _require_described(
    section: config.Importable, network: str, found: Mapping[str, Any], latent: tuple[int, int], classes: int
) -> None:
    """The configuration must say what the source is: the plan, the card and the run's name are made from it."""
    data = {"channels": latent[0], "in_channels": latent[0], "input_size": latent[1], "num_classes": classes}
    problems = undescribed(section, network, found, data, "source")
    if problems:
        raise Fault(
            f"{network}.source: {section.source} is not what the configuration describes:\n" + "\n".join(problems)
            + "\nset these keys to what it has, or give another source"
        )  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _require_scale(section: config.Importable, tokenizer: TokenizerManifest) -> None:
    if section.released and abs(tokenizer.scaling_factor - SCALING_FACTOR) > 1e-6:
        raise Fault(
            f"{section.source}: knows latents of SD-VAE at scale {SCALING_FACTOR}, this tokenizer ({tokenizer.source}) has "
            f"{tokenizer.scaling_factor}; set tokenizer.source to hub with stabilityai/sd-vae-ft-mse"
        )
