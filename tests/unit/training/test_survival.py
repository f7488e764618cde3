"""Training jobs that are killed, stopped, starved of disk or started twice: made to happen to real processes.

KILL_SEED (printed) repeats the moments of a run that failed.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
import yaml

from drifting_core.faults import CALL_AGAIN, Fault
from drifting_core.training.loop import MetricsFile, train
from drifting_core.training.state import StateFolder, Stored
from tests.conftest import ROOT
from tests.unit.training.jobs import STEPS, Network, Site, make_site
from tests.unit.training.samples import NEVER, drift_training, write_store


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One folder for all tests; the uninterrupted trainings in it are called `whole`."""
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    return make_site(tmp_path_factory.mktemp("site"), demo)


# The loop is the same for both; the walk (tests/workflow) kills a generator's training in `make test`, too.
@pytest.fixture(scope="module", params=["encoder", pytest.param("generator", marks=pytest.mark.slow)])
def network(request: pytest.FixtureRequest, site: Site) -> Network:
    site.finish(request.param, f"whole_{request.param}")
    return request.param


def wait_for_line(job: subprocess.Popen[str], site: Site, name: str, step: int) -> None:
    """Until metrics.jsonl of the running job holds a line of at least this step."""
    wait_for(job, lambda: any(line["step"] >= step for line in site.lines(name)))


def wait_for(job: subprocess.Popen[str], true: Callable[[], object]) -> None:
    """Until it is true, while the job runs."""
    began = time.monotonic()
    while not true():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def assert_whole(site: Site, network: Network, name: str) -> None:
    """The state (weights, EMA, moments, bank, counters) has the same bytes and metrics.jsonl the same numbers, each once."""
    whole = f"whole_{network}"
    assert site.state(name) == site.state(whole)
    assert site.lines(name) == site.lines(whole)
    assert [line["step"] for line in site.lines(name)] == list(range(1, STEPS + 1))


def test_three_kills_at_random_moments_change_nothing(site: Site, network: Network) -> None:
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns() % 10**6)))
    print(f"KILL_SEED={seed}")
    moments, name, reached = random.Random(seed), f"killed_{network}", 0
    for kill in range(3):
        reached = moments.randint(reached + 1, reached + 12)
        job = site.start(network, name)
        wait_for_line(job, site, name, reached)
        if kill == 2:  # all three may come before the first state, which is made at step 7
            wait_for(job, lambda: list(site.run(name).glob("state/step_*")))
        time.sleep(moments.uniform(0.0, 0.05))
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL
    said = site.finish(network, name)
    assert "continuing at step" in said
    assert_whole(site, network, name)


def test_a_signal_commits_and_asks_to_be_called_again(site: Site, network: Network) -> None:
    name = f"signal_{network}"
    job = site.start(network, name)
    wait_for_line(job, site, name, 9)
    job.send_signal(signal.SIGUSR1)  # ranks, below, are sent SIGTERM
    _, said = job.communicate(timeout=180)
    assert job.returncode == CALL_AGAIN, said
    assert "signal SIGUSR1; committed at step" in said
    reached = site.lines(name)[-1]["step"]
    assert f"continuing at step {reached}" in site.finish(network, name)
    assert_whole(site, network, name)


def test_a_deadline_commits_before_it_is_there(site: Site, network: Network) -> None:
    """Each call has four seconds for steps of 0.15 s."""
    name, codes, reached = f"deadline_{network}", [CALL_AGAIN], [0]
    interpreter, script, *rest = site.command(network, name, "--max-seconds", "4")
    while codes[-1] == CALL_AGAIN:
        done = subprocess.run([interpreter, "-c", PAUSING, "0.15", script, *rest], stderr=subprocess.PIPE, text=True)
        codes.append(done.returncode)
        if codes[-1] == CALL_AGAIN:
            stopped = re.search(r"the time limit is near; committed at step (\d+)", done.stderr)
            assert stopped, done.stderr
            reached.append(int(stopped[1]))
            assert reached[-1] > reached[-2], "every call must get on"
    assert codes[-2:] == [CALL_AGAIN, 0], done.stderr
    assert len(codes) > 2
    assert_whole(site, network, name)


# The script with steps that take at least so long, and a clock that starts when the heavy imports are done.
PAUSING = """
import runpy, sys, time
import drifting_core.training.runs
from drifting_core.training import generator, mae
pause, script = float(sys.argv[1]), sys.argv[2]
for kind in (generator.DriftTraining, mae.MaskedTraining):
    def advance(self, step, original=kind.advance):
        time.sleep(pause)
        return original(self, step)
    kind.advance = advance
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def test_two_jobs_on_one_run_are_one_too_many(site: Site) -> None:
    first = site.start("generator", "twice")
    wait_for_line(first, site, "twice", 2)
    second = site.start("generator", "twice")
    _, said = second.communicate(timeout=180)
    assert second.returncode == 1
    assert f"process {first.pid} on" in said
    assert "is writing here" in said
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    site.finish("generator", "whole_generator")
    assert_whole(site, "generator", "twice")


def test_one_of_two_ranks_killed_ends_the_other_and_loses_nothing(tmp_path: Path, demo_values: dict[str, Any]) -> None:
    site = make_site(tmp_path, demo_values, ranks=2)
    job = site.start("generator", "ranks")
    wait_for_line(job, site, "ranks", 10)
    ranks = psutil.Process(job.pid).children()
    assert len(ranks) == 2
    [victim] = [rank for rank in ranks if rank.environ()["DRIFTING_RANK"] == "1"]
    victim.kill()
    began = time.monotonic()
    _, said = job.communicate(timeout=180)
    assert job.returncode == 1
    assert time.monotonic() - began < 30
    assert "rank 1 of 2 ranks was killed by SIGKILL, and the others were stopped" in said
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    job = site.start("generator", "ranks")
    wait_for_line(job, site, "ranks", 20)
    job.send_signal(signal.SIGUSR1)  # to the job: its ranks hear of it
    _, said = job.communicate(timeout=180)
    assert job.returncode == CALL_AGAIN, said
    # Killed alone, the job leaves ranks that write until they notice; the next one waits for them.
    job = site.start("generator", "ranks")
    wait_for_line(job, site, "ranks", site.lines("ranks")[-1]["step"] + 3)
    job.kill()
    said = site.finish("generator", "ranks")
    assert f"waiting for process {job.pid}, left over from a killed run, to end" in said
    assert "continuing at step" in said
    site.finish("generator", "whole")
    assert_equal_runs(site, "ranks", "whole")


def assert_equal_runs(site: Site, one: str, other: str) -> None:
    assert site.state(one) == site.state(other)
    assert site.lines(one) == site.lines(other)


# --- inside one process ------------------------------------------------------------------------------------------------


def run(trainee: Any, folder: Path, until: int) -> None:
    train(
        trainee, StateFolder(folder / "state", "c"), MetricsFile(folder / "metrics.jsonl"), until=until, commit_every=3,
        log_every=1, stop=NEVER, label="test",
    )  # fmt: skip


def test_killed_in_the_middle_of_writing_its_state(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "store")
    child = os.fork()
    if child == 0:
        whole = safetensors.torch.save_file

        def half(tensors: Any, path: Path) -> None:
            whole(tensors, path)
            if "step_00000006" in str(path):
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(safetensors.torch, "save_file", half)
        run(drift_training(small, store), tmp_path / "killed", 9)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "killed/state").iterdir()) == [".step_00000006", "step_00000003"]
    run(drift_training(small, store), tmp_path / "killed", 9)
    run(drift_training(small, store), tmp_path / "whole", 9)
    assert not list((tmp_path / "killed/state").glob(".step*"))
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")


def tensors(folder: Path, step: int = 9) -> bytes:
    return (folder / f"state/step_{step:08d}/state.safetensors").read_bytes()


def test_a_full_disk_keeps_the_states_before(tmp_path: Path, small_disk: Path, small: Any) -> None:
    store = write_store(tmp_path / "store")
    run(drift_training(small, store), tmp_path / "whole", 9)
    size = len(tensors(tmp_path / "whole"))
    subprocess.run(["mount", "-o", f"remount,size={size * 5 // 2 // 1024 + 24}k", small_disk], check=True)
    with pytest.raises(Fault, match=r"state of step 9 could not be written: .*that of step 6 stays.*make room"):
        run(drift_training(small, store), small_disk, 9)
    assert sorted(path.name for path in (small_disk / "state").iterdir()) == ["step_00000003", "step_00000006"]
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    run(drift_training(small, store), small_disk, 9)
    assert tensors(small_disk) == tensors(tmp_path / "whole")


def test_a_number_that_is_not_finite_stops_before_the_update_and_leaves_what_is_needed_to_look(
    tmp_path: Path, small: Any
) -> None:
    store = write_store(tmp_path / "store")
    trainee = drift_training(small, store)
    run(trainee, tmp_path, 4)
    poisoned = drift_training(small, store)
    advance = poisoned.advance

    def poison(step: int) -> dict[str, Any]:
        if step == 6:
            with torch.no_grad():
                next(poisoned.model.parameters()).view(-1)[0] = float("nan")
        return advance(step)

    poisoned.advance = poison  # type: ignore[method-assign]
    with pytest.raises(
        Fault, match=r"step 6: the loss is not finite in the entries global, .*look into .*not_finite_00000006"
    ):
        run(poisoned, tmp_path, 9)
    left = tmp_path / "state" / "not_finite_00000006"
    report = json.loads((left / "report.json").read_text())
    assert report["step"] == 6
    assert set(report) == {"step", "what", "loss, scale, force norms", "weights", "gradients"}
    seen = safetensors.torch.load_file(left / "rank_0.safetensors")
    assert torch.equal(seen["seen.labels"], drift_at(small, store, tmp_path, 6).labels)
    assert any(name.startswith("weights.") for name in seen)
    # The last good state is that before the fault, and the training goes on from there.
    assert StateFolder(tmp_path / "state", "c").resume(9)[0] == 6  # type: ignore[index]
    run(drift_training(small, store), tmp_path, 9)
    run(drift_training(small, store), tmp_path / "whole", 9)
    assert tensors(tmp_path) == tensors(tmp_path / "whole")


def drift_at(small: Any, store: Any, folder: Path, step: int) -> Any:
    """The batch of a step, made again from the state before it."""
    again = drift_training(small, store)
    again.load(Stored(folder / f"state/step_{step:08d}"))
    return again.batch(step)


def test_states_are_written_while_steps_go_on(tmp_path: Path) -> None:
    """The copy is taken at once: what the training changes after it does not reach the disk."""
    states, weights = StateFolder(tmp_path, "c"), torch.zeros(1000)
    states.commit(1, {"weights": weights})
    weights.fill_(7.0)
    states.wait()
    assert float(Stored(tmp_path / "step_00000001")["weights"].max()) == 0.0
