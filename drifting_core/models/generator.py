"""The one-step generator: a diffusion transformer without time (paper appendix A.2, Table 8; protocol section 3).

Noise in, latent out, one evaluation for any guidance strength alpha. Patches become tokens behind a few in-context
tokens that carry the conditioning vector; blocks are adaLN-Zero with RMSNorm, QK-norm, rotary positions and SwiGLU.
The released code decides what the paper leaves open; golden/generator holds this file to its numbers.

Parameters are float32. For bfloat16 activations run under `torch.autocast`: modulation and conditioning, and with
`attention_fp32` also the inside of attention, stay in float32. `rotary_precision` is part of what the weights mean.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drifting_core.data import draws

_NORM_EPS = 1e-6
_ROTARY_BASE = 10000.0
_ALPHA_FREQUENCIES = 128  # half cosines, half sines: 256 numbers
_ALPHA_MAX_PERIOD = 10000.0
_ALPHA_GAIN = 0.02
_EMBEDDING_STD = 0.02


class Generator(nn.Module):
    """Noise (B, C, H, W), class, alpha and style indices to latents (B, C, H, W), unclamped.

    Construction leaves PyTorch's default values in place: call `reset_parameters` (the output is then exactly 0) or
    load weights. Raises ValueError where sizes do not divide.
    """

    compute_dtype = torch.float32  # of activations, unless autocast says otherwise

    def __init__(
        self,
        *,
        input_size: int = 32,
        channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        cond_dim: int = 768,
        num_classes: int = 1000,
        in_context_tokens: int = 16,
        style_tables: int = 32,
        style_entries: int = 64,
        mlp_ratio: float = 4.0,
        attention_fp32: bool = True,
        rotary_precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"Generator: patch_size {patch_size} does not divide input_size {input_size}")
        if hidden_size % num_heads or (hidden_size // num_heads) % 2 or hidden_size % 4:
            raise ValueError(
                f"Generator: hidden_size {hidden_size} must be num_heads {num_heads} times an even number "
                "(rotary pairs) and a multiple of 4 (2-D sine-cosine positions)"
            )
        self.input_size, self.channels, self.patch_size = input_size, channels, patch_size
        self.head_dim, self.in_context_tokens = hidden_size // num_heads, in_context_tokens
        self.style_tables, self.style_entries = style_tables, style_entries
        self.rotary_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[rotary_precision]
        self.grid = input_size // patch_size
        patch_dim = patch_size * patch_size * channels

        # conditioning
        self.class_embedding = nn.Embedding(num_classes, cond_dim)
        # All style tables, one after another.
        self.style_embedding = nn.Embedding(style_tables * style_entries, cond_dim)
        self.alpha_mlp = nn.Sequential(nn.Linear(2 * _ALPHA_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
        self.alpha_norm = RMSNorm(cond_dim)
        # tokens
        self.patch_embedding = nn.Linear(patch_dim, hidden_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, self.grid**2, hidden_size))
        self.context_projection = nn.Linear(cond_dim, hidden_size)
        self.context_embedding = nn.Parameter(torch.zeros(1, in_context_tokens, hidden_size))
        # trunk and head
        inner = 32 * math.ceil(int(2 / 3 * mlp_ratio * hidden_size) / 32)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, cond_dim, inner, attention_fp32) for _ in range(depth))
        self.final_norm = RMSNorm(hidden_size)
        self.final_modulation = Modulation(cond_dim, hidden_size, 2)
        self.final_projection = nn.Linear(hidden_size, patch_dim)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Initial values as a function of (seed, parameter name), the same on every device (protocol section 3).

        Linear layers Xavier uniform with zero bias, embeddings and the alpha MLP N(0, 0.02), positions 2-D
        sine-cosine, norms 1; modulations and the last projection 0, so that the generator starts at exactly 0.
        """
        for name, parameter in self.named_parameters():
            key = draws.key(seed, "generator", name)
            if name == "position_embedding":
                parameter.copy_(sincos_positions(self.grid, parameter.shape[2])[None])
            elif name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias") or "modulation." in name or name.startswith("final_projection."):
                parameter.zero_()
            elif name.startswith(("class_embedding", "style_embedding", "context_embedding", "alpha_mlp")):
                parameter.copy_(draws.normal(key, parameter.shape, device=parameter.device).mul_(_EMBEDDING_STD))
            else:
                bound = math.sqrt(6.0 / sum(parameter.shape))
                uniform = draws.uniform(key, parameter.shape, device=parameter.device)
                parameter.copy_(uniform.mul_(2.0).sub_(1.0).mul_(bound))

    def forward(self, noise: Tensor, labels: Tensor, alpha: Tensor, style: Tensor) -> Tensor:
        """noise (B, C, H, W), labels (B,) int, alpha (B,) >= 1, style (B, style_tables) int -> (B, C, H, W)."""
        if noise.shape[1:] != (self.channels, self.input_size, self.input_size):
            raise ValueError(
                f"Generator: noise is (B, {self.channels}, {self.input_size}, {self.input_size}), found {tuple(noise.shape)}"
            )
        cond = self.condition(labels, alpha, style)
        tokens = self.patch_embedding(self._patchify(noise))
        tokens = tokens + self.position_embedding.to(tokens.dtype)
        context = self.context_projection(cond)[:, None] + self.context_embedding
        tokens = torch.cat([context.to(tokens.dtype), tokens], dim=1)

        rotary = self._rotary(tokens)
        for block in self.blocks:
            tokens = block(tokens, cond, rotary)

        shift, scale = self.final_modulation(cond)
        tokens = _modulate(self.final_norm(tokens[:, self.in_context_tokens :]), shift, scale)
        return self._unpatchify(self.final_projection(tokens))

    def condition(self, labels: Tensor, alpha: Tensor, style: Tensor) -> Tensor:
        """The conditioning vector (B, cond_dim), float32: class + sum of the styles + 0.02 RMSNorm(MLP(alpha)).

        Raises IndexError (a device assertion on CUDA) for a label or style index out of range.
        """
        if style.shape != (len(labels), self.style_tables):
            raise ValueError(
                f"Generator: style is (B, {self.style_tables}) with B = {len(labels)}, found {tuple(style.shape)}"
            )
        # An index past the end of its own table must not read the next one: send it past the end of all.
        tables = torch.arange(self.style_tables, device=style.device) * self.style_entries
        outside = (style < 0) | (style >= self.style_entries)
        rows = torch.where(outside, self.style_tables * self.style_entries, style + tables)
        with torch.autocast(alpha.device.type, enabled=False):
            embedded = self.class_embedding(labels) + self.style_embedding(rows).sum(dim=1)
            return embedded + _ALPHA_GAIN * self.alpha_norm(self.alpha_mlp(self._alpha_waves(alpha)))

    def _alpha_waves(self, alpha: Tensor) -> Tensor:
        """(B,) -> (B, 256): cosines, then sines, of alpha at geometric frequencies from 1 down to 1e-4."""
        index = torch.arange(_ALPHA_FREQUENCIES, device=alpha.device, dtype=torch.float32)
        frequency = torch.exp(index * (-math.log(_ALPHA_MAX_PERIOD) / _ALPHA_FREQUENCIES))
        angle = alpha.to(self.class_embedding.weight.dtype)[:, None] * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def _patchify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, p p C): patches row by row, inside a patch row, column, channel."""
        p, g = self.patch_size, self.grid
        patches = images.reshape(len(images), self.channels, g, p, g, p).permute(0, 2, 4, 3, 5, 1)
        return patches.reshape(len(images), g * g, -1)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, T, p p C) -> (B, C, H, W), the inverse of `_patchify`."""
        p, g = self.patch_size, self.grid
        patches = tokens.reshape(len(tokens), g, g, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        return patches.reshape(len(tokens), self.channels, self.input_size, self.input_size)

    def _rotary(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (tokens, head_dim) over the whole sequence, in-context tokens included.

        In bfloat16 (the release's choice in bfloat16 runs without `attn_fp32`) not all positions above 256 can be told
        apart, and angles are off by up to half a radian: weights trained so need these very tables, in whatever type the
        rest is computed.
        """
        dtype = self.rotary_dtype
        position = torch.arange(tokens.shape[1], device=tokens.device).to(dtype)
        index = torch.arange(0, self.head_dim, 2, device=tokens.device, dtype=torch.float32)
        frequency = (_ROTARY_BASE ** (-index / self.head_dim)).to(dtype)
        angle = (position[:, None] * frequency).repeat(1, 2)
        return angle.cos(), angle.sin()


class Inputs(NamedTuple):
    """What the generator is given: noise (B, C, H, W) float32, labels (B,) int64, style (B, tables) int64."""

    noise: Tensor
    labels: Tensor
    style: Tensor


def sample_inputs(generator: Generator, seed: int, rows: Tensor, labels: Tensor) -> Inputs:
    """Inputs of the samples with these indices (B,) and labels (B,): functions of (seed, index) alone.

    Neither alpha nor the training step enters: equal seeds give equal noise.
    """
    shape = (generator.channels, generator.input_size, generator.input_size)
    return Inputs(
        draws.normal_rows(draws.key(seed, "sample", "noise"), rows, shape),
        labels,
        draws.integers_rows(draws.key(seed, "sample", "style"), generator.style_entries, rows, generator.style_tables),
    )


class Block(nn.Module):
    """adaLN-Zero block: x += g1 Attention(mod(norm(x))), x += g2 SwiGLU(mod(norm(x)))."""

    def __init__(self, dim: int, num_heads: int, cond_dim: int, inner: int, attention_fp32: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, num_heads, attention_fp32)
        self.mlp_norm = RMSNorm(dim)
        self.mlp = SwiGLU(dim, inner)
        self.modulation = Modulation(cond_dim, dim, 6)

    def forward(self, x: Tensor, cond: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, dim), cond (B, cond_dim) -> (B, T, dim)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (m.to(x.dtype) for m in self.modulation(cond))
        x = x + gate1 * self.attention(_modulate(self.attention_norm(x), shift1, scale1), rotary)
        return x + gate2 * self.mlp(_modulate(self.mlp_norm(x), shift2, scale2))


class Attention(nn.Module):
    """Self-attention with RMS-normalised queries and keys and rotary positions."""

    def __init__(self, dim: int, num_heads: int, fp32: bool) -> None:
        super().__init__()
        self.num_heads, self.fp32 = num_heads, fp32
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = RMSNorm(dim // num_heads)
        self.key_norm = RMSNorm(dim // num_heads)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x)
        if self.fp32:
            qkv = _at_least_float32(qkv)
        # Autocast would send fp32 queries and keys back to bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = qkv.reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            query, key = _rotate(self.query_norm(query), rotary), _rotate(self.key_norm(key), rotary)
            out = F.scaled_dot_product_attention(query, key, value)
        return self.projection(out.transpose(1, 2).reshape(batch, length, dim).to(x.dtype))


class SwiGLU(nn.Module):
    """W2 (silu(W1 x) * W3 x), all with bias."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, inner)
        self.value = nn.Linear(dim, inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.out(F.silu(self.gate(x)) * self.value(x))


class Modulation(nn.Module):
    """SiLU, then a zero-initialised linear layer: `parts` vectors (B, 1, dim) from the conditioning, in float32."""

    def __init__(self, cond_dim: int, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(cond_dim, parts * dim)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """cond (B, cond_dim) -> `parts` tensors (B, 1, dim)."""
        with torch.autocast(cond.device.type, enabled=False):
            return self.linear(F.silu(cond))[:, None].chunk(self.parts, dim=2)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6) * weight over the last axis, in float32, returned in the type of x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return F.rms_norm(_at_least_float32(x), self.weight.shape, self.weight, _NORM_EPS).to(x.dtype)


def sincos_positions(grid: int, dim: int) -> Tensor:
    """2-D sine-cosine positions (grid^2, dim), float32: first half of the channels for columns, second for rows."""
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    waves = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)  # (grid, dim / 2)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=2).reshape(grid * grid, dim).float()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1.0 + scale.to(x.dtype)) + shift.to(x.dtype)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, rotate-half form: channel i is paired with i + head_dim / 2. x (B, heads, T, head_dim)."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
