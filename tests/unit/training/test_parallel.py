"""The result of a step is a property of the configuration: any number of ranks and micro-batches gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from drifting_core import config as settings
from drifting_core.data import draws
from drifting_core.data.latents import LatentStore
from drifting_core.drift import loss as drift
from drifting_core.drift.objective import total
from drifting_core.faults import Fault
from drifting_core.training.parallel import ALONE, Ranks
from tests.unit.training.samples import CPU, drift_training, small_configuration, write_store

# Of the largest entry of a gradient's tensor, and relative for the loss.
TOLERANCES = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-6)}


def values(demo_values: dict[str, Any]) -> dict[str, Any]:
    """The small configuration with eight labels a step."""
    small = small_configuration(demo_values).model_dump(mode="json")
    small["encoder"].update(base_width=16, norm_groups=4)
    small["objective"].update(classes_per_step=8, generated_per_class=4)
    small["objective"]["bank"]["pushes_per_step"] = 8
    return small


def step(
    configuration: dict[str, Any], store: Path, dtype: str, ranks: Ranks, micro_batches: int, on: torch.device = CPU
) -> dict[str, Tensor]:
    """Loss and gradients of step 0, from weights that are not the untrained ones (whose output is exactly 0)."""
    trainee = drift_training(
        settings.load(configuration), LatentStore(store / "manifest.json"), ranks=ranks, on=on, micro_batches=micro_batches
    )
    with torch.no_grad():
        for name, parameter in trainee.model.named_parameters():
            parameter.add_(draws.normal(draws.key(5, name), parameter.shape, device=on) * 0.1)
    number_format = getattr(torch, dtype)
    trainee.model.to(number_format)
    assert trainee.encoder is not None
    trainee.encoder.to(number_format)
    trainee.begin()
    results = trainee._backward(trainee.batch(0))
    gradients = {name: p.grad for name, p in trainee.model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(trainee.model.parameters()))
    return {"loss": total(results), **gradients}


Case = tuple[str, int, bool]  # dtype, micro-batches, whether normalisers are taken over each rank's problems alone
CASES: list[Case] = [(dtype, parts, False) for dtype in TOLERANCES for parts in (1, 2)] + [("float64", 1, True)]


def rank_of(rank: int, size: int, folder: str, configuration: Any) -> None:
    """One process of `size`, through all cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    ranks, over_ranks = Ranks(rank, size, dist.group.WORLD), drift._over_ranks
    for place, (dtype, micro_batches, alone) in enumerate(CASES):
        drift._over_ranks = (lambda sums, group: sums) if alone else over_ranks
        found = step(configuration, Path(folder), dtype, ranks, micro_batches)
        torch.save(found, f"{folder}/{place}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_store(folder)
    return folder


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, float]:
    """Of the gradients, in units of the largest entry of their tensor, and of the loss, relative."""
    assert found.keys() == wanted.keys()
    gradients = [
        float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted if name != "loss"
    ]
    return max(gradients), abs(float(found["loss"] / wanted["loss"]) - 1)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: str) -> None:
    gradient, loss = difference(found, wanted)
    assert gradient <= TOLERANCES[dtype][0]
    assert loss <= TOLERANCES[dtype][1]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("micro_batches", [2, 8])
def test_micro_batches_give_the_same_step(store: Path, demo_values: dict[str, Any], dtype: str, micro_batches: int) -> None:
    whole, parts = (step(values(demo_values), store, dtype, ALONE, count) for count in (1, micro_batches))
    assert_same(parts, whole, dtype)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_ranks_give_the_same_step(store: Path, demo_values: dict[str, Any], tmp_path: Path, size: int) -> None:
    configuration = values(demo_values)
    write_store(tmp_path)
    mp.spawn(rank_of, args=(size, str(tmp_path), configuration), nprocs=size)
    for place, (dtype, _, alone) in enumerate(CASES):
        whole = step(configuration, store, dtype, ALONE, 1)
        ranks = [torch.load(tmp_path / f"{place}_{rank}.pt", weights_only=True) for rank in range(size)]
        # All ranks must take the very same optimisation step.
        assert all(torch.equal(found[name], ranks[0][name]) for found in ranks for name in found)
        if alone:
            # What distributed ports do, normalisers of each rank, is another objective, and this comparison can tell.
            gradient, loss = difference(ranks[0], whole)
            assert gradient > 1e-3
            assert loss > 1e-6
        else:
            assert_same(ranks[0], whole, dtype)


def test_labels_that_do_not_divide_are_refused(store: Path, demo_values: dict[str, Any]) -> None:
    with pytest.raises(Fault, match="classes_per_step: 8 do not divide over 3 ranks"):
        step(values(demo_values), store, "float32", Ranks(0, 3), 1)
