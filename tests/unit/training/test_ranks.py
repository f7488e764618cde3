"""What a training ends with is a property of its configuration: any number of ranks, micro-batches, or shards gives it.

Each case trains five steps and is read back from its committed state, which is what an export and a resume see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from drifting_core import config as settings
from drifting_core.data.latents import LatentStore
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.loop import MetricsFile, NoMetrics, Sink, train
from drifting_core.training.mae import (
    MaskedTraining,
    StoredLatents,
    autoencoder_weights,
    encoder_architecture,
    encoder_weights,
)
from drifting_core.training.parallel import ALONE, Ranks
from drifting_core.training.state import StateFolder, Stored
from tests.unit.training.samples import CPU, NEVER, drift_training, write_store
from tests.unit.training.test_parallel import values

STEPS = 5


class Case(NamedTuple):
    """One training: of which network, in which number format, in how many parts, whole or sharded."""

    network: str
    dtype: str
    micro_batches: int = 1
    parallel: str = "ddp"

    @property
    def folder(self) -> str:
        return "_".join(map(str, self))


TOLERANCES = {"float64": 1e-9, "float32": 1e-4}  # global L2, relative
CASES = [Case(network, dtype, parts) for network in ("generator", "encoder") for dtype in TOLERANCES for parts in (1, 4)]
SHARDED = [Case("encoder", dtype, parts, "fsdp") for dtype, parts in (("float64", 1), ("float64", 4), ("float32", 1))]


@contextmanager
def number_format(dtype: str) -> Iterator[None]:
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def run(case: Case, configuration: Mapping[str, Any], folder: Path, ranks: Ranks, until: int = STEPS) -> None:
    """Train `case` up to `until` steps in folder/<case>."""
    small, store = settings.load(configuration), LatentStore(folder / "store" / "manifest.json")
    with number_format(case.dtype):
        if case.network == "generator":
            trainee: Any = drift_training(small, store, ranks=ranks, micro_batches=case.micro_batches)
        else:
            encoder = small.encoder.model_copy(update={"micro_batches": case.micro_batches, "parallel": case.parallel})
            trainee = MaskedTraining(encoder, store, StoredLatents(store), CPU, ranks)
    sinks: Sink = NoMetrics() if ranks.rank else MetricsFile(folder / case.folder / "metrics.jsonl")
    train(
        trainee, StateFolder(folder / case.folder / "state", "c", ranks), sinks, until=until, commit_every=2,
        log_every=1, stop=NEVER, label="test", ranks=ranks,
    )  # fmt: skip


def norms(case: Case, folder: Path) -> list[float]:
    """Loss and gradient norm of every step: AdamW and the clip would hide a gradient that is a multiple of the true one."""
    lines = [json.loads(line) for line in (folder / case.folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "gradient_norm")]


def state(case: Case, folder: Path, step: int = STEPS) -> Stored:
    return Stored(folder / case.folder / "state" / f"step_{step:08d}")


def of_ranks(rank: int, size: int, folder: str, configuration: Any, cases: list[Case], until: int) -> None:
    """One process of `size`, through all cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous_{size}_{until}", rank=rank, world_size=size)
    control, writing = (dist.new_group(backend="gloo") for _ in range(2))
    for case in cases:
        run(case, configuration, Path(folder), Ranks(rank, size, dist.group.WORLD, control, writing), until)
    dist.destroy_process_group()


def started(folder: Path, configuration: Mapping[str, Any], size: int, cases: list[Case], until: int = STEPS) -> Path:
    if not (folder / "store").exists():
        write_store(folder / "store")
    mp.spawn(of_ranks, args=(size, str(folder), configuration, cases, until), nprocs=size)
    return folder


@pytest.fixture
def configuration(demo_values: dict[str, Any]) -> dict[str, Any]:
    found = values(demo_values)
    found["encoder"]["training"].update(batch=16, steps=STEPS, finetune_steps=3, finetune_ramp_steps=2)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    write_store(folder / "store")
    return folder


def single(case: Case, configuration: Mapping[str, Any], alone: Path) -> Stored:
    """The state after the same training in one process and one part."""
    whole = case._replace(micro_batches=1, parallel="ddp")
    if not (alone / whole.folder).exists():
        run(whole, configuration, alone, ALONE)
    return state(whole, alone)


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kind: str) -> float:
    """Global L2 distance of the tensors of a kind (weights, ema), relative to their length."""
    assert set(found) == set(wanted)
    names = [name for name in wanted if name.startswith(f"{kind}.")]
    apart = sum(float((found[name] - wanted[name]).double().square().sum()) for name in names)
    return (apart / sum(float(wanted[name].double().square().sum()) for name in names)) ** 0.5


def assert_same(case: Case, folder: Path, configuration: Mapping[str, Any], alone: Path) -> None:
    found, wanted = state(case, folder), single(case, configuration, alone)
    if case.dtype == "float64":
        whole = case._replace(micro_batches=1, parallel="ddp")
        assert norms(case, folder) == pytest.approx(norms(whole, alone), rel=1e-6)
    for kind in ("weights", "ema"):
        apart = distance(found, wanted, kind)
        print(f"{case.folder}: {kind} {apart:.1e}")
        assert apart <= TOLERANCES[case.dtype], case
    exact = [name for name in wanted if name.startswith(("bank.", "position", "updates."))]
    assert all(torch.equal(found[name], wanted[name]) for name in exact)


def test_micro_batches_end_with_the_same_weights(alone: Path, configuration: dict[str, Any]) -> None:
    for case in CASES:
        if case.micro_batches > 1:
            run(case, configuration, alone, ALONE)
            assert_same(case, alone, configuration, alone)


# Four ranks are in `make test`, too: those that the pool starts (test_pool.py).
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_end_with_the_same_weights(size: int, alone: Path, configuration: dict[str, Any], tmp_path: Path) -> None:
    cases = CASES + (SHARDED if size == 2 else [])
    folder = started(tmp_path, configuration, size, cases)
    for case in cases:
        assert_same(case, folder, configuration, alone)


def test_a_sharded_training_goes_on_with_other_ranks_and_its_export_needs_none(
    alone: Path, configuration: dict[str, Any], tmp_path: Path
) -> None:
    case = SHARDED[0]
    folder = started(tmp_path, configuration, 2, [case], until=2)
    files = sorted(path.name for path in (folder / case.folder / "state" / "step_00000002").iterdir())
    assert files == ["COMMITTED.json", "state.safetensors", "state_0001.safetensors"]
    run(case, configuration, folder, ALONE, until=4)
    started(folder, configuration, 2, [case])
    assert_same(case, folder, configuration, alone)
    small = settings.load(configuration)
    network = LatentEncoder(**encoder_architecture(small.encoder, 4)).double()
    network.load_state_dict(encoder_weights(autoencoder_weights(state(case, folder))))
