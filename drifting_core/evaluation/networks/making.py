"""Where a feature network comes from: published weights that the user has, or training."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from drifting_core.artifacts import FeatureNetwork, SpaceKind, hashes, publish, records, sha256_file
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import Classifier, Data, Network
from drifting_core.data.images import centre_crops
from drifting_core.data.index import ImageReader
from drifting_core.evaluation.networks.classifier import accuracy, save_classifier, train_classifier
from drifting_core.evaluation.networks.inception import InceptionV3
from drifting_core.evaluation.networks.vision_transformers import FILES, WEIGHTS, VisionTransformer
from drifting_core.faults import Fault
from drifting_core.sources.published import INCEPTION

log = logging.getLogger(__name__)


def make_network(
    manifest: Path,
    section: Network,
    data: Data | None,
    index: Path | None,
    *,
    device: torch.device,
    threads: int,
    configuration: str,
) -> None:
    """Publish weights and manifest of the network that `section` describes; `data` and `index` are for training one."""
    if section.kind == "inception":
        _adopt_inception(manifest, str(section.inception_weights), configuration=configuration)
        return
    if section.kind != "classifier":
        _adopt_transformer(manifest, section.kind, Path(str(section.weights)), configuration=configuration)
        return
    if section.classifier is None or data is None or index is None:
        raise Fault("evaluation.network: a classifier is trained on images; give the data's configuration and its --index")
    _make_classifier(
        manifest, data, section.classifier, index=index, device=device, threads=threads, configuration=configuration
    )


def _adopt_inception(manifest: Path, given: str, *, configuration: str) -> None:
    """Take the user's Inception weights in: as safetensors beside `manifest`, under the hash of the given file.

    Raises Fault when the file is missing or is not a state dict of that network.
    """
    path = Path(given)
    if not path.is_file():
        raise Fault(
            f"evaluation.network.inception_weights: {given} is missing; expected the published FID weights "
            f"{INCEPTION.name} ({INCEPTION.size}, {INCEPTION.hash}, released with pytorch-fid); put the file there, or set "
            "the key to where it is"
        )
    try:
        network = InceptionV3(path)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise Fault(
            f"evaluation.network.inception_weights: {given} is not {INCEPTION.name}: {error}; download it again"
        ) from error
    with publish(manifest.parent / WEIGHTS) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, scratch)
    FeatureNetwork(
        configuration=configuration,
        code=code_version(),
        files=records(manifest.parent, [WEIGHTS]),
        network="inception",
        weights=WEIGHTS,
        weights_sha256=sha256_file(path),
        dimensions=network.fc.in_features,
        classes=network.fc.out_features,
        resize="TF1 bilinear to 299 pixels, without antialiasing",
    ).write(manifest)


def _adopt_transformer(manifest: Path, kind: SpaceKind, given: Path, *, configuration: str) -> None:
    """Copy the two files of a vision transformer beside `manifest`, when they make one. Raises Fault when not."""
    network = VisionTransformer(kind, given)
    for name in FILES:
        with publish(manifest.parent / name) as scratch:
            shutil.copyfile(given / name, scratch)
    FeatureNetwork(
        configuration=configuration,
        code=code_version(),
        files=records(manifest.parent, list(FILES)),
        network=kind,
        weights=WEIGHTS,
        weights_sha256=sha256_file(manifest.parent / WEIGHTS),
        dimensions=network.dimensions,
        classes=0,
        resize=network.resize,
    ).write(manifest)


def _make_classifier(
    manifest: Path,
    data: Data,
    how: Classifier,
    *,
    index: Path,
    device: torch.device,
    threads: int,
    configuration: str,
) -> None:
    """Train on the training images at the centre crop, measure on the validation images, publish beside `manifest`.

    All images are held in memory as bytes: this is for small data sets, ImageNet has Inception.
    """
    train, val = (ImageReader(index, split, data.archives) for split in ("train", "val"))
    classes = data.expected.classes
    images = torch.from_numpy(centre_crops(train, range(len(train)), data.image_size, threads))
    network = train_classifier(how, images, torch.from_numpy(train.labels), classes, device)
    held_out = torch.from_numpy(centre_crops(val, range(len(val)), data.image_size, threads))
    share = accuracy(network, held_out, torch.from_numpy(val.labels), device, how.batch)
    log.info("accuracy on %d validation images: %.3f (chance: %.3f)", len(val), share, 1 / classes)
    with publish(manifest.parent / WEIGHTS) as scratch:
        save_classifier(network, scratch)
    FeatureNetwork(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"index": index}),
        files=records(manifest.parent, [WEIGHTS]),
        network="classifier",
        weights=WEIGHTS,
        weights_sha256=sha256_file(manifest.parent / WEIGHTS),
        architecture={"width": how.width, "classes": classes},
        dimensions=network.dimensions,
        classes=classes,
        resize=f"none: sees {data.image_size} x {data.image_size} pixels",
        val_accuracy=share,
    ).write(manifest)
