"""Training: an interrupted run is the uninterrupted one bit for bit, micro-batches change nothing, states are whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drifting_core import config as settings
from drifting_core.data.latents import LatentStore
from drifting_core.faults import Fault, Stopped
from drifting_core.jobs.job import StopRequest
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.generator import DriftTraining
from drifting_core.training.loop import MetricsFile, NotFinite, Optimisation, Trainee, train
from drifting_core.training.mae import MaskedTraining, StoredLatents, encoder_architecture
from drifting_core.training.state import StateFolder
from tests.unit.training.samples import CPU, drift_training


def encoder(small: settings.Configuration, store: LatentStore) -> MaskedTraining:
    return MaskedTraining(small.encoder, store, StoredLatents(store), CPU)


def run(trainee: Trainee, folder: Path, until: int, stop: Any = None, log_every: int = 1) -> dict[str, Tensor]:
    train(
        trainee, StateFolder(folder / "state", "c"), MetricsFile(folder / "metrics.jsonl"), until=until, commit_every=3,
        log_every=log_every, stop=StopAfter(until) if stop is None else stop, label="test",
    )  # fmt: skip
    return {name: tensor.clone() for name, tensor in trainee.tensors().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if name != "time"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


class StopAfter:
    """Truthy from the n-th question on."""

    reason = "a test asked"

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("make", [drift_training, encoder])
def test_an_interrupted_run_equals_the_uninterrupted_one(tmp_path: Path, small: Any, store: LatentStore, make: Any) -> None:
    whole = run(make(small, store), tmp_path / "whole", 8)
    with pytest.raises(Stopped):
        run(make(small, store), tmp_path / "parts", 8, StopAfter(2))
    with pytest.raises(Stopped):
        run(make(small, store), tmp_path / "parts", 8, StopAfter(3))
    parts = run(make(small, store), tmp_path / "parts", 8)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_longer_horizon_continues_the_shorter_run(tmp_path: Path, small: Any, store: LatentStore) -> None:
    whole = run(drift_training(small, store), tmp_path / "whole", 8)
    run(drift_training(small, store), tmp_path / "slices", 4)
    slices = run(drift_training(small, store), tmp_path / "slices", 8)
    assert all(torch.equal(whole[name], slices[name]) for name in whole)


def test_a_killed_run_goes_on_from_its_last_commit(tmp_path: Path, small: Any, store: LatentStore) -> None:
    child = os.fork()
    if child == 0:
        # Killed from inside after 5 updates: state of step 3 is committed, metrics reach step 5.
        class Killed(DriftTraining):
            def advance(self, step: int) -> dict[str, Any]:
                if step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().advance(step)

        network = LatentEncoder(**encoder_architecture(small.encoder, 4))
        network.reset_parameters(1)
        run(Killed(small.generator, small.objective, small.training, store, network.eval(), CPU), tmp_path / "k", 8)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert lines(tmp_path / "k")[-1]["step"] == 5
    again = run(drift_training(small, store), tmp_path / "k", 8)
    whole = run(drift_training(small, store), tmp_path / "whole", 8)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert lines(tmp_path / "k") == lines(tmp_path / "whole")


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing_but_rounding(small: Any, store: LatentStore, parts: int) -> None:
    one, many = drift_training(small, store), drift_training(small, store, micro_batches=parts)
    gradients = []
    for trainee in (one, many):
        trainee.begin()
        # At initialisation the output is exactly 0 and the features amplify rounding: start from somewhere else.
        with torch.no_grad():
            for parameter in trainee.model.parameters():
                parameter.add_(0.05)
        seen: dict[str, Tensor] = {}

        def keep(step: int, model: torch.nn.Module = trainee.model, into: dict[str, Tensor] = seen) -> dict[str, float]:
            into.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            return {}

        trainee.optimisation.apply = keep  # type: ignore[method-assign]
        seen["loss"] = torch.tensor(trainee.advance(0)["loss"])
        gradients.append(seen)
    first, second = gradients
    assert first.keys() == second.keys()
    for name in first:
        # float32: entries that hardly vary are amplified rounding (protocol 7.1)
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=2e-3 * float(first[name].abs().max()))
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)


def test_a_damaged_newest_state_falls_back_loudly(
    tmp_path: Path, small: Any, store: LatentStore, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(drift_training(small, store), tmp_path, 6)
    newest = tmp_path / "state" / "step_00000006" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    again = run(drift_training(small, store), tmp_path, 6)
    assert "damaged" in caplog.text
    assert (tmp_path / "state" / "damaged_step_00000006").is_dir()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_last_two_states_are_kept_and_a_half_written_one_is_ignored(tmp_path: Path) -> None:
    states = StateFolder(tmp_path, "c")
    for step in (1, 2, 3):
        states.commit(step, {"x": torch.tensor(float(step))})
    states.wait()
    (tmp_path / ".step_00000004.99").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "step_00000002",
        "step_00000003",
    ]
    resumed = StateFolder(tmp_path, "c").resume(9)
    assert resumed is not None
    assert resumed[0] == 3
    assert not (tmp_path / ".step_00000004.99").exists()
    with pytest.raises(Fault, match="cannot be made again"):
        states.resume(1)


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_a_training_with_exports_and_no_state_does_not_begin_again(
    tmp_path: Path, small: Any, store: LatentStore, lost: str
) -> None:
    run(drift_training(small, store), tmp_path, 6)
    for step in (0, 3, 6):
        (tmp_path / f"exports/step_{step}").mkdir(parents=True)
        (tmp_path / f"exports/step_{step}/metadata.json").touch()
    for state in (tmp_path / "state").iterdir():
        if lost == "removed":
            shutil.rmtree(state)
        else:
            (state / "state.safetensors").write_bytes(b"no state")
    before = lines(tmp_path)
    with pytest.raises(Fault, match=r"no whole state is left, but .*exports holds steps \[0, 3, 6\].*no step beyond 6"):
        train(
            drift_training(small, store), StateFolder(tmp_path / "state", "c", exports=tmp_path / "exports"),
            MetricsFile(tmp_path / "metrics.jsonl"), until=9, commit_every=3, log_every=1, stop=False, label="test",
        )  # fmt: skip
    assert lines(tmp_path) == before


def test_a_training_whose_only_export_is_asked_for_may_begin(tmp_path: Path) -> None:
    (tmp_path / "exports/step_1").mkdir(parents=True)
    (tmp_path / "exports/step_1/metadata.json").touch()
    assert StateFolder(tmp_path / "state", "c", exports=tmp_path / "exports").resume(1) is None


def test_a_state_of_another_configuration_is_refused_and_kept(tmp_path: Path) -> None:
    one = StateFolder(tmp_path, "one")
    one.commit(1, {"x": torch.tensor(1.0)})
    one.wait()
    with pytest.raises(Fault, match="made under configuration one"):
        StateFolder(tmp_path, "two").resume(1)
    assert (tmp_path / "step_00000001").is_dir()


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimisation = Optimisation(model, learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip=1.0, ema=0.5)
    model(torch.tensor([[float("nan"), 1.0]])).sum().backward()
    with pytest.raises(NotFinite, match="the gradient is not finite"):
        optimisation.apply(7)
    assert torch.equal(model.weight, before)


def test_warm_up_starts_low_and_stays_constant() -> None:
    optimisation = Optimisation(torch.nn.Linear(1, 1), learning_rate=2e-3, warmup_steps=2, weight_decay=0, clip=2, ema=0)
    assert [optimisation.rate(step) for step in range(4)] == pytest.approx([1e-6, 1e-6 + (2e-3 - 1e-6) / 2, 2e-3, 2e-3])


def test_a_long_gradient_is_clipped_to_its_limit() -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    optimisation = Optimisation(model, learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip=2.0, ema=0.9)
    model.weight.grad = torch.tensor([[30.0, 40.0, 0.0]])
    gradient = model.weight.grad
    assert optimisation.apply(0)["gradient_norm"] == pytest.approx(50.0)
    assert torch.allclose(gradient, torch.tensor([[1.2, 1.6, 0.0]]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_ask_to_stop(number: signal.Signals) -> None:
    stop = StopRequest()
    assert not stop
    os.kill(os.getpid(), number)
    assert stop
    assert number.name in stop.reason


def test_the_classifier_weight_ramps_in_the_last_steps(small: Any, store: LatentStore) -> None:
    trainee = encoder(small, store)
    weight = small.encoder.training.finetune_weight
    assert [trainee.classifier_weight(step) for step in range(8)] == pytest.approx(
        [0, 0, 0, 0, 0, weight / 2, weight, weight]
    )
