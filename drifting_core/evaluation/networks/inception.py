"""The FID Inception network: the 2015-12-05 TensorFlow Inception-v3 as it was ported to PyTorch.

Reads the published state dict `pt_inception-2015-12-05-6726825d.pth` (566 entries) or the same as safetensors. What
makes it the FID network rather than torchvision's: 1008 classes, average pools that do not count padding, a *max*
pool in the last block, TF1's bilinear resize, (x - 128) / 128. golden/inception.npz holds it to torch-fidelity's.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 299
_NORM_EPS = 1e-3
_CLASSES = 1008


class InceptionOutput(NamedTuple):
    """`features` (B, 2048) for FID; `logits_unbiased` (B, 1008), without the bias, for IS; with `taps` also the rest."""

    features: Tensor
    logits_unbiased: Tensor
    logits: Tensor
    features_64: Tensor | None = None
    features_192: Tensor | None = None
    features_768: Tensor | None = None


class InceptionV3(nn.Module):
    """The network with its weights, frozen, in evaluation mode, float32.

    Raises FileNotFoundError without the file and ValueError, naming every entry, where the state dict is not exactly
    the published one in names and shapes.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self._build()
        self.load_state_dict(_read_state(Path(weights), self.state_dict()), strict=True, assign=True)
        self.requires_grad_(False).eval()

    @classmethod
    def untrained(cls) -> InceptionV3:
        """With random weights: to be timed, not to see with."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._build()
        return made.requires_grad_(False).eval()

    def _build(self) -> None:
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = MixedA(192, pool_channels=32)
        self.Mixed_5c = MixedA(256, pool_channels=64)
        self.Mixed_5d = MixedA(288, pool_channels=64)
        self.Mixed_6a = ReductionA(288)
        self.Mixed_6b = MixedB(768, inner=128)
        self.Mixed_6c = MixedB(768, inner=160)
        self.Mixed_6d = MixedB(768, inner=160)
        self.Mixed_6e = MixedB(768, inner=192)
        self.Mixed_7a = ReductionB(768)
        self.Mixed_7b = MixedC(1280, pool="average")
        self.Mixed_7c = MixedC(2048, pool="max")
        self.fc = nn.Linear(2048, _CLASSES)

    def train(self, mode: bool = True) -> InceptionV3:
        """Stays in evaluation mode whatever the module that holds it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, *, taps: bool = False) -> InceptionOutput:
        """uint8 images (B, 3, H, W) of any size -> InceptionOutput. Raises ValueError for anything but uint8 RGB.

        Runs in float32 with TF32 and cuDNN's algorithm search off: a number under an evaluation contract must not
        depend on the process's performance switches.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"InceptionV3: images are uint8 (B, 3, H, W), found {images.dtype} {tuple(images.shape)}")
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            return self._run((resize_tf1(images.to(torch.float32), _SIDE) - 128.0) / 128.0, taps)

    def _run(self, x: Tensor, taps: bool) -> InceptionOutput:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = first = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = second = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        third = x
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean(dim=(2, 3))
        # Not features @ W through cuBLAS's TF32 switch: the float64 product is cheap and has no such switch.
        unbiased = (features.double() @ self.fc.weight.double().T).float()
        output = InceptionOutput(features, unbiased, unbiased + self.fc.bias)
        if not taps:
            return output
        return output._replace(
            features_64=first.mean(dim=(2, 3)),
            features_192=second.mean(dim=(2, 3)),
            features_768=third.mean(dim=(2, 3)),
        )


def resize_tf1(images: Tensor, side: int) -> Tensor:
    """TF1's bilinear resize (align_corners=False, no half-pixel centres, no antialias): source = target * in / out.

    images (B, C, H, W) float -> (B, C, side, side).
    """
    for axis in (3, 2):  # columns first, as TensorFlow
        size = images.shape[axis]
        position = torch.arange(side, dtype=torch.float64, device=images.device) * (size / side)
        low = position.floor().long().clamp_(max=size - 1)
        weight = (position - low).to(images.dtype)
        weight = weight if axis == 3 else weight[:, None]
        left = images.index_select(axis, low)
        right = images.index_select(axis, (low + 1).clamp_(max=size - 1))
        images = left + (right - left) * weight
    return images


# --- blocks: attribute names are those of the published state dict ----------------------------------------------


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h', w')."""
        return F.relu(self.bn(self.conv(x)))


def _row(in_channels: int, out_channels: int, length: int) -> ConvNorm:
    """1 x length convolution that keeps the size."""
    return ConvNorm(in_channels, out_channels, (1, length), padding=(0, length // 2))


def _column(in_channels: int, out_channels: int, length: int) -> ConvNorm:
    """length x 1 convolution that keeps the size."""
    return ConvNorm(in_channels, out_channels, (length, 1), padding=(length // 2, 0))


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35 block: 1x1, 5x5, double 3x3 and pool branches."""

    def __init__(self, in_channels: int, *, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 64, 1)
        self.branch5x5_1 = ConvNorm(in_channels, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 35, 35) -> (B, 224 + pool_channels, 35, 35)."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average_pool(x))], dim=1)


class ReductionA(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 35, 35) -> (B, 480 + in, 17, 17)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class MixedB(nn.Module):
    """17 x 17 block: 1x1, factorised 7x7, double factorised 7x7 and pool branches."""

    def __init__(self, in_channels: int, *, inner: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 192, 1)
        self.branch7x7_1 = ConvNorm(in_channels, inner, 1)
        self.branch7x7_2 = _row(inner, inner, 7)
        self.branch7x7_3 = _column(inner, 192, 7)
        self.branch7x7dbl_1 = ConvNorm(in_channels, inner, 1)
        self.branch7x7dbl_2 = _column(inner, inner, 7)
        self.branch7x7dbl_3 = _row(inner, inner, 7)
        self.branch7x7dbl_4 = _column(inner, inner, 7)
        self.branch7x7dbl_5 = _row(inner, 192, 7)
        self.branch_pool = ConvNorm(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 768, 17, 17) -> (B, 768, 17, 17)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average_pool(x))], dim=1)


class ReductionB(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 768, 17, 17) -> (B, 1280, 8, 8)."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class MixedC(nn.Module):
    """8 x 8 block with forked 3x3 branches. `pool` is "average", or "max" in the last block of the FID network."""

    def __init__(self, in_channels: int, *, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = ConvNorm(in_channels, 320, 1)
        self.branch3x3_1 = ConvNorm(in_channels, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = ConvNorm(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 8, 8) -> (B, 2048, 8, 8)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _average_pool(x) if self.pool == "average" else F.max_pool2d(x, 3, stride=1, padding=1)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


def _read_state(weights: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the file, every entry of it accounted for against `expected`."""
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{weights}: expected a state dict of tensors, found {type(state).__name__}")
    faults = [f"missing {name}" for name in sorted(expected.keys() - state.keys())]
    faults += [f"unexpected {name}" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        if state[name].shape != expected[name].shape:
            faults.append(f"{name} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}")
    if faults:
        raise ValueError(
            f"{weights}: not the FID Inception network (pt_inception-2015-12-05-6726825d.pth, {len(expected)} "
            f"entries); {len(faults)} differences: " + "; ".join(faults)
        )
    return {name: state[name].to(expected[name].dtype).contiguous() for name in expected}
