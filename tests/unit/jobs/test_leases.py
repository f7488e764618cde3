"""One writer per folder: a live holder is refused by pid, a dying orphan is waited for, the dead leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from drifting_core.faults import Fault
from drifting_core.jobs.leases import writer_lease
from tests.conftest import until

HOLD = "import sys, time; from pathlib import Path; from drifting_core.jobs.leases import writer_lease\n"
HOLD += "with writer_lease(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(float(sys.argv[2]))\n"


def hold(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_live_holder_is_refused_with_its_pid(tmp_path: Path) -> None:
    holder = hold(tmp_path, 60)
    try:
        with pytest.raises(Fault, match=f"process {holder.pid} "), writer_lease(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_holder_frees_the_folder_at_once(tmp_path: Path) -> None:
    holder = hold(tmp_path, 60)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with writer_lease(tmp_path):
        pass


def test_an_orphan_is_waited_for(tmp_path: Path) -> None:
    # A shell starts the holder and is killed, as Snakemake would be: the holder lives on without it.
    command = f'{sys.executable} -c "$HOLD" {tmp_path} 3 & echo $!; wait'
    head = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, env={"HOLD": HOLD, "PATH": "/usr/bin:/bin"})
    assert head.stdout is not None
    lines = {head.stdout.readline(), head.stdout.readline()}
    assert b"held\n" in lines
    [pid] = [int(line) for line in lines if line.strip().isdigit()]
    head.kill()
    head.wait()
    began = time.monotonic()
    with writer_lease(tmp_path, poll_seconds=0.05):
        assert time.monotonic() - began < 10
    # It let go of the lease and is ending: nothing of ours keeps it.
    if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        psutil.Process(pid).wait(timeout=60)


def test_a_head_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    command = f'{sys.executable} -c "$HOLD" {tmp_path} 60 & echo $!; wait'
    shell = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, env={"HOLD": HOLD, "PATH": "/usr/bin:/bin"})
    assert shell.stdout is not None
    [pid] = [int(line) for line in (shell.stdout.readline(), shell.stdout.readline()) if line != b"held\n"]
    shell.kill()
    shell.wait()
    with pytest.raises(Fault, match=f"process {pid} "), writer_lease(tmp_path, outlives_parent=True):
        pass
    os.kill(pid, signal.SIGKILL)


ELSEWHERE = {"pid": 12, "parent": 1, "host": "another-node", "slurm_job": None}


def left_by(folder: Path, **holder: object) -> Path:
    """A lease as a machine whose locks are not seen here leaves it while it writes."""
    lease = folder / ".lease"
    lease.write_text(json.dumps({**ELSEWHERE, **holder}))
    return lease


def test_a_heart_that_beats_on_another_machine_is_refused(tmp_path: Path) -> None:
    lease, over = left_by(tmp_path), threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(lease)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(Fault, match="process 12 on another-node is alive"), writer_lease(tmp_path, beat=0.5):
            pass
    finally:
        over.set()
        heart.join()
    assert json.loads(lease.read_text())["host"] == "another-node"


def test_a_heart_that_stopped_on_another_machine_is_waited_for_once(tmp_path: Path) -> None:
    left_by(tmp_path)
    for least, most in ((2.0, 5.0), (0.0, 1.5)):  # the second time it was given back
        began = time.monotonic()
        with writer_lease(tmp_path, poll_seconds=0.02, beat=0.5):
            assert least <= time.monotonic() - began < most


@pytest.mark.parametrize(("answer", "waits"), [("COMPLETED", False), ("RUNNING", True)])
def test_slurm_is_asked_whether_the_holders_job_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, waits: bool
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho {answer}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    left_by(tmp_path, slurm_job="77")
    began = time.monotonic()
    with writer_lease(tmp_path, poll_seconds=0.02, beat=0.5):
        assert (time.monotonic() - began > 1.9) == waits


def test_a_heart_beats_as_long_as_the_lease_is_held(tmp_path: Path) -> None:
    with writer_lease(tmp_path, beat=0.02):
        before = (tmp_path / ".lease").stat().st_mtime_ns
        until(lambda: (tmp_path / ".lease").stat().st_mtime_ns > before)
    assert (tmp_path / ".lease").read_text() == ""
