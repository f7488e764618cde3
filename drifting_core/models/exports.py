"""Exports: the weights that later stages read (docs/decisions/02).

`model.safetensors` holds the EMA weights, `metadata.json` (artifacts.Export) says what they are and is written last. An
encoder's export holds the whole masked autoencoder beside it, where that is known: a training that starts from the export
needs decoder and classifier, too. `raw.safetensors`, on request, holds the weights without averaging; no stage reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from drifting_core.artifacts import Export, Imported, LatentContract, check_file, publish, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.faults import Fault
from drifting_core.models.generator import Generator
from drifting_core.models.mae import LatentEncoder

WEIGHTS, RAW = "model.safetensors", "raw.safetensors"
AUTOENCODER = "autoencoder.safetensors"  # EMA weights of encoder, decoder and classifier
Network = TypeVar("Network", bound=nn.Module)


def write_export(
    metadata: Path,
    network: Literal["encoder", "generator"],
    weights: Mapping[str, Tensor],
    architecture: dict[str, Any],
    *,
    step: int,
    ema_decay: float,
    latents: LatentContract,
    configuration: str,
    inputs: dict[str, str],
    imported: Imported | None = None,
    autoencoder: Mapping[str, Tensor] | None = None,
    raw: Mapping[str, Tensor] | None = None,
) -> None:
    """Publish `weights` (EMA, by parameter name) beside `metadata`, then that.

    Beside them, where given, those of an encoder's whole `autoencoder` (EMA) and the `raw` ones, without averaging.
    """
    given = {WEIGHTS: weights, AUTOENCODER: autoencoder, RAW: raw}
    contents = {name: content for name, content in given.items() if content}
    for name, content in contents.items():
        with publish(metadata.parent / name) as scratch:
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}
            safetensors.torch.save_file(tensors, scratch)
    Export(
        configuration=configuration,
        code=code_version(),
        inputs=inputs,
        files=records(metadata.parent, list(contents)),
        network=network,
        step=step,
        ema_decay=ema_decay,
        architecture=architecture,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        latents=latents,
        imported=imported,
    ).write(metadata)


def load_export(metadata: Path) -> tuple[Generator | LatentEncoder, Export]:
    """The exported network, whichever it is, as `load_generator` and `load_encoder` give it."""
    if Export.read(metadata).network == "generator":
        return load_generator(metadata)
    return load_encoder(metadata)


def load_generator(metadata: Path) -> tuple[Generator, Export]:
    """The exported generator in eval mode, its weights frozen. Raises Fault when it is another kind or was changed."""
    export = read_export(metadata, "generator")
    with torch.device("meta"):
        module = Generator(**export.architecture)
    return _load(module, metadata, export), export


def load_encoder(metadata: Path) -> tuple[LatentEncoder, Export]:
    """The exported encoder in eval mode, its weights frozen. Raises Fault when it is another kind or was changed."""
    export = read_export(metadata, "encoder")
    with torch.device("meta"):
        module = LatentEncoder(**export.architecture)
    return _load(module, metadata, export), export


def read_export(metadata: Path, network: Literal["encoder", "generator"]) -> Export:
    """The metadata alone. Raises Fault when it is of another network."""
    export = Export.read(metadata)
    if export.network != network:
        raise Fault(f"{metadata}: holds the weights of a {export.network}, expected those of a {network}; give its export")
    return export


def read_weights(metadata: Path, export: Export, name: str = WEIGHTS) -> dict[str, Tensor]:
    """One of the export's files by parameter name. Raises Fault when it was changed."""
    check_file(metadata.parent / name, export.files[name])
    return safetensors.torch.load_file(metadata.parent / name)


def _load(module: Network, metadata: Path, export: Export) -> Network:
    module.load_state_dict(read_weights(metadata, export), assign=True)
    return module.eval().requires_grad_(False)
