"""The queue of real samples (paper A.8, protocol 1.8), as indices.

An entry is the code `row * views + view` of a stored latent; the latents are gathered from the store when they are drawn.
One logical bank for the whole run: its content is a function of (seed, number of pushed samples).
"""

from __future__ import annotations

import torch
from torch import Tensor

from drifting_core.faults import Fault


class SampleBank:
    """Ring buffers: the latest `per_class` samples of each class and the latest `unconditional` of all."""

    def __init__(self, num_classes: int, per_class: int, unconditional: int) -> None:
        self.rings = torch.zeros(num_classes, per_class, dtype=torch.int64)
        self.counts = torch.zeros(num_classes, dtype=torch.int64)  # pushed so far, not capped
        self.ring_all = torch.zeros(unconditional, dtype=torch.int64)
        self.count_all = torch.zeros((), dtype=torch.int64)

    def push(self, codes: Tensor, labels: Tensor) -> None:
        """Append `codes` (P,) of classes `labels` (P,) in order; a full ring forgets its oldest entries."""
        order = torch.argsort(labels, stable=True)
        sorted_labels = labels[order]
        per_label = torch.bincount(labels, minlength=len(self.counts))
        first = torch.cumsum(per_label, 0) - per_label
        rank = torch.arange(len(codes)) - first[sorted_labels]  # 0, 1, ... within each class
        # Of more than a ring's capacity only the latest count; dropping the rest keeps the scatter free of collisions.
        capacity = self.rings.shape[1]
        keep = rank >= per_label[sorted_labels] - capacity
        slot = (self.counts[sorted_labels] + rank) % capacity
        self.rings[sorted_labels[keep], slot[keep]] = codes[order][keep]
        self.counts += per_label

        latest = codes[-len(self.ring_all) :]
        start = self.count_all + len(codes) - len(latest)
        self.ring_all[(start + torch.arange(len(latest))) % len(self.ring_all)] = latest
        self.count_all += len(codes)

    def fewest(self) -> int:
        """Samples held by the class that holds fewest."""
        return int(self.counts.clamp(max=self.rings.shape[1]).min())

    def positives(self, labels: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Codes (B, count) of each label's class; `uniforms` is (B, per_class).

        Without replacement while the ring holds enough, else with replacement (as released). Raises Fault for an
        empty class.
        """
        return torch.stack(
            [
                _draw(self.rings[label], int(self.counts[label]), count, u, f"class {int(label)}")
                for label, u in zip(labels, uniforms, strict=True)
            ]
        )

    def unconditional(self, count: int, uniforms: Tensor) -> Tensor:
        """Codes (B, count) of any class, drawn independently per row; `uniforms` is (B, unconditional)."""
        pushed = int(self.count_all)
        return torch.stack([_draw(self.ring_all, pushed, count, u, "all classes") for u in uniforms])

    def tensors(self) -> dict[str, Tensor]:
        """Content, for the training state."""
        return {"rings": self.rings, "counts": self.counts, "ring_all": self.ring_all, "count_all": self.count_all}

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


def _draw(ring: Tensor, pushed: int, count: int, uniforms: Tensor, whose: str) -> Tensor:
    held = min(pushed, len(ring))
    if held == 0:
        raise Fault(
            f"the sample bank holds nothing of {whose}: the training split has no image of it; add some, or take the "
            "class away"
        )
    if held >= count:
        return ring[torch.argsort(uniforms[:held], stable=True)[:count]]
    return ring[(uniforms[:count] * held).long()]
