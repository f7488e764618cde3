"""The encoder's audit: an export is what the configuration says, and what it knows of images that it never saw.

Every generator's training reads it: drift is computed in the features of this encoder and of no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from drifting_core import config
from drifting_core.artifacts import EncoderAudit, Export, HeldOut, LatentContract, check_file, hashes
from drifting_core.artifacts.provenance import code_version
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.faults import Fault
from drifting_core.jobs.job import Progress
from drifting_core.models.exports import AUTOENCODER, WEIGHTS, load_encoder, read_export, read_weights
from drifting_core.models.importing import undescribed
from drifting_core.models.mae import LatentEncoder, MaskedAutoencoder

_REMEDY = "\nset these keys to what it has, or make the export again"
_SEED = 0  # of masks and of the choice of training images: the same for every encoder
_BATCH = 250


def audit_encoder(
    output: Path,
    encoder: config.Encoder,
    metadata: Path,
    train: Path,
    val: Path,
    *,
    device: torch.device,
    configuration: str,
) -> None:
    """Check the export at `metadata` against `encoder`, measure it on the latents, and write the audit at `output`.

    `train`, `val`: manifests of the latents. Raises Fault, in one message, with everything in which configuration, latents
    and export differ.
    """
    export = read_export(metadata, "encoder")
    stores = LatentStore(train), LatentStore(val)
    require_described(metadata, export, encoder, stores[0])
    network = load_encoder(metadata)[0]
    autoencoder = _autoencoder(metadata, export, network, encoder.mask_patch_size)
    entries = _entries(network, stores[0].shape)
    EncoderAudit(
        configuration=configuration,
        code=code_version(),
        inputs=hashes({"encoder": metadata, "latents_train": train, "latents_val": val}),
        files=export.files,
        encoder=metadata.parent.parent.name,
        step=export.step,
        base_width=network.widths[0],
        blocks=[len(stage) for stage in network.stages],  # type: ignore[arg-type]
        input_patch_size=network.input_patch_size,
        norm_groups=export.architecture["norm_groups"],
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        latents=export.latents,
        latent_shape=list(stores[0].shape),
        feature_entries=len(entries),
        feature_vectors=sum(entries),
        held_out=_held_out(encoder, network, autoencoder, *stores, device),
    ).write(output)


def require_audited(metadata: Path, audit: Path, encoder: config.Encoder) -> None:
    """Raises Fault, in one message, unless `audit` is of this export, and this of the encoder that is configured."""
    export, checked = read_export(metadata, "encoder"), EncoderAudit.read(audit)
    problems = undescribed(encoder, "encoder", export.architecture, {}, "export")
    if checked.inputs.get("encoder") != hashes({"encoder": metadata})["encoder"]:
        problems.append(f"  {audit} is the audit of another export ({checked.encoder}, step {checked.step}); make it again")
    if problems:
        raise Fault(
            f"{metadata}: not the audited encoder that the configuration describes:\n" + "\n".join(problems) + _REMEDY
        )


# --- what is said and what is there ---------------------------------------------------------------------------------


def require_described(metadata: Path, export: Export, encoder: config.Encoder, store: LatentStore) -> None:
    """Raises Fault with every file, field of the architecture and field of the latent contract that is not as promised."""
    problems = undescribed(encoder, "encoder", export.architecture, {"in_channels": store.shape[0]}, "export")
    problems += _unlike(export.latents, store.contract)
    for name, record in export.files.items():
        try:
            check_file(metadata.parent / name, record)
        except Fault as fault:
            problems.append(f"  {fault}")
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in LatentEncoder(**export.architecture).parameters())
    if export.parameters != expected:
        problems.append(f"  parameters: {export.parameters:,}, an encoder of its architecture has {expected:,}")
    if problems:
        raise Fault(f"{metadata}: not the encoder that the configuration describes:\n" + "\n".join(problems) + _REMEDY)


def _unlike(found: LatentContract, stored: LatentContract) -> list[str]:
    theirs, ours = found.model_dump(), stored.model_dump()
    return [
        f"  latents.{field}: the export knows {theirs[field]!r}, the stored ones have {ours[field]!r}"
        for field in ours
        if theirs[field] != ours[field]
    ]


def _entries(network: LatentEncoder, shape: Sequence[int]) -> list[int]:
    """How many vectors each entry of the drift loss has, the raw latent first (protocol 2.4)."""
    with torch.inference_mode():
        features = network.features(torch.zeros(1, *shape))
    return [1, *(entry.shape[1] for entry in features.values())]


def _autoencoder(metadata: Path, export: Export, network: LatentEncoder, mask_patch_size: int) -> MaskedAutoencoder | None:
    """The masked autoencoder around `network`, where the export has it. Raises Fault when it is around another one."""
    if AUTOENCODER not in export.files:
        return None
    tensors = read_weights(metadata, export, AUTOENCODER)
    for name, tensor in network.state_dict().items():
        if not torch.equal(tensors[f"encoder.{name}"], tensor):
            raise Fault(f"{metadata.parent / AUTOENCODER}: its {name} is not that of {WEIGHTS}; make the export again")
    with torch.device("meta"):
        module = MaskedAutoencoder(
            **export.architecture, num_classes=len(tensors["classifier.bias"]), mask_patch_size=mask_patch_size
        )
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


# --- what it knows --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _held_out(
    encoder: config.Encoder,
    network: LatentEncoder,
    autoencoder: MaskedAutoencoder | None,
    train: LatentStore,
    val: LatentStore,
    device: torch.device,
) -> HeldOut:
    network.to(device)
    known = some_of_each_class(train.labels, HeldOut.most_per_class)
    classes, means = _class_means(network, train, known, device)
    head = autoencoder.to(device).classifier if autoencoder else None
    by_head, by_means, error = 0, 0, 0.0
    progress = Progress("audit", len(val), unit="held-out images")
    for rows in torch.arange(len(val)).split(_BATCH):
        latents, labels = val.gather(rows, torch.zeros_like(rows)).to(device), val.labels[rows].to(device)
        pooled = _pooled(network, latents)
        by_means += int((classes[torch.cdist(pooled, means).argmin(1)] == labels).sum())
        if head is not None and autoencoder is not None:
            by_head += int((head(pooled).argmax(1) == labels).sum())
            error += _reconstruction_error(autoencoder, latents, rows, encoder.mask_ratio)
        progress.advance(len(rows))
    return HeldOut(
        images=len(val),
        mask_ratio=encoder.mask_ratio,
        mask_patch_size=encoder.mask_patch_size,
        reconstruction_error=error / len(val) if autoencoder else None,
        head_accuracy=by_head / len(val) if head is not None and head.out_features == val.num_classes else None,
        nearest_mean_accuracy=by_means / len(val),
        images_per_class=HeldOut.most_per_class,
        training_images=len(known),
    )


def some_of_each_class(labels: Tensor, most: int) -> Tensor:
    """Rows of at most `most` images of each class of `labels` (N,), drawn without replacement, ordered by class."""
    order = draws.permutation(draws.key(_SEED, "audit", "rows"), len(labels))
    order = order[torch.argsort(labels[order], stable=True)]
    sorted_labels = labels[order]
    number_in_class = torch.arange(len(order)) - torch.searchsorted(sorted_labels, sorted_labels)
    return order[number_in_class < most]


def _class_means(network: LatentEncoder, store: LatentStore, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(K,) the classes of `rows`, and (K, 8C) the mean of the pooled features of each."""
    classes, place, counts = store.labels[rows].unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), network.widths[-1], device=device)
    for some, at in zip(rows.split(_BATCH), place.split(_BATCH), strict=True):
        latents = store.gather(some, torch.zeros_like(some)).to(device)
        sums.index_add_(0, at.to(device), _pooled(network, latents))
    return classes.to(device), sums / counts.to(device)[:, None]


def _pooled(network: LatentEncoder, latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 8C): what the classifier sees."""
    return network(latents)["layer4"].mean(dim=(2, 3))


def _reconstruction_error(autoencoder: MaskedAutoencoder, latents: Tensor, rows: Tensor, mask_ratio: float) -> float:
    """Sum over a batch. Each row of the store has a mask of its own, whatever the batch."""
    height, width = autoencoder.mask_grid(*latents.shape[2:])
    uniforms = draws.uniform_rows(draws.key(_SEED, "audit", "mask"), rows, height * width).reshape(-1, height, width)
    mask = autoencoder.random_mask(uniforms.to(latents.device), mask_ratio)
    unlabelled = torch.zeros(len(rows), dtype=torch.int64, device=latents.device)  # the cross-entropy is not looked at
    return float(autoencoder(latents, unlabelled, mask, 0.0).reconstruction.double().sum())


# --- several encoders -----------------------------------------------------------------------------------------------


def table(audits: Sequence[Path]) -> str:
    """The audits as text, a row each: what was held out, and how well each encoder knows it."""
    read = [EncoderAudit.read(path) for path in audits]
    rows = [("encoder", "width", "reconstruction error", "head accuracy", "nearest-mean accuracy")]
    rows += [
        (
            audit.encoder,
            str(audit.base_width),
            _number(audit.held_out.reconstruction_error),
            _number(audit.held_out.head_accuracy),
            _number(audit.held_out.nearest_mean_accuracy),
        )
        for audit in read
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    held_out = sorted({audit.held_out.images for audit in read})
    return "\n".join([*lines, f"measured on {', '.join(f'{images:,}' for images in held_out)} held-out images"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
