"""The feature network of a manifest, whichever it is: uint8 (B, 3, H, W) in, features and logits out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from drifting_core.artifacts import FeatureNetwork


class Output(Protocol):
    """features (B, D) float32; logits without the bias, for the score; logits with it, for labels.

    Logits are (B, 0) where the network has no classes.
    """

    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor


Network = Callable[[Tensor], Output]


def predictions(logits: Tensor) -> Tensor:
    """The likeliest class of each row (B,); -1 where the network has none."""
    return logits.argmax(1) if logits.shape[1] else torch.full((len(logits),), -1, device=logits.device)


def load_network(manifest: Path, device: torch.device) -> tuple[Network, FeatureNetwork]:
    """The network in float32 and evaluation mode, with its manifest. Raises Fault when its weights were changed."""
    record = FeatureNetwork.read(manifest)
    record.verify(manifest.parent)
    weights = manifest.parent / record.weights
    if record.network == "inception":
        from drifting_core.evaluation.networks.inception import InceptionV3

        return InceptionV3(weights).to(device), record
    if record.network != "classifier":
        from drifting_core.evaluation.networks.vision_transformers import VisionTransformer

        return VisionTransformer(record.network, manifest.parent).to(device), record
    from drifting_core.evaluation.networks.classifier import load_classifier

    return load_classifier(weights, record.architecture).to(device), record
