"""The feature network of a manifest, whichever it is: uint8 (B, 3, H, W) in, features and logits out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from drifting_core.artifacts import FeatureNetwork, publish, records, sha256_file
from drifting_core.faults import Fault
from drifting_core.provenance import code_version

PUBLISHED_NAME = "pt_inception-2015-12-05-6726825d.pth"
_WEIGHTS = "model.safetensors"


class Output(Protocol):
    """features (B, D) float32; logits without the bias, for the score; logits with it, for labels."""

    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor


Network = Callable[[Tensor], Output]


def load_network(manifest: Path, device: torch.device) -> tuple[Network, FeatureNetwork]:
    """The network in float32 and evaluation mode, with its manifest. Raises Fault when its weights were changed."""
    record = FeatureNetwork.read(manifest)
    record.verify(manifest.parent)
    weights = manifest.parent / record.weights
    if record.network == "inception":
        from drifting_core.evaluation.inception import InceptionV3

        return InceptionV3(weights).to(device), record
    from drifting_core.evaluation.classifier import load_classifier

    return load_classifier(weights, record.architecture).to(device), record


def adopt_inception(manifest: Path, given: str, *, configuration: str) -> None:
    """Take the user's Inception weights in: as safetensors beside `manifest`, under the hash of the given file.

    Raises Fault when the file is missing or is not a state dict of that network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from drifting_core.evaluation.inception import InceptionV3

    path = Path(given)
    if not path.is_file():
        raise Fault(
            f"evaluation.network.inception_weights: {given} is missing; expected the published FID weights "
            f"{PUBLISHED_NAME} (about 96 MB, SHA-256 beginning with 6726825d, released with pytorch-fid); put the file "
            "there, or set the key to where it is"
        )
    try:
        network = InceptionV3(path)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise Fault(f"evaluation.network.inception_weights: {given} is not {PUBLISHED_NAME}: {error}") from error
    with publish(manifest.parent / _WEIGHTS) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, scratch)
    FeatureNetwork(
        configuration=configuration,
        code=code_version(),
        files=records(manifest.parent, [_WEIGHTS]),
        network="inception",
        weights=_WEIGHTS,
        weights_sha256=sha256_file(path),
        dimensions=network.fc.in_features,
        classes=network.fc.out_features,
        resize="TF1 bilinear to 299 pixels, without antialiasing",
    ).write(manifest)
