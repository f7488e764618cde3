"""The released objective: the authors' numbers, an independent restatement's numbers, and what must hold always."""

from __future__ import annotations

import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drifting_core.drift import loss as drift
from drifting_core.drift.loss import drift_force, drift_loss
from drifting_core.drift.objective import DriftObjective, total
from tests.benchmarks import objective as benchmark

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("index", range(5))
def test_released_numbers(index: int, chunk: int | None) -> None:
    with np.load(GOLDEN / f"drift_loss_{index}.npz") as golden:
        g = {name: torch.from_numpy(golden[name]) for name in golden.files}
    gen = g["gen"].requires_grad_()
    result = drift_loss(
        gen,
        g["pos"],
        g["neg"],
        weight_negatives=g["weight_neg"],
        temperatures=g["temperatures"].tolist(),
        chunk=chunk,
    )
    result.loss.mean().backward()
    torch.testing.assert_close(result.loss.detach(), g["loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(result.scale, g["scale"], rtol=1e-4, atol=0)
    torch.testing.assert_close(result.force_norm, g["force_norm"], rtol=1e-4, atol=0)
    assert gen.grad is not None
    assert (gen.grad - g["grad_gen"]).abs().max() <= 5e-5 * g["grad_gen"].abs().max()


def protocol_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gen, positives, negatives, weights of protocol section 6.2, float64."""
    b, d = torch.arange(2.0, dtype=torch.float64)[:, None, None], torch.arange(5.0, dtype=torch.float64)
    i = torch.arange(4.0, dtype=torch.float64)[None, :, None]
    gen = torch.sin(1 + 7 * b + 3 * i[:, :3] + 1.7 * d)
    pos = torch.cos(0.3 + 2 * b + 1.3 * i + 0.9 * d) + 0.5
    neg = 0.7 * torch.sin(2 + b + 5 * i[:, :2] + 2.3 * d) - 0.2
    return gen, pos, neg, torch.tensor([[0.5, 0.5], [2.0, 2.0]], dtype=torch.float64)


PROTOCOL_TABLE = {
    "as given": (
        [4.91267948, 10.05497354],
        2.08602863,
        [1.39862975e-1, 2.99088914e-4, 1.98132e-5],
        [0.07463132, 0.34649637, -0.25452257, -0.27964463, 0.02212665],
    ),
    "no negatives": (
        [9.32208424, 4.66481862],
        2.07332200,
        [2.46983885e-2, 2.31746709e-4, 1.21963e-5],
        [0.09296949, 0.47675368, -0.36803851, -0.39528811, 0.05992512],
    ),
    "weight 0": (
        [9.71114436, 4.92978545],
        2.07332200,
        [2.33886102e-2, 2.27877875e-4, 8.16465e-6],
        [0.09925617, 0.48670434, -0.39269618, -0.41656463, 0.06474726],
    ),
}


@pytest.mark.parametrize("case", PROTOCOL_TABLE)
def test_protocol_table(case: str) -> None:
    gen, pos, neg, weight = protocol_case()
    loss, scale, force_norm, gradient = PROTOCOL_TABLE[case]
    gen.requires_grad_()
    if case == "no negatives":
        result = drift_loss(gen, pos)
    else:
        result = drift_loss(gen, pos, neg, weight_negatives=weight if case == "as given" else 0 * weight)
    result.loss.mean().backward()
    assert result.loss.tolist() == pytest.approx(loss, rel=2e-8)
    assert result.scale.item() == pytest.approx(scale, rel=1e-8)
    assert result.force_norm.tolist() == pytest.approx(force_norm, rel=1e-5)
    assert gen.grad is not None
    assert gen.grad[0, 0].tolist() == pytest.approx(gradient, abs=1e-8)


def test_protocol_table_without_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case D: the floor of the affinities is material."""
    monkeypatch.setattr(drift, "_AFFINITY_FLOOR", 0.0)
    gen, pos, neg, weight = protocol_case()
    gen.requires_grad_()
    result = drift_loss(gen, pos, neg, weight_negatives=weight)
    result.loss.mean().backward()
    assert result.loss.tolist() == pytest.approx([9.41190189, 3.53697738], rel=2e-8)
    assert result.force_norm.tolist() == pytest.approx([1.39708994e-1, 2.50269658e-4, 6.47080e-8], rel=1e-5)
    assert gen.grad is not None
    expected = [0.11313267, 0.65931298, -0.28452715, -0.39006653, -0.00228702]
    assert gen.grad[0, 0].tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("temperature", "loss"),
    [(0.2, (0.27205920, 1.72794080)), (0.05, (1.57496570, 0.42503430)), (0.02, (0.39802242, 1.60197757))],
)
def test_one_temperature_has_mean_loss_one(temperature: float, loss: tuple[float, float]) -> None:
    gen, pos, neg, weight = protocol_case()
    result = drift_loss(gen, pos, neg, weight_negatives=weight, temperatures=(temperature,))
    assert result.loss.tolist() == pytest.approx(loss, abs=2e-8)
    assert result.loss.mean().item() == pytest.approx(1.0, abs=1e-12)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, g, p, n, s = (draw(st.integers(low, 5)) for low in (1, 2, 1, 0, 1))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    return normal(b, g, s), normal(b, p, s) + 0.5, normal(b, n, s), 3 * torch.rand(b, n, generator=rng).double()


@settings(max_examples=25, deadline=None)
@given(problems(), st.floats(1.0, 50.0), st.floats(-20.0, 20.0))
def test_common_scale_and_shift_change_nothing(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], factor: float, shift: float
) -> None:
    gen, pos, neg, weight = problem
    # Far above the distance floor 1e-4 of the self pairs, which does not scale.
    gen, pos, neg = (1e4 * y for y in (gen, pos, neg))
    before = drift_force(gen, pos, neg, weight_negatives=weight)
    after = drift_force(*(factor * y + shift for y in (gen, pos, neg)), weight_negatives=weight)
    torch.testing.assert_close(after.scale, before.scale * factor, rtol=1e-6, atol=0)
    torch.testing.assert_close(after.force, before.force, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_gradient_is_that_of_the_stop_gradient_form(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    gen, pos, neg, weight = problem
    traced = gen.clone().requires_grad_()
    force = drift_force(gen, pos, neg, weight_negatives=weight)
    target = gen / force.factor + force.force
    expected = (traced / force.factor - target).square().mean(dim=(1, 2))
    upstream = torch.linspace(0.5, 2.0, len(gen), dtype=torch.float64)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), traced)

    result = drift_loss(traced, pos, neg, weight_negatives=weight)
    (found,) = torch.autograd.grad((result.loss * upstream).sum(), traced)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(found, wanted)
    _, g, s = gen.shape
    written = -2 * force.force / (g * s * force.factor) * upstream[:, None, None]
    torch.testing.assert_close(found, written)
    assert not result.scale.requires_grad
    assert not result.force_norm.requires_grad


@settings(max_examples=15, deadline=None)
@given(problems(), st.integers(1, 6))
def test_chunks_change_nothing(problem: tuple[Tensor, Tensor, Tensor, Tensor], chunk: int) -> None:
    gen, pos, neg, weight = problem
    whole = drift_force(gen, pos, neg, weight_negatives=weight)
    parts = drift_force(gen, pos, neg, weight_negatives=weight, chunk=chunk)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(problems(), st.sampled_from([0.02, 0.05, 0.2, 1.0]))
def test_one_temperature_has_mean_loss_one_for_any_problem(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float
) -> None:
    gen, pos, neg, weight = problem
    result = drift_force(gen, pos, neg, weight_negatives=weight, temperatures=(temperature,))
    assume(float(result.force_norm) > 1e-8)  # below it the normaliser lets go
    assert float(result.loss.mean()) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_coefficients_of_a_sample_sum_to_zero(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Attraction and repulsion carry equal mass, whatever the guidance weights (protocol 6.2.4)."""
    gen, pos, neg, weight = problem
    targets = torch.cat([gen, neg, pos], dim=1)
    weights = torch.cat([torch.ones_like(gen[..., 0]), weight, torch.ones_like(pos[..., 0])], dim=1)
    distances = torch.cdist(gen, targets)
    into, *scratch = (torch.empty_like(distances) for _ in range(3))
    drift.coefficients(distances, weights, pos.shape[1], 0.2, into, scratch)
    assert into.sum(dim=2).abs().max() <= 1e-12 * into.abs().sum(dim=2).max()
    assert (into[..., -pos.shape[1] :] >= 0).all()
    assert (into[..., : -pos.shape[1]] <= 0).all()


def test_weight_zero_is_not_no_unconditional_samples() -> None:
    """alpha = 1 gives w = 0, but the samples still take softmax mass (protocol 6.2.5)."""
    gen, pos, neg, weight = protocol_case()
    with_them = drift_force(gen, pos, neg, weight_negatives=0 * weight)
    without = drift_force(gen, pos)
    torch.testing.assert_close(with_them.scale, without.scale)
    assert (with_them.force - without.force).abs().max() > 1e-2


@pytest.mark.parametrize("scales", [(1.5, 1.0), (1.0, 1.5), (2.0, 1.0), (1.0, 0.0)])
def test_unbalanced_forces_break_it(scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's Table 1: once attraction and repulsion differ, samples drawn from the data itself are pushed about."""
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(4, 128, 8, dtype=torch.float64, generator=rng)
    gen, pos = data[:, :64], data[:, 64:]

    def common_push() -> float:
        """How far the force moves the samples' mean radius; for balanced forces there is nothing to gain."""
        force = drift_force(gen, pos, temperatures=(0.2,)).force
        return float((force * gen).sum() / (force.norm() * gen.norm()))

    balanced = common_push()
    original = drift.coefficients

    def scaled(distances: Tensor, weights: Tensor, n_positive: int, temperature: float, into: Tensor, scratch: Any) -> None:
        original(distances, weights, n_positive, temperature, into, scratch)
        repel, attract = into.split([into.shape[-1] - n_positive, n_positive], dim=-1)
        attract *= scales[0]
        repel *= scales[1]

    monkeypatch.setattr(drift, "coefficients", scaled)
    assert abs(common_push()) > 3 * abs(balanced)


def entries(rng: torch.Generator, labels: int, each: int) -> dict[str, Tensor]:
    """Features (samples, tokens, S) of three entries, two of one shape."""
    shapes = {"raw": (6, 5), "mean": (1, 5), "std": (1, 5)}
    return {
        name: torch.randn(labels * each, *shape, dtype=torch.float64, generator=rng) * (1 + place)
        for place, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("chunk", [None, 1, 4, 7])
def test_the_objective_is_the_sum_of_its_entries(chunk: int | None) -> None:
    """Entries of one shape are computed together, chunks cut labels and tokens: each entry's own loss all the same."""
    rng = torch.Generator().manual_seed(3)
    labels, (n_gen, n_pos, n_neg) = 3, (4, 5, 2)
    gen, pos, neg = (entries(rng, labels, each) for each in (n_gen, n_pos, n_neg))
    weights = torch.rand(labels, n_neg, dtype=torch.float64, generator=rng)
    objective = DriftObjective(gen, pos, neg, weights, (0.2, 0.05), chunk=chunk)
    gradients = [objective.gradients(slice(0, 1)), objective.gradients(slice(1, 3))]
    results = objective.results()

    def alone(entry: Tensor, each: int) -> Tensor:
        return entry.unflatten(0, (labels, each)).transpose(1, 2).flatten(0, 1)

    expected = []
    for name, features in gen.items():
        traced = features.clone().requires_grad_()
        single = drift_loss(
            alone(traced, n_gen), alone(pos[name], n_pos), alone(neg[name], n_neg), temperatures=(0.2, 0.05),
            weight_negatives=weights.repeat_interleave(features.shape[1], 0),
        )  # fmt: skip
        single.loss.mean().backward()
        assert traced.grad is not None
        torch.testing.assert_close(torch.cat([part[name] for part in gradients]), traced.grad)
        torch.testing.assert_close(results[name].loss, single.loss.detach().mean())
        torch.testing.assert_close(results[name].scale, single.scale)
        torch.testing.assert_close(results[name].force_norm, single.force_norm)
        expected.append(single.loss.detach().mean())
    torch.testing.assert_close(total(results), torch.stack(expected).sum())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_part_gives_the_same_numbers() -> None:
    gen, pos, neg = ({"raw": each["raw"].float()} for each in (entries(torch.Generator(), 3, n) for n in (4, 5, 2)))
    weights = torch.tensor([[0.0, 1.0], [2.0, 0.5], [1.0, 1.0]])
    eager, compiled = (
        DriftObjective(gen, pos, neg, weights, (0.2, 0.05), compiled=how).gradients()["raw"] for how in (False, True)
    )
    assert (compiled - eager).abs().max() <= 1e-6 * eager.abs().max()


class Waits(TorchDispatchMode):
    """Notes every operation that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    rng = torch.Generator().manual_seed(3)
    gen, pos, neg = (entries(rng, 3, each) for each in (4, 5, 2))
    with Waits() as waits:
        objective = DriftObjective(gen, pos, neg, torch.ones(3, 2, dtype=torch.float64), (0.2, 0.05))
        objective.gradients()
        total(objective.results())
        traced = gen["mean"].transpose(0, 1).clone().requires_grad_()
        drift_loss(traced, pos["mean"].transpose(0, 1)).loss.mean().backward()
    assert waits.found == []
    with Waits() as control:
        float(total(objective.results()))
    assert control.found


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_products_are_exact_whatever_the_caller_allows(setting: str) -> None:
    before = torch.get_float32_matmul_precision()
    gen, pos, neg, weight = (x.float() for x in protocol_case())
    exact = drift_force(gen, pos, neg, weight_negatives=weight)
    torch.set_float32_matmul_precision(setting)
    try:
        found = drift_force(gen, pos, neg, weight_negatives=weight)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.force, exact.force)


def allocated_at_most(labels: int, method: str) -> int:
    """Most bytes that the allocator had given out at once, beyond the inputs, for labels of 128 tokens."""
    data = benchmark.inputs(labels, "cpu", tokens=128)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        benchmark.METHODS[method](data)
    events = [(e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(events)))


def test_working_memory_is_the_gradient_and_one_chunk() -> None:
    """Memory does not grow with B at a fixed chunk, but for the gradient itself: the floor, to half a megabyte."""
    gradient = 2 * 128 * benchmark.GENERATED * benchmark.WIDTH  # bytes of one label's, bfloat16
    chunk = benchmark.chunk_bytes(benchmark.chunk("cpu"))
    for labels in (1, 4, 16):
        beyond = allocated_at_most(labels, "training") - labels * gradient - chunk
        assert 0 <= beyond <= 500_000, labels
    assert allocated_at_most(4, "literal") > 5 * (4 * gradient + chunk)


def test_labels_interact_through_the_two_scalars_only() -> None:
    gen, pos, neg, weight = protocol_case()
    order = [1, 0]
    swapped = drift_force(gen[order], pos[order], neg[order], weight_negatives=weight[order])
    torch.testing.assert_close(swapped.force[order], drift_force(gen, pos, neg, weight_negatives=weight).force)
    alone = drift_force(gen[:1], pos[:1], neg[:1], weight_negatives=weight[:1])
    both = drift_force(gen, pos, neg, weight_negatives=weight)
    assert not torch.allclose(alone.scale, both.scale)


def test_everything_at_one_point_stands_still() -> None:
    """Attraction and repulsion carry equal mass: the coefficients of a generated sample sum to zero."""
    point = torch.ones(2, 3, 5, dtype=torch.float64)
    assert drift_force(point, point).force.abs().max() == 0


def test_identical_generated_samples_move_alike() -> None:
    """The generator starts at exactly 0: all samples equal, no NaN, one common force (float32, a large offset)."""
    rng = torch.Generator().manual_seed(0)
    gen = torch.zeros(2, 64, 16).requires_grad_()
    pos = torch.randn(2, 8, 16, generator=rng) + 100.0
    result = drift_loss(gen, pos)
    result.loss.sum().backward()
    assert gen.grad is not None
    assert torch.isfinite(gen.grad).all()
    assert gen.grad.abs().max() > 0
    assert (gen.grad - gen.grad[:, :1]).abs().max() <= 1e-5 * gen.grad.abs().max()


def test_floor_keeps_far_samples_moving() -> None:
    rng = torch.Generator().manual_seed(1)
    gen, pos = torch.randn(1, 32, 256, generator=rng), torch.randn(1, 32, 256, generator=rng) + 2.0
    assert drift_force(gen, pos).force_norm.min() > 1e-4


def test_float32_survives_a_large_common_offset() -> None:
    gen, pos, neg, weight = (x.float() for x in protocol_case())
    exact = drift_force(*(x.double() for x in (gen, pos, neg)), weight_negatives=weight)
    far = drift_force(*(x + 64.0 for x in (gen, pos, neg)), weight_negatives=weight)
    torch.testing.assert_close(far.loss.double(), exact.loss, rtol=2e-3, atol=0)


def test_half_precision_features_are_computed_in_float32() -> None:
    gen, pos, _, _ = (x.bfloat16() for x in protocol_case())
    gen.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = drift_loss(gen, pos)
    result.loss.mean().backward()
    assert result.loss.dtype == torch.float32
    assert gen.grad is not None
    assert gen.grad.dtype == torch.bfloat16
    torch.testing.assert_close(result.loss.detach(), drift_loss(gen.detach().float(), pos.float()).loss)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"positives": torch.zeros(2, 4, 6)}, "positives share B and S"),
        ({"positives": torch.zeros(2, 0, 5)}, "at least one positive"),
        ({"negatives": torch.zeros(3, 2, 5)}, "negatives share B and S"),
        ({"weight_negatives": torch.zeros(2, 3)}, "weight_negatives"),
        ({"gen": torch.zeros(2, 5)}, r"gen is \(B, G, S\)"),
        ({"gen": torch.zeros(0, 3, 5)}, r"gen is \(B, G, S\)"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_wrong_shapes_are_refused(replace: dict[str, object], message: str) -> None:
    gen, positives, negatives, weight = protocol_case()
    arguments = {"gen": gen, "positives": positives, "negatives": negatives, "weight_negatives": weight} | replace
    with pytest.raises(ValueError, match=message):
        drift_loss(**arguments)  # type: ignore[arg-type]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = slice(rank, rank + 1)
    gen, pos, neg, weight = (x[mine] for x in protocol_case())
    result = drift_force(gen, pos, neg, weight_negatives=weight, group=dist.group.WORLD)
    torch.save(tuple(result), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_global_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    gen, pos, neg, weight = protocol_case()
    whole = drift_force(gen, pos, neg, weight_negatives=weight)
    for rank in (0, 1):
        force, factor, loss, scale, norm = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(force, whole.force[rank : rank + 1])
        torch.testing.assert_close(loss, whole.loss[rank : rank + 1])
        for found, wanted in ((factor, whole.factor), (scale, whole.scale), (norm, whole.force_norm)):
            torch.testing.assert_close(found, wanted)
