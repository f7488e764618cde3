"""The evaluation contract: what a number depends on, and the refusal to compare numbers that depend on other things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from drifting_core.artifacts import (
    EvaluationContract,
    FeatureNetwork,
    ReferenceStatistics,
    Samples,
    TokenizerManifest,
)
from drifting_core.artifacts.identity import digest
from drifting_core.config import Contract
from drifting_core.faults import Fault

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = "statistics.npz"
MANIFOLD = "features_val.h5"
PRECISION: Literal["float32"] = "float32"  # of decoder and feature network in an evaluation

Uint8Rule = Literal["truncate", "round", "adm"]


def make_contract(
    how: Contract,
    *,
    samples: Samples,
    tokenizer: TokenizerManifest,
    network: FeatureNetwork,
    reference: ReferenceStatistics,
) -> EvaluationContract:
    """The contract of one evaluation. Raises Fault where its parts were not made for each other."""
    require_tokenizer(samples, tokenizer)
    if reference.network_sha256 != network.weights_sha256:
        raise Fault(
            f"reference statistics were made with the network {reference.network_sha256[:16]}…, the network given has the "
            f"weights {network.weights_sha256[:16]}…; make the reference again with this network"
        )
    fewest = min(samples.samples, reference.precision_recall_images)
    return EvaluationContract(
        network=network.network,
        network_sha256=network.weights_sha256,
        resize=network.resize,
        uint8=how.uint8,
        label_plan=samples.label_plan,
        sampling_batch=samples.compute_batch,
        compute_batch=how.compute_batch,
        precision=PRECISION,
        tokenizer_sha256=tokenizer.weights_sha256,
        reference_split=reference.split,
        reference_images=reference.images,
        reference_sha256=reference.files[STATISTICS].sha256,
        manifold_images=reference.precision_recall_images,
        manifold_sha256=reference.files[MANIFOLD].sha256,
        precision_recall_k=how.precision_recall_k,
        bootstrap=how.bootstrap,
        samples=samples.samples,
        sampling_precision=samples.precision,
        kernel_subsets=how.kernel_subsets,
        kernel_subset_size=min(fewest, how.kernel_subset_size) if how.kernel_subsets else 0,
        extrapolation=how.extrapolation,
    )


def require_tokenizer(samples: Samples, tokenizer: TokenizerManifest) -> None:
    """Raises Fault unless the samples are latents of this tokenizer."""
    if samples.tokenizer_sha256 != tokenizer.weights_sha256:
        raise Fault(
            f"samples are latents of the tokenizer {samples.tokenizer_sha256[:16]}…, the tokenizer given has the weights "
            f"{tokenizer.weights_sha256[:16]}…; decode with the tokenizer that the generator was trained on"
        )


def contract_hash(contract: EvaluationContract) -> str:
    """A field at its default is left out: one that is added later changes no older contract."""
    return digest(contract.model_dump(mode="json", exclude_defaults=True))


def require_same(contracts: Mapping[str, EvaluationContract]) -> EvaluationContract:
    """The one contract of all (by the name of what was made under it). Raises Fault showing the first two that differ."""
    if not contracts:
        raise Fault("no evaluation was given; give at least one")
    (first_name, first), *others = contracts.items()
    for name, other in others:
        if other == first:
            continue
        ours, theirs = first.model_dump(), other.model_dump()
        differing = "\n".join(
            f"  {field}: {ours[field]!r} against {theirs[field]!r}" for field in ours if ours[field] != theirs[field]
        )
        raise Fault(
            f"{first_name} and {name} were made under unlike evaluation contracts "
            f"({contract_hash(first)[:16]}… and {contract_hash(other)[:16]}…), their numbers cannot be compared; "
            f"these fields differ:\n{differing}\nevaluate both under one configuration"
        )
    return first


def explain_name(contract: EvaluationContract) -> str:
    """Why the distance has its name, in words for tables and claims."""
    if contract.distance_name == "FID":
        return "FID: the published Inception weights against statistics of all ImageNet training images."
    if contract.distance_name == "FID-val":
        return "FID-val: the published Inception weights, but against validation images; not comparable with published FID."
    if contract.uses_fid_network:
        return (
            f"FD, not FID: the reference is {contract.reference_images:,} images, not ImageNet's "
            f"{EvaluationContract.fid_images:,} training images; not comparable with published FID."
        )
    if contract.network in EvaluationContract.further_spaces:
        return (
            f"{contract.distance_name}: a Fréchet distance, but of {contract.network_sha256[:12]}…'s features, so no FID; "
            "not comparable with any number of other weights, preprocessing or reference."
        )
    what = "Inception with other weights" if contract.network == "inception" else "a small classifier trained here"
    return (
        f"{contract.distance_name} and {contract.score_name}, not FID and IS: the feature network is {what}; "
        "not comparable with any published number."
    )


def to_uint8(images: Tensor, rule: Uint8Rule) -> Tensor:
    """Images in [0, 1] to bytes. truncate: floor(255 x), as released; round: nearest; adm: 127.5 (2x - 1) + 128, floored.

    Raises ValueError for pixels outside [0, 1] or not finite: the decoder clips, and nothing else is hidden here.
    """
    import torch  # only here: tables and recommendations are made by jobs of half a second

    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):  # false for NaN
        raise ValueError(f"to_uint8: pixels are in [0, 1], found {float(low):.4g} to {float(high):.4g}")
    scaled = {
        "truncate": lambda x: x * 255.0,
        "round": lambda x: (x * 255.0).round(),
        "adm": lambda x: ((2.0 * x - 1.0) * 127.5 + 128.0).clamp(max=255.0),  # 1.0 gives 255.5
    }[rule](images)
    return scaled.to(torch.uint8)
