"""The latent-MAE: a small ResNet in latent space, whose encoder gives the features of the drift loss.

Paper appendix A.3 and A.5, Table 8; the released code where they differ (protocol section 2): basic blocks, an extra
GroupNorm after every stage, features also from the stem and from the blocks before that norm. golden/mae holds this
file to the release's numbers. Tensors are channels-first; convolutions have no bias.

`LatentEncoder` is what a trained model is kept for; `MaskedAutoencoder` holds one as `.encoder` beside the decoder and
the classifier that pre-training needs. For bfloat16 run under `torch.autocast`: feature statistics stay in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drifting_core.data import draws

_NORM_EPS = 1e-6
_STATISTIC_EPS = 1e-6  # inside the square roots of standard deviations and of norm_x
_MASKED_COUNT_EPS = 1e-8
_WINDOWS = (2, 4)
_BLOCK_STRIDE = 2  # every second residual block is a feature
_INIT_BLOCK = 1 << 22  # numbers drawn at once when initialising
_TRUNCATION = 2.0
_TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at +-2


class MAEOutput(NamedTuple):
    """Per sample, each (B,): `loss` = lambda CE + (1 - lambda) reconstruction, its two parts, the masked fraction."""

    loss: Tensor
    reconstruction: Tensor
    classification: Tensor
    mask_ratio: Tensor


class LatentEncoder(nn.Module):
    """ResNet encoder of latents: a 3x3 stem, four stages of widths C, 2C, 4C, 8C, halving the map from the second on."""

    def __init__(
        self,
        *,
        in_channels: int = 4,
        base_width: int = 256,
        blocks: Sequence[int] = (3, 4, 6, 3),
        input_patch_size: int = 1,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"LatentEncoder: blocks are four counts of at least 1, found {tuple(blocks)}")
        self.input_patch_size = input_patch_size
        self.input_channels = in_channels * input_patch_size**2
        self.widths = tuple(base_width * 2**stage for stage in range(4))
        self.conv1 = nn.Conv2d(self.input_channels, base_width, 3, padding=1, bias=False)
        self.norm1 = group_norm(base_width, norm_groups)
        self.stages = nn.ModuleList()
        before = base_width
        for stage, (width, count) in enumerate(zip(self.widths, blocks, strict=True)):
            first = BasicBlock(before, width, 2 if stage else 1, norm_groups)
            rest = [BasicBlock(width, width, 1, norm_groups) for _ in range(count - 1)]
            self.stages.append(nn.ModuleList([first, *rest]))
            before = width
        self.stage_norms = nn.ModuleList(group_norm(width, norm_groups) for width in self.widths)

    def reset_parameters(self, seed: int) -> None:
        """Initial values as a function of (seed, parameter name): see `MaskedAutoencoder.reset_parameters`."""
        _initialise(self, seed, "latent-mae.encoder.")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Latents (B, C, H, W) to the feature maps (B, D, h, w): `conv1`, `layer{i}`, `layer{i}_blk{k}`."""
        return self.maps(self.patchify(x))

    def patchify(self, x: Tensor) -> Tensor:
        """Space to depth: (B, C, H, W) -> (B, p p C, H/p, W/p); channels ordered by patch row, column, channel."""
        p = self.input_patch_size
        if x.shape[1] * p * p != self.input_channels or x.shape[2] % p or x.shape[3] % p:
            raise ValueError(
                f"LatentEncoder: expects {self.input_channels // p**2} channels and sides divisible by "
                f"input_patch_size {p}, found {tuple(x.shape)}"
            )
        if p == 1:
            return x
        batch, channels, height, width = x.shape
        patches = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 3, 5, 1, 2, 4)
        return patches.reshape(batch, p * p * channels, height // p, width // p)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The feature maps of an already patchified input."""
        x = F.relu(self.norm1(self.conv1(x)))
        maps = {"conv1": x}
        for index, (stage, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True), start=1):
            blocks: dict[str, Tensor] = {}
            assert isinstance(stage, nn.ModuleList)
            for number, block in enumerate(stage, start=1):
                x = block(x)
                if number % _BLOCK_STRIDE == 0:
                    blocks[f"layer{index}_blk{number}"] = x
            x = norm(x)
            maps[f"layer{index}"] = x
            maps |= blocks
        return maps

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The entries of the drift loss, (B, tokens, D) each, under the released names (protocol section 2.4).

        Per map NAME: its vectors `NAME`, spatial `NAME_mean` and `NAME_std`, and `_mean_k`, `_std_k` over k x k
        windows for k = 2, 4; and `norm_x`, the root mean square of each latent channel. 85 entries at blocks 3-4-6-3
        on 32 x 32; the raw latent (`global`) is the caller's.

        A window larger than the map does not exist, as in the release; a window that covers it repeats the mean and
        is kept, also as there. A 1 x 1 map has no `_std`: it would be the constant sqrt(1e-6), whose normalised loss
        is amplified rounding. Raises ValueError if a window does not divide a map that is larger than it.
        """
        entries = {"norm_x": (_float32(x).square().mean(dim=(2, 3)) + _STATISTIC_EPS).sqrt()[:, None]}
        for name, feature_map in self(x).items():
            entries |= _map_entries(name, feature_map)
        return entries


class MaskedAutoencoder(nn.Module):
    """Encoder, U-Net decoder and linear classifier for masked pre-training of latents (B, C, H, W)."""

    compute_dtype = torch.float32  # of activations, unless autocast says otherwise

    def __init__(
        self,
        *,
        in_channels: int = 4,
        base_width: int = 256,
        blocks: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        input_patch_size: int = 1,
        mask_patch_size: int = 2,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.mask_patch_size = mask_patch_size
        self.encoder = LatentEncoder(
            in_channels=in_channels,
            base_width=base_width,
            blocks=blocks,
            input_patch_size=input_patch_size,
            norm_groups=norm_groups,
        )
        self.decoder = Decoder(self.encoder.widths, self.encoder.input_channels, norm_groups)
        self.classifier = nn.Linear(self.encoder.widths[-1], num_classes)

    def reset_parameters(self, seed: int) -> None:
        """Initial values as a function of (seed, parameter name), the same on every device.

        Kernels are truncated normal with variance 1 / fan-in (the default of the release's framework), norms 1,
        biases 0.
        """
        _initialise(self, seed, "latent-mae.")

    def sharding_units(self) -> list[nn.Module]:
        """Modules whose parameters are gathered together when the network is divided over devices."""
        decoder = self.decoder
        blocks = [block for stage in self.encoder.stages for block in stage.children()]
        return [*blocks, decoder.bridge, decoder.up3, decoder.up2, decoder.up1, decoder.up0]

    def mask_grid(self, height: int, width: int) -> tuple[int, int]:
        """How many mask patches a latent of this size has, (rows, columns). Raises ValueError if it does not divide."""
        side = self.mask_patch_size * self.encoder.input_patch_size
        if height % side or width % side:
            raise ValueError(
                f"MaskedAutoencoder: latents of {height} x {width} do not divide into mask patches of {side} x {side}"
            )
        return height // side, width // side

    def random_mask(self, uniforms: Tensor, ratio: float = 0.5) -> Tensor:
        """Mask (B, 1, h, w), 1 where hidden, from one uniform per mask patch, (B, *mask_grid(H, W)).

        Each patch is hidden independently with probability `ratio`. h, w are positions of the encoder's input (the
        latent's own at input_patch_size 1), of which a patch covers mask_patch_size squared.
        """
        hidden = (uniforms < ratio).to(torch.float32)[:, None]
        return hidden.repeat_interleave(self.mask_patch_size, 2).repeat_interleave(self.mask_patch_size, 3)

    def forward(self, x: Tensor, labels: Tensor, mask: Tensor, lambda_cls: float | Tensor) -> MAEOutput:
        """Losses of latents (B, C, H, W) with labels (B,) under `mask` (B, 1, h, w) (see `random_mask`).

        Hidden entries are set to 0. The reconstruction error is summed over hidden entries, all channels, and divided
        by the number of hidden positions; the classifier sees the masked input, too (protocol 2.2, 2.3).
        """
        target = self.encoder.patchify(x)
        if mask.shape != (len(x), 1, *target.shape[2:]):
            raise ValueError(f"MaskedAutoencoder: mask is {(len(x), 1, *target.shape[2:])}, found {tuple(mask.shape)}")
        maps = self.encoder.maps(target * (1.0 - mask))
        error = _float32(self.decoder(maps)) - target
        reconstruction = (error.square() * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) + _MASKED_COUNT_EPS)
        logits = self.classifier(maps["layer4"].mean(dim=(2, 3)))
        classification = F.cross_entropy(_float32(logits), labels, reduction="none")
        loss = lambda_cls * classification + (1.0 - lambda_cls) * reconstruction
        return MAEOutput(loss, reconstruction, classification, mask.mean(dim=(1, 2, 3)))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The encoder's feature entries: see `LatentEncoder.features`."""
        return self.encoder.features(x)


class Decoder(nn.Module):
    """U-Net decoder: a bridge on the last stage, four steps up over the skips, a 1x1 head."""

    def __init__(self, widths: Sequence[int], out_channels: int, norm_groups: int) -> None:
        super().__init__()
        w1, w2, w3, w4 = widths
        self.bridge = ConvNormReLU(w4, w4, norm_groups)
        self.up3 = UpBlock(w4, w3, w3, norm_groups)
        self.up2 = UpBlock(w3, w2, w2, norm_groups)
        self.up1 = UpBlock(w2, w1, w1, norm_groups)
        self.up0 = UpBlock(w1, w1, w1, norm_groups)
        self.head = nn.Conv2d(w1, out_channels, 1)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """The encoder's maps -> (B, out_channels, h, w) at the size of `conv1`."""
        x = self.bridge(maps["layer4"])
        x = self.up3(x, maps["layer3"])
        x = self.up2(x, maps["layer2"])
        x = self.up1(x, maps["layer1"])
        return self.head(self.up0(x, maps["conv1"]))


class UpBlock(nn.Module):
    """Bilinear resize to the skip's size, concatenate the skip, GroupNorm, two conv-norm-ReLU."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels + skip_channels, norm_groups)
        self.project = ConvNormReLU(in_channels + skip_channels, out_channels, norm_groups)
        self.refine = ConvNormReLU(out_channels, out_channels, norm_groups)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, in, h, w), skip (B, skip, H, W) -> (B, out, H, W)."""
        if x.shape[2:] != skip.shape[2:]:
            x = _resize(x, skip.shape[2:])
        return self.refine(self.project(self.norm(torch.cat([x, skip], dim=1))))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear. On CUDA `interpolate` sums its gradient by atomic additions: slow, and in another order each time."""
    if x.is_cuda:
        return resize_by_products(x, size)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def resize_by_products(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w), bilinearly resized by a matrix product along each side."""

    def weights(old: int, new: int) -> Tensor:
        unit = torch.eye(old, dtype=x.dtype, device=x.device)
        return F.interpolate(unit[None], size=new, mode="linear", align_corners=False)[0]

    rows, columns = (weights(old, new) for old, new in zip(x.shape[2:], size, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        return rows.T @ x @ columns


class BasicBlock(nn.Module):
    """conv3x3 - norm - ReLU - conv3x3 - norm, plus the shortcut (1x1 convolution and norm where the shape changes)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = group_norm(channels, norm_groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels, norm_groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), group_norm(channels, norm_groups)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, channels, h / stride, w / stride)."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ConvNormReLU(nn.Module):
    """3x3 convolution, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = group_norm(channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, channels, h, w)."""
        return F.relu(self.norm(self.conv(x)))


def group_norm(channels: int, norm_groups: int) -> nn.GroupNorm:
    """GroupNorm, eps 1e-6, with the largest number of groups up to `norm_groups` that divides `channels`."""
    groups = next(g for g in range(min(norm_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=_NORM_EPS)


# --- feature statistics -----------------------------------------------------------------------------------------


def _map_entries(name: str, feature_map: Tensor) -> dict[str, Tensor]:
    """The entries of one map (B, D, h, w): vectors, mean and std over everything and over each window."""
    batch, _, height, width = feature_map.shape
    # Tokens with channels last: the pooling below then adds contiguous rows.
    tokens = feature_map.flatten(2).transpose(1, 2).contiguous()
    entries = {name: tokens}
    mean = _float32(tokens).reshape(batch, height, width, -1)
    variance: Tensor | None = None
    side = 1  # the window that `mean` and `variance` are taken over
    for window in _WINDOWS:
        if min(height, width) < window:
            break
        if height % window or width % window:
            raise ValueError(f"features: windows of {window} do not divide the map {name} of {height} x {width}")
        mean, variance = _pool(mean, variance, window // side, window // side)
        side = window
        entries[f"{name}_mean_{window}"] = mean.flatten(1, 2)
        entries[f"{name}_std_{window}"] = _std(variance).flatten(1, 2)
    if mean.shape[1] * mean.shape[2] > 1:
        mean, variance = _pool(mean, variance, mean.shape[1], mean.shape[2])
    entries[f"{name}_mean"] = mean.flatten(1, 2)
    if variance is not None:
        entries[f"{name}_std"] = _std(variance).flatten(1, 2)
    return entries


def _pool(mean: Tensor, variance: Tensor | None, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Means and population variances (B, h, w, D) of cells -> those of rows x columns cells taken together.

    By the law of total variance: variance of the means plus mean of the variances. No difference of large numbers,
    and each level is computed from the one below. `variance=None` says that the cells are single values.
    """
    batch, height, width, channels = mean.shape
    windows = mean.reshape(batch, height // rows, rows, width // columns, columns, channels)
    # One axis at a time: on a CPU several times faster than both at once.
    pooled = windows.mean(dim=4, keepdim=True).mean(dim=2, keepdim=True)
    spread = (windows - pooled).square()
    if variance is not None:
        spread = spread + variance.reshape(windows.shape)
    return pooled[:, :, 0, :, 0], spread.mean(dim=4).mean(dim=2)


def _std(variance: Tensor) -> Tensor:
    return (variance + _STATISTIC_EPS).sqrt()


def _float32(x: Tensor) -> Tensor:
    """float32 from half precision; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- initial values ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _initialise(module: nn.Module, seed: int, prefix: str) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            _truncated_normal(parameter, draws.key(seed, prefix + name), fan_in**-0.5 / _TRUNCATED_STD)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _truncated_normal(parameter: Tensor, key: int, scale: float) -> None:
    """Normal cut at two standard deviations, times `scale`, in blocks: a kernel of the widest encoder has 2e8 values."""
    tail = 0.5 * math.erfc(_TRUNCATION / math.sqrt(2.0))
    flat = torch.empty(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    for start in range(0, len(flat), _INIT_BLOCK):
        block = flat[start : start + _INIT_BLOCK]
        uniform = draws.uniform(key, block.shape, start=start, device=block.device)
        block.copy_(draws.normal_quantile(tail + uniform * (1.0 - 2.0 * tail)) * scale)
    parameter.copy_(flat.reshape(parameter.shape))
