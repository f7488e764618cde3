"""Feature spaces of published vision transformers: DINOv2's class token, CLIP's image embedding; through `transformers`.

From a local folder in Hugging Face format and safetensors only; nothing is downloaded, no code of the folder runs. The
preprocessing is ours, so that it does not change with a version. Called like Inception, but without classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from drifting_core.artifacts import SpaceKind
from drifting_core.faults import Fault

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS)
_SIDE = 224


class _Kind(NamedTuple):
    """Its class in transformers, model types that hold one, mean and standard deviation of its training's pixels."""

    model: str
    types: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_KINDS: dict[SpaceKind, _Kind] = {
    "dinov2": _Kind("Dinov2Model", ("dinov2",), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": _Kind(
        "CLIPVisionModelWithProjection",
        ("clip", "clip_vision_model"),
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}
# What transformers only warns about, leaving weights random. A whole CLIP has a text tower too: unexpected keys are fine.
_NOT_WHOLE = ("missing_keys", "mismatched_keys", "error_msgs")


class FeaturesOnly(NamedTuple):
    """features (B, D) float32; no logits: (B, 0)."""

    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor


class VisionTransformer(nn.Module):
    """The network with its weights, frozen, in evaluation mode, float32."""

    mean: Tensor
    std: Tensor
    resize = f"bicubic, antialiased, to {_SIDE} pixels, rounded to bytes"

    def __init__(self, kind: SpaceKind, folder: Path) -> None:
        """Raises Fault when transformers is not installed, or the folder is no such model, whole."""
        super().__init__()
        self.kind = kind
        self.model = _load(kind, folder)
        self.register_buffer("mean", torch.tensor(_KINDS[kind].mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_KINDS[kind].std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def dimensions(self) -> int:
        config = self.model.config
        return int(config.projection_dim if self.kind == "clip" else config.hidden_size)

    def forward(self, images: Tensor) -> FeaturesOnly:
        """uint8 (B, 3, H, W) -> FeaturesOnly. Raises ValueError for anything but uint8 RGB."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"VisionTransformer: images are uint8 (B, 3, H, W), found {images.dtype} {tuple(images.shape)}")
        pixels = (resize_bicubic(images, _SIDE) / 255.0 - self.mean) / self.std
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            output = self.model(pixel_values=pixels)
        # DINOv2 returns the tokens after its final norm, the class token first.
        features = output.image_embeds if self.kind == "clip" else output.last_hidden_state[:, 0]
        none = features.new_zeros(len(features), 0)
        return FeaturesOnly(features, none, none)


def resize_bicubic(images: Tensor, side: int) -> Tensor:
    """uint8 (B, C, H, W) -> whole numbers in float32 (B, C, side, side), as Pillow's bicubic, which these models trained on.

    Columns first and then rows, each ending in bytes: bicubic overshoots at edges.
    """
    resized = images.to(torch.float32)
    for size in ((images.shape[2], side), (side, side)):
        resized = F.interpolate(resized, size=size, mode="bicubic", antialias=True).clamp(0, 255).round()
    return resized


def _load(kind: SpaceKind, folder: Path) -> Any:
    key = "evaluation.spaces"
    for name in FILES:
        if not (folder / name).is_file():
            raise Fault(
                f"{key}: {folder / name} is missing; expected a {kind} model in Hugging Face format ({' and '.join(FILES)}, "
                "in one file); put it there, or set `weights` to where it is"
            )
    try:
        found = json.loads((folder / CONFIG).read_bytes()).get("model_type")
    except (json.JSONDecodeError, AttributeError) as error:
        raise Fault(f"{folder / CONFIG}: not the configuration of a model: {error}; download it again") from error
    types = _KINDS[kind].types
    if found not in types:
        raise Fault(
            f"{folder / CONFIG}: model_type is {found!r}, expected {' or '.join(types)} for the space {kind}; give "
            "such a model, or set `kind`"
        )
    try:
        import transformers
    except ImportError as error:
        raise Fault(
            f"{key}: the space {kind} needs the package transformers ({error}); install it: pip install --constraint "
            "envs/constraints.txt --editable '.[features]'"
        ) from error
    try:
        model, report = getattr(transformers, _KINDS[kind].model).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",  # the same sums on every device and version
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise Fault(
            f"{folder}: no {kind} model that transformers {transformers.__version__} can load: {error}; give one in "
            "Hugging Face format"
        ) from error
    faults = [f"{what}: {sorted(map(str, report[what]))[:5]}" for what in _NOT_WHOLE if report.get(what)]
    if faults:
        raise Fault(f"{folder / WEIGHTS}: not a whole {kind} model: {', '.join(faults)}; download it again")
    return model
