"""Warm start: a training begins from the EMA weights of an export, not from those of its seed (init_from, finetune)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from drifting_core.artifacts import LatentContract
from drifting_core.faults import Fault
from drifting_core.models.exports import AUTOENCODER, WEIGHTS, read_export, read_weights

log = logging.getLogger(__name__)


class WarmStart:
    """The export at `metadata`, of which nothing large is read before a training begins from it."""

    def __init__(self, metadata: Path, network: Literal["encoder", "generator"]) -> None:
        """Raises Fault when it is the export of another network."""
        self.metadata, self.network = metadata, network
        self.export = read_export(metadata, network)
        self.file = AUTOENCODER if AUTOENCODER in self.export.files else WEIGHTS

    @property
    def sha256(self) -> str:
        """Of the weights that are read: a training goes on from its state only if it began from these."""
        return self.export.files[self.file].sha256

    def weights(self, module: nn.Module, architecture: Mapping[str, Any], latents: LatentContract) -> dict[str, Tensor]:
        """Tensors by the names that they have in `module`, which was built from `architecture` and is to see `latents`.

        An encoder's export without its autoencoder has no decoder and no classifier; they are left out, with a warning.
        Raises Fault naming every field in which the export is made otherwise, and when its file was changed.
        """
        made = _differences(architecture, self.export.architecture)
        self._require(made + _differences(latents.model_dump(), self.export.latents.model_dump(), "latents."))
        found = read_weights(self.metadata, self.export, self.file)
        if self.network == "encoder" and self.file == WEIGHTS:
            log.warning(
                "%s: has no %s: the encoder begins from this export, decoder and classifier from the seed",
                self.metadata, AUTOENCODER,
            )  # fmt: skip
            found = {f"encoder.{name}": tensor for name, tensor in found.items()}
        # What no field says: the number of classes of a classifier.
        shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
        self._require(_differences(shapes, {name: list(tensor.shape) for name, tensor in found.items()}))
        return found

    def _require(self, differences: list[str]) -> None:
        if differences:
            raise Fault(
                f"{self.metadata}: a training of the {self.network} that the configuration describes cannot start from this "
                "export; they differ in\n" + "\n".join(differences) + "\ngive another export, or describe the same network"
            )


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], section: str = "") -> list[str]:
    both = [name for name in wanted if name in found and wanted[name] != found[name]]
    return [f"  {section}{name}: here {wanted[name]!r}, in the export {found[name]!r}" for name in both]
