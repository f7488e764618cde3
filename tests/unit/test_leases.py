"""One writer per folder: a live holder is refused by pid, a dying orphan is waited for, the dead leave nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from drifting_core.faults import Fault
from drifting_core.leases import writer_lease

HOLD = "import sys, time; from pathlib import Path; from drifting_core.leases import writer_lease\n"
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
        psutil.Process(pid).wait(timeout=10)
