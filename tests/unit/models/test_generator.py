"""The generator: sizes, initial values, conditioning and positions. Its numbers are held by the released-weights tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_core.models.generator import Generator, RMSNorm, sincos_positions

SMALL: dict[str, Any] = {
    "input_size": 8,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 4,
    "cond_dim": 24,
    "num_classes": 5,
    "in_context_tokens": 3,
    "style_tables": 4,
    "style_entries": 8,
}


def inputs(batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 4, 8, 8, generator=rng),
        torch.randint(5, (batch,), generator=rng),
        1 + 3 * torch.rand(batch, generator=rng),
        torch.randint(8, (batch, 4), generator=rng),
    )


def small(seed: int = 1, **changes: Any) -> Generator:
    generator = Generator(**(SMALL | changes))
    generator.reset_parameters(seed)
    return generator


def trained(**changes: Any) -> Generator:
    """As after some training: nothing is zero any more."""
    generator = small(**changes)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return generator


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 132_708_880), ({"hidden_size": 1024, "depth": 24, "num_heads": 16, "cond_dim": 1024}, 462_909_456)],
)
def test_parameter_counts_of_the_paper(changes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Generator(**changes).parameters()) == count


def test_starts_at_exactly_zero_with_a_gradient() -> None:
    generator = small()
    output = generator(*inputs())
    assert output.shape == (3, 4, 8, 8)
    assert output.abs().max() == 0
    (output - 1).square().sum().backward()
    gradient = generator.final_projection.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_initial_values_are_a_function_of_the_seed() -> None:
    one = small(1).state_dict()
    torch.manual_seed(99)
    again, other = small(1).state_dict(), small(2).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["class_embedding.weight"], other["class_embedding.weight"])
    assert one["style_embedding.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert one["alpha_mlp.0.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    bound = (6 / (32 + 3 * 32)) ** 0.5  # Xavier uniform of the fused qkv
    assert one["blocks.0.attention.qkv.weight"].abs().max().item() == pytest.approx(bound, rel=0.01)
    assert one["blocks.1.mlp_norm.weight"].eq(1).all()
    assert one["blocks.1.mlp.out.bias"].eq(0).all()


def test_patches_come_back_where_they_were() -> None:
    generator = small()
    images = torch.arange(2 * 4 * 64.0).reshape(2, 4, 8, 8)
    tokens = generator._patchify(images)
    assert tokens.shape == (2, 16, 16)
    assert torch.equal(generator._unpatchify(tokens), images)
    assert torch.equal(tokens[0, 1, :4], images[0, :, 0, 2])  # second patch of the first row, channels fastest


def test_samples_do_not_depend_on_their_batch() -> None:
    generator, batch = trained(), inputs(4)
    together = generator(*batch)
    alone = torch.cat([generator(*(x[i : i + 1] for x in batch)) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_input_matters() -> None:
    generator, (noise, labels, alpha, style) = trained(), inputs()
    output = generator(noise, labels, alpha, style)
    for other in (
        (noise + 0.1, labels, alpha, style),
        (noise, (labels + 1) % 5, alpha, style),
        (noise, labels, alpha + 0.5, style),
        (noise, labels, alpha, (style + 1) % 8),
    ):
        assert (generator(*other) - output).abs().amax(dim=(1, 2, 3)).min() > 1e-5


def test_condition_is_the_sum_of_its_parts() -> None:
    generator, (_, labels, alpha, style) = trained(), inputs()
    tables = generator.style_embedding.weight.reshape(4, 8, -1)
    expected = generator.class_embedding.weight[labels] + sum(tables[i, style[:, i]] for i in range(4))
    index = torch.arange(128)
    angle = alpha[:, None] * 10000.0 ** (-index / 128)
    hidden = generator.alpha_mlp(torch.cat([angle.cos(), angle.sin()], dim=1))
    hidden = hidden / (hidden.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * generator.alpha_norm.weight
    torch.testing.assert_close(generator.condition(labels, alpha, style), expected + 0.02 * hidden)


@pytest.mark.parametrize("index", [-1, 8])
def test_a_style_index_never_reads_another_table(index: int) -> None:
    generator, (_, labels, alpha, style) = small(), inputs()
    style[0, 1] = index
    with pytest.raises(IndexError):
        generator.condition(labels, alpha, style)


def test_wrong_shapes_and_sizes_are_refused() -> None:
    generator, (noise, labels, alpha, style) = small(), inputs()
    with pytest.raises(ValueError, match="noise"):
        generator(noise[:, :, :4], labels, alpha, style)
    with pytest.raises(ValueError, match="style"):
        generator(noise, labels, alpha, style[:, :2])
    with pytest.raises(ValueError, match="patch_size"):
        Generator(**(SMALL | {"patch_size": 3}))
    with pytest.raises(ValueError, match="num_heads"):
        Generator(**(SMALL | {"num_heads": 5}))


def test_one_token_generator() -> None:
    """The demonstration's: a patch as large as the latent."""
    generator = trained(patch_size=8)
    assert generator.position_embedding.shape == (1, 1, 32)
    assert generator(*inputs()).shape == (3, 4, 8, 8)


@pytest.mark.parametrize("attention_fp32", [True, False])
def test_bfloat16_activations_stay_close(attention_fp32: bool) -> None:
    generator, batch = trained(attention_fp32=attention_fp32), inputs()
    exact = generator(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = generator(*batch)
        cond = generator.condition(*batch[1:])
    assert rough.dtype == torch.bfloat16
    assert cond.dtype == torch.float32
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_positions_are_rotations() -> None:
    """Rotary inner products depend on the distance alone; the release's order is rotate-half over all tokens."""
    from drifting_core.models.generator import _rotate

    generator = small()
    rotary = generator._rotary(torch.zeros(1, 10, 32))
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 10, -1)
    products = (_rotate(query, rotary) @ _rotate(key, rotary).transpose(-1, -2))[0, 0]
    for offset in (0, 1, 4):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)


def test_sincos_positions() -> None:
    table = sincos_positions(3, 8).reshape(3, 3, 8)
    assert torch.equal(table[0, 2, :4], table[1, 2, :4])
    assert torch.equal(table[2, 0, 4:], table[2, 1, 4:])
    torch.testing.assert_close(table[0, 2, :4], torch.tensor([2.0, 0.02, 2.0, 0.02]).sin().where(
        torch.tensor([True, True, False, False]), torch.tensor([2.0, 0.02, 2.0, 0.02]).cos()))  # fmt: skip


def test_rms_norm() -> None:
    norm, x = RMSNorm(6), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x).square().mean(dim=1), torch.ones(4), rtol=1e-4, atol=1e-4)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
