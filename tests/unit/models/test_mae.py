"""The latent-MAE: feature entries, masking, losses, export of the encoder. Its numbers: the released-weights tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drifting_core.models.mae import LatentEncoder, MaskedAutoencoder, _map_entries, group_norm, resize_by_products


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**changes: object) -> MaskedAutoencoder:
    sizes: dict[str, object] = {"base_width": 8, "blocks": (1, 2, 1, 1), "num_classes": 5, "norm_groups": 4}
    mae = MaskedAutoencoder(**(sizes | changes))  # type: ignore[arg-type]
    mae.reset_parameters(3)
    return mae


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        encoder = LatentEncoder()
        entries = encoder.features(torch.zeros(2, 4, 32, 32))
        assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 340.2
    # 86 entries and 6734 vectors with the raw latent, which the caller adds
    assert len(entries) == 85
    assert sum(e.shape[1] for e in entries.values()) == 6733
    maps = ["conv1", "layer1", "layer1_blk2", "layer2", "layer2_blk2", "layer2_blk4"]
    maps += ["layer3", "layer3_blk2", "layer3_blk4", "layer3_blk6", "layer4", "layer4_blk2"]
    parts = ["", "_mean", "_std", "_mean_2", "_std_2", "_mean_4", "_std_4"]
    assert set(entries) == {name + part for name in maps for part in parts} | {"norm_x"}
    assert entries["layer3_blk4"].shape == (2, 64, 1024)
    assert entries["layer2_std_4"].shape == (2, 16, 512)
    assert entries["norm_x"].shape == (2, 1, 4)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((4, 3), (7, 6)), ((1, 2), (2, 5)), ((16, 16), (32, 32))])
def test_products_resize_as_interpolate_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = [normal(2, 3, *old).double().requires_grad_() for _ in range(2)]
    weights = normal(2, 3, *new).double()
    found, expected = resize_by_products(maps[0], new), F.interpolate(maps[1], size=new, mode="bilinear")
    torch.testing.assert_close(found, expected)
    for resized in (found, expected):
        (resized * weights).sum().backward()
    torch.testing.assert_close(maps[0].grad, maps[1].grad)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.floats(-1e3, 1e3), st.integers(0, 1000))
def test_statistics_are_those_of_the_windows(side: int, channels: int, offset: float, seed: int) -> None:
    """Every mean and std equals the direct float64 one, also where the mean is large against the spread."""
    feature_map = normal(2, channels, side, side, seed=seed) + offset
    entries = _map_entries("m", feature_map)
    assert torch.equal(entries["m"], feature_map.flatten(2).transpose(1, 2))
    windows = {"": side} | {f"_{k}": k for k in (2, 4) if k <= side}
    names = {"m"} | {f"m_{kind}{suffix}" for suffix in windows for kind in ("mean", "std")}
    assert set(entries) == (names - {"m_std"} if side == 1 else names)
    for suffix, k in windows.items():
        patches = F.unfold(feature_map.double(), k, stride=k).reshape(2, channels, k * k, -1)
        mean, variance = patches.mean(dim=2), patches.var(dim=2, correction=0)
        # float32 cannot hold the inputs themselves better than this
        rounding = 1e-6 * (1 + abs(offset))
        torch.testing.assert_close(entries[f"m_mean{suffix}"].double(), mean.mT, rtol=1e-6, atol=rounding)
        if side > 1:
            std = (variance + 1e-6).sqrt()
            torch.testing.assert_close(entries[f"m_std{suffix}"].double(), std.mT, rtol=1e-4, atol=rounding)


def test_gradient_reaches_the_input_through_constant_maps() -> None:
    """The generator starts at 0, where every standard deviation is 0: the gradient is finite."""
    encoder = small().encoder
    x = torch.zeros(1, 4, 16, 16).requires_grad_()
    torch.stack([e.sum() for e in encoder.features(x).values()]).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_windows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 4"):
        small().features(normal(1, 4, 6, 6))


def test_input_patches() -> None:
    encoder = small(input_patch_size=2).encoder
    x = normal(2, 4, 16, 16)
    patches = encoder.patchify(x)
    assert patches.shape == (2, 16, 8, 8)
    # channel (row 1, column 0, latent channel 3) of patch (2, 5)
    assert patches[1, (1 * 2 + 0) * 4 + 3, 2, 5] == x[1, 3, 5, 10]
    entries = encoder.features(x)
    assert entries["conv1"].shape == (2, 64, 8)
    assert entries["norm_x"].shape == (2, 1, 4)
    assert entries["layer4"].shape == (2, 1, 64)
    assert "layer4_std" not in entries
    assert "layer4_mean_2" not in entries
    assert all(entry.std(dim=0).max() > 1e-4 for entry in entries.values())
    with pytest.raises(ValueError, match="input_patch_size"):
        encoder.patchify(normal(1, 4, 15, 16))


@pytest.mark.parametrize(("patch", "side"), [(1, 2), (2, 4)])
def test_mask_follows_its_uniforms(patch: int, side: int) -> None:
    mae = small(input_patch_size=patch)
    assert mae.mask_grid(16, 16) == (16 // side, 16 // side)
    uniforms = torch.rand(3, *mae.mask_grid(16, 16), generator=torch.Generator().manual_seed(0))
    mask = mae.random_mask(uniforms)
    assert mask.shape == (3, 1, 16 // patch, 16 // patch)
    assert torch.equal(mask[:, 0, ::2, ::2], (uniforms < 0.5).float())
    assert torch.equal(mask[:, :, ::2], mask[:, :, 1::2])
    assert torch.equal(mask[..., ::2], mask[..., 1::2])
    assert mae.random_mask(uniforms, ratio=0.0).sum() == 0
    with pytest.raises(ValueError, match="mask patches"):
        mae.mask_grid(16, 18 * patch + 1)


def test_losses() -> None:
    mae, x, labels = small(), normal(3, 4, 16, 16), torch.tensor([0, 4, 2])
    mask = mae.random_mask(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)))
    output = mae(x, labels, mask, 0.25)
    torch.testing.assert_close(output.loss, 0.25 * output.classification + 0.75 * output.reconstruction)
    torch.testing.assert_close(output.mask_ratio, mask.mean(dim=(1, 2, 3)))
    maps = mae.encoder.maps(x * (1 - mask))
    error = ((mae.decoder(maps) - x) ** 2 * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))
    torch.testing.assert_close(output.reconstruction, error)
    # what is hidden from the network reaches the loss as a target only
    other = mae(x + 5 * mask, labels, mask, 0.25)
    assert torch.equal(other.classification, output.classification)
    assert (other.reconstruction != output.reconstruction).all()
    nothing = mae(x, labels, torch.zeros(3, 1, 16, 16), 0.0)
    assert nothing.loss.eq(0).all()
    assert nothing.mask_ratio.eq(0).all()
    with pytest.raises(ValueError, match="mask is"):
        mae(x, labels, mask[:, :, ::2], 0.25)


def test_all_parameters_learn() -> None:
    mae = small()
    mask = mae.random_mask(torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)))
    mae(normal(2, 4, 16, 16), torch.tensor([0, 1]), mask, 0.5).loss.mean().backward()
    assert [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_encoder_travels_alone() -> None:
    mae, x = small(), normal(2, 4, 16, 16)
    encoder = LatentEncoder(base_width=8, blocks=(1, 2, 1, 1), norm_groups=4)
    encoder.load_state_dict(mae.encoder.state_dict())
    alone, within = encoder.features(x), mae.features(x)
    assert alone.keys() == within.keys()
    assert all(torch.equal(alone[name], within[name]) for name in alone)


def test_initial_values_are_a_function_of_the_seed() -> None:
    one = small().state_dict()
    torch.manual_seed(5)
    again = small().state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    kernel = one["encoder.stages.3.0.conv2.weight"]
    assert kernel.std().item() == pytest.approx(kernel[0].numel() ** -0.5, rel=0.02)
    assert kernel.abs().max() <= 2 / 0.8796 * kernel[0].numel() ** -0.5
    assert one["classifier.bias"].eq(0).all()
    assert one["encoder.norm1.weight"].eq(1).all()


@pytest.mark.parametrize(("channels", "groups", "expected"), [(256, 32, 32), (48, 32, 24), (640, 32, 32), (6, 4, 3)])
def test_group_count_divides(channels: int, groups: int, expected: int) -> None:
    norm = group_norm(channels, groups)
    assert norm.num_groups == expected
    assert norm.eps == 1e-6


def test_half_precision_statistics_are_float32() -> None:
    encoder, x = small().encoder, normal(2, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder.features(x)
    exact = encoder.features(x)
    for name, entry in rough.items():
        if "_mean" in name or "_std" in name:
            assert entry.dtype == torch.float32
        assert (entry.float() - exact[name]).abs().max() < 0.1 * (1 + exact[name].abs().max())
