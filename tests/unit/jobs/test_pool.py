"""The machine's GPUs as one pool: no device twice, first come first served, any death frees. Devices here are pretended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from drifting_core import config as settings
from drifting_core.faults import Fault
from drifting_core.jobs import devices, pool
from drifting_core.jobs.pool import leases
from tests.conftest import ROOT
from tests.unit.training import test_ranks
from tests.unit.training.samples import write_store

# A job that takes so many devices, prints which it got, and keeps them for a minute. It waits for half of that.
JOB = """
import logging, os, sys, time
from drifting_core.jobs.job import StopRequest, run
from drifting_core.jobs.pool import take
def main(argv):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    take(int(sys.argv[1]), StopRequest(30))
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    time.sleep(60)
raise SystemExit(run(main))
"""


alone, configuration = test_ranks.alone, test_ranks.configuration  # fixtures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of leases, on a machine of unknown devices."""
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", pool.POOL, pool.REHEARSAL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(pool.LEASES, str(tmp_path / "leases"))
    return tmp_path / "leases"


class Jobs:
    """Processes that take devices, and are ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, count: int, shared: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, pool.POOL: shared},
        )  # fmt: skip
        self.started.append(job)
        return job

    def holding(self, count: int, shared: str) -> subprocess.Popen[str]:
        """A job that has its devices: the first of `shared`."""
        job = self.start(count, shared)
        assert got(job) == ",".join(shared.split(",")[:count])
        return job

    def waiting(self, count: int, shared: str) -> subprocess.Popen[str]:
        """A job that stands in line."""
        job = self.start(count, shared)
        assert job.stderr is not None
        assert "waiting for" in job.stderr.readline()
        return job


def got(job: subprocess.Popen[str]) -> str:
    """The devices of a job, once it has them."""
    assert job.stdout is not None
    return job.stdout.readline().strip()


def end(job: subprocess.Popen[str] | psutil.Popen, how: int = signal.SIGKILL) -> int:
    job.send_signal(how)
    return job.wait(timeout=60)


@pytest.fixture
def jobs(folder: Path) -> Iterator[Jobs]:
    made = Jobs(folder)
    yield made
    for job in made.started:
        job.kill()
        job.communicate()


def free(folder: Path, names: Sequence[str]) -> list[str]:
    """Devices that nobody holds, in the view of a job that looks now."""
    held = {line.split()[0] for line in pool._holders(folder, names)}
    return [name for name in names if name not in held]


def test_all_or_none_first_come_first_served_and_the_dead_hold_nothing(jobs: Jobs, folder: Path) -> None:
    one = jobs.holding(1, "0,1")
    two = jobs.waiting(2, "0,1")
    third = jobs.waiting(1, "0,1")
    # Device 1 is free, but the first in line waits for both, and holds neither while it waits.
    assert free(folder, ["0", "1"]) == ["1"]
    end(one)
    assert got(two) == "0,1"
    fourth = jobs.waiting(2, "0,1")
    end(two)
    assert got(third) == "0"
    # A waiting job that is killed holds nobody up.
    fifth = jobs.waiting(1, "0,1")
    end(fourth)
    assert got(fifth) == "1"
    assert free(folder, ["0", "1"]) == []


def test_jobs_that_share_no_device_do_not_wait_for_each_other(jobs: Jobs) -> None:
    jobs.holding(1, "0")
    waiting = jobs.waiting(1, "0")
    other = jobs.start(1, "0,1")
    assert got(other) == "1"
    assert waiting.poll() is None


def test_a_waiting_job_says_who_holds_the_devices_and_stops_when_told(jobs: Jobs) -> None:
    holder = jobs.holding(1, "0")
    first, second = jobs.waiting(1, "0"), jobs.waiting(1, "0")
    assert end(second, signal.SIGTERM) == 75
    assert second.stderr is not None
    said = second.stderr.read()
    assert f"0 is held by process {holder.pid} (-c 1)" in said
    assert f"earlier in line: process {first.pid} (-c 1)" in said


def test_a_waiting_job_ends_with_what_started_it(jobs: Jobs, folder: Path) -> None:
    jobs.holding(1, "0")
    command = f'{sys.executable} -c "$JOB" 1 2> {folder}/log & wait'
    head = subprocess.Popen(["bash", "-c", command], env={**os.environ, "JOB": JOB, pool.POOL: "0"})
    log = folder / "log"
    wait_for(lambda: log.exists() and "waiting for" in log.read_text())
    end(head)
    wait_for(lambda: "the process that started this job has died" in log.read_text())


def wait_for(happened: Any, seconds: float = 10) -> None:
    over = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < over
        time.sleep(0.05)


RANKS = """
import sys, time
from pathlib import Path
from drifting_core.config import Resources
from drifting_core.jobs.devices import in_ranks
from drifting_core.jobs.job import StopRequest
in_ranks(lambda: time.sleep(60), Resources(gpus=2), Path(sys.argv[1]), StopRequest())
"""


def test_ranks_keep_the_devices_of_a_job_that_was_killed(folder: Path, tmp_path: Path) -> None:
    """They compute until they notice."""
    (tmp_path / "job.py").write_text(RANKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), pool.POOL: "0,1,2"}
    job = psutil.Popen([sys.executable, str(tmp_path / "job.py"), str(tmp_path)], env=environment)
    wait_for(lambda: len(job.children()) == 2)
    ranks = job.children()
    assert {rank.environ()["CUDA_VISIBLE_DEVICES"] for rank in ranks} == {"0,1"}
    end(job)
    assert free(folder, ["0", "1", "2"]) == ["2"]
    for rank in ranks:
        rank.kill()
    wait_for(lambda: free(folder, ["0", "1", "2"]) == ["0", "1", "2"])


def test_devices_are_taken_once_and_alone_visible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pool.POOL, "GPU-a,GPU-b,MIG-GPU-c/1/0")
    with monkeypatch.context() as nobody:
        nobody.setattr(pool, "leases", None)  # is asked: this is said at once
        with pytest.raises(Fault, match=r"gives this job 4 GPU\(s\), but this machine has 3 to share \(GPU-a, GPU-b, MIG-"):
            pool.take(4)
        assert pool.take(0) == []
    other = leases(1, ["GPU-a"], pool._folder())
    held = pool.take(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,MIG-GPU-c/1/0"
    assert len(held) == 2
    monkeypatch.setattr(pool, "leases", None)  # not asked again
    assert pool.take(2) == held
    other["GPU-a"].close()


def test_what_slurm_granted_is_not_taken_but_shared_by_a_snakemake_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert pool.take(2) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    # `snakemake --profile local` inside the allocation: its jobs divide those two.
    monkeypatch.setenv(pool.POOL, "2,3")
    assert len(pool.take(1)) == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_machine_without_gpus_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Fault, match=r"gives this job 1 GPU\(s\), but this machine has 0 to share \(none\)"):
        devices.device(1, 1)


NVIDIA_SMI = """#!/bin/sh
echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa)"
echo "  MIG 1g.10gb     Device  0: (UUID: MIG-77)"
echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-11bb)"
echo "GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-22cc)"
"""


@pytest.fixture
def machine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of three GPUs: nvidia-smi, free to change."""
    script = tmp_path / "nvidia-smi"
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return script


@pytest.mark.parametrize(("named", "visible", "found"), [
    ((), None, ["GPU-11aa", "GPU-11bb", "GPU-22cc"]),
    ((), "2,GPU-11a", ["GPU-22cc", "GPU-11aa"]),
    ((), "", []), ((), "-1", []), ((), "NoDevFiles", []),
    ((1, "0"), "2", ["GPU-11bb", "GPU-11aa"]),
    (("MIG-77",), None, ["MIG-77"]),
])  # fmt: skip
def test_the_configuration_then_cuda_then_the_driver_name_the_devices(
    machine: Path, monkeypatch: pytest.MonkeyPatch, named: Sequence[int | str], visible: str | None, found: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert pool.devices(named) == found


@pytest.mark.parametrize(("named", "said"), [
    ((3,), r"devices: found '3', but `nvidia-smi -L` shows 3 GPU\(s\) here \(GPU-11aa, GPU-11bb, GPU-22cc\)"),
    (("GPU-11",), "devices: found 'GPU-11', but"),  # of two
    ((0, "GPU-11aa"), "devices: found 0, GPU-11aa; name each device once"),
])  # fmt: skip
def test_devices_that_are_not_there_are_refused_but_in_a_rehearsal(
    machine: Path, named: Sequence[int | str], said: str
) -> None:
    with pytest.raises(Fault, match=said):
        pool.devices(named)
    assert pool.devices(named, rehearsal=True) == [str(name) for name in named]


def test_a_driver_that_does_not_answer_is_a_fault_and_not_a_machine_without_gpus(machine: Path) -> None:
    machine.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    with pytest.raises(Fault, match="`nvidia-smi -L` fails: Failed to initialize NVML"):
        pool.devices()


def test_asking_for_more_than_there_are_names_the_keys(folder: Path, demo_values: dict[str, Any]) -> None:
    demo_values |= {"rehearsal": True, "devices": [0, 1, 2]}
    demo_values["training"]["resources"] = {"gpus": 5}
    config = settings.load(demo_values)
    with pytest.raises(
        Fault, match=r"train: up to 5 GPUs .* has 3 to share \(0, 1, 2\); lower training.resources.gpus \(5\)"
    ):
        pool.share(config, {"train": 5, "sample": 1}, None)
    # Snakemake would run a job of 2 GPUs with 1.
    with pytest.raises(Fault, match=r"sample: up to 2 GPUs .*, and --resources gpu=1 allows 1 of them"):
        pool.share(config, {"sample": 2}, 1)
    assert [pool.share(config, {"sample": 1}, allowed) for allowed in (None, 2, 8)] == [3, 2, 3]
    assert os.environ[pool.POOL] == "0,1,2"
    assert pool.share(config, {"sample": 0}, None) == 0


def test_four_ranks_on_four_devices_of_the_pool_end_with_the_weights_of_one_process(
    folder: Path, tmp_path: Path, configuration: dict[str, Any], alone: Path
) -> None:
    """A job that is started as Snakemake does: the launcher starts its ranks, the pool gives it their devices."""
    write_store(tmp_path / "store")
    (tmp_path / "configuration.json").write_text(json.dumps(configuration))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.launched_ranks", str(tmp_path), '{"gpus": 4}', "--threads", "4"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), pool.POOL: "0,1,2,3", pool.REHEARSAL: "1"},
        stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "GPU 0, 1, 2, 3 taken, of 4 that this machine shares" in done.stderr
    assert done.stderr.count("world size 4: ranks on this machine") == done.stderr.count("world size") == 1
    assert "rehearsal: on the CPU, with GPU 0,1,2,3 granted" in done.stderr
    assert free(folder, ["0", "1", "2", "3"]) == ["0", "1", "2", "3"]
    for case in test_ranks.CASES:
        if case.dtype == "float64":
            test_ranks.assert_same(case, tmp_path, configuration, alone)
