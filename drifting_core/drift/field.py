"""The drift field as the paper prints it (Algorithm 2; sections 3.1-3.3, appendix A.1).

This is the form of the toy experiments and of teaching. Training uses the released objective, `drift/loss.py`, which
differs in normalisation, self mask, affinity floor and guidance weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SELF_DISTANCE = 1e6


def drift_field(x: Tensor, positives: Tensor, negatives: Tensor, temperature: float, *, mask_self: bool = False) -> Tensor:
    """V(x), shape (N, D): where each x should move, attracted by `positives` (P, D), repelled by `negatives` (Q, D).

    The kernel is exp(-|x - y| / temperature), normalised over both axes of the joint (N, P + Q) matrix by the
    geometric mean of two softmaxes. `mask_self=True` says that `negatives` are `x` themselves, in order, and takes
    each sample's distance to itself out (adds 1e6). Raises ValueError on shapes that do not fit.
    """
    if x.dim() != 2 or any(y.dim() != 2 or y.shape[1] != x.shape[1] for y in (positives, negatives)):
        raise ValueError(
            "drift_field: x, positives and negatives are (count, D) with one D, found "
            f"{tuple(x.shape)}, {tuple(positives.shape)}, {tuple(negatives.shape)}"
        )
    # Differences, not |x|^2 + |y|^2 - 2xy: the latter loses small distances.
    to_positives = torch.cdist(x, positives, compute_mode="donot_use_mm_for_euclid_dist")
    to_negatives = torch.cdist(x, negatives, compute_mode="donot_use_mm_for_euclid_dist")
    if mask_self:
        if len(negatives) != len(x):
            raise ValueError(f"drift_field: mask_self needs negatives = x, found {len(negatives)} and {len(x)}")
        to_negatives = to_negatives + _SELF_DISTANCE * torch.eye(len(x), dtype=x.dtype, device=x.device)
    logits = -torch.cat([to_positives, to_negatives], dim=1) / temperature
    affinity = torch.sqrt(logits.softmax(dim=1) * logits.softmax(dim=0))
    attract, repel = affinity.split([len(positives), len(negatives)], dim=1)
    weight_positive = attract * repel.sum(dim=1, keepdim=True)
    weight_negative = repel * attract.sum(dim=1, keepdim=True)
    return weight_positive @ positives - weight_negative @ negatives
