"""Who may write: one writer per folder.

A lease is an flock on `<folder>/.lease` (`.<name>.lease` for one file of a shared folder), so any death of its holder on
this machine frees it. The file says who holds it, and a heartbeat touches it, for file systems whose locks other
machines do not see. A job that finds it taken waits when the holder is dying (its Snakemake was killed, its SLURM job is
over, its heart stopped) and refuses, naming it, when the holder lives: then two workflows were started on one folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import psutil

from drifting_core.faults import Fault

log = logging.getLogger(__name__)

BEAT = 15.0  # seconds between heartbeats
STOPPED = 4 * BEAT  # without one for this long, a heart has stopped


@contextmanager
def writer_lease(
    folder: Path, name: str = "", *, outlives_parent: bool = False, poll_seconds: float = 0.5, beat: float = BEAT
) -> Iterator[int]:
    """Hold the right to write below `folder`, or of its file `name` alone. Raises Fault when a live job holds it.

    A holder is dying when what started it is gone, unless it `outlives_parent` (as under nohup). Yields the file
    descriptor of the lock: processes that inherit it hold the lease, too, until the last has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _path(folder, name).open("a+") as file:
        _wait_for_turn(file, folder, poll_seconds, outlives_parent)
        _wait_for_elsewhere(file, folder, poll_seconds, beat)
        _sign(file)
        over = threading.Event()
        heart = threading.Thread(target=_beat, args=(file, over, beat), daemon=True)
        heart.start()
        try:
            yield file.fileno()
        finally:
            over.set()
            heart.join()
            file.truncate(0)  # given back, not left behind


def holder_of(folder: Path, name: str = "") -> dict[str, Any]:
    """Who signed a lease and did not give it back, dead or alive; empty where nobody did."""
    try:
        with _path(folder, name).open() as file:
            return _holder(file)
    except FileNotFoundError:
        return {}


def lives(holder: dict[str, Any], folder: Path, name: str = "") -> bool:
    """Whether a holder is alive, as far as can be seen at once: by its process, its SLURM job or its heartbeat."""
    if holder["host"] == socket.gethostname():
        return _lives_here(holder)
    if holder.get("slurm_job"):
        return not _job_is_over(holder)
    return time.time() - _path(folder, name).stat().st_mtime < STOPPED


def _path(folder: Path, name: str) -> Path:
    return folder / (f".{name}.lease" if name else ".lease")


def _sign(file: TextIO) -> None:
    file.seek(0)
    file.truncate()
    signature = {"pid": os.getpid(), "parent": os.getppid(), "host": socket.gethostname(), "since": round(time.time())}
    json.dump({**signature, "slurm_job": os.environ.get("SLURM_JOB_ID")}, file)
    file.flush()


def _beat(file: TextIO, over: threading.Event, beat: float) -> None:
    while not over.wait(beat):
        os.utime(file.fileno())


def _wait_for_turn(file: TextIO, folder: Path, poll_seconds: float, outlives_parent: bool) -> None:
    """Until the lock is ours: its holder is on this machine, or on one whose locks this one sees."""
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(file)
        dying = not holder or _job_is_over(holder) or (is_orphan(holder) and not outlives_parent)
        if not dying:
            raise Fault(
                f"{folder}: {name_of(holder)} is writing here, and what started it (process {holder['parent']}) is alive; "
                "wait for it, or stop it first"
            )
        if not told:
            log.info("waiting for process %s, left over from a killed run, to end", holder.get("pid", "?"))
            told = True
        time.sleep(poll_seconds)


def _wait_for_elsewhere(file: TextIO, folder: Path, poll_seconds: float, beat: float) -> None:
    """Until no other machine writes here: the lock is ours, but some file systems keep locks to each machine.

    A beat that comes while we watch is a live holder's; clocks of two machines are never compared.
    """
    holder = _holder(file)
    if not holder or holder["host"] == socket.gethostname() or _job_is_over(holder):
        return
    log.info("%s wrote here and did not say that it ended: listening for its heartbeat", name_of(holder))
    seen, since = os.fstat(file.fileno()).st_mtime_ns, time.monotonic()
    while time.monotonic() - since < STOPPED / BEAT * beat:
        time.sleep(min(poll_seconds, beat))
        if os.fstat(file.fileno()).st_mtime_ns != seen:
            raise Fault(f"{folder}: {name_of(holder)} is alive and writes here; wait for it, or stop it first")


def name_of(holder: dict[str, Any]) -> str:
    job = holder.get("slurm_job")
    return f"process {holder['pid']} on {holder['host']}" + (f" (SLURM job {job})" if job else "")


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # it has the lock and is about to write its name, or gave it back
        return {}


def is_orphan(holder: dict[str, Any]) -> bool:
    """True when the holder's parent has died (it was handed to another process), or itself: its ranks may live on."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(holder["pid"])
        return process.status() == psutil.STATUS_ZOMBIE or process.ppid() != holder["parent"]
    except psutil.NoSuchProcess:
        return True


def _lives_here(holder: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(holder["pid"])
        # A process that began after the signature was given the number of a dead one.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= holder["since"] + 1
    except psutil.NoSuchProcess:
        return False


def _job_is_over(holder: dict[str, Any]) -> bool:
    """True when SLURM says that the holder's job has ended; its own job, requeued, is not over but holds nothing."""
    job = holder.get("slurm_job")
    if not job or holder["host"] == socket.gethostname():
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        return True
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=20
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    # An unknown job is one that SLURM has forgotten: it ended long ago.
    unknown = "Invalid job id" in asked.stderr
    return unknown or (asked.returncode == 0 and asked.stdout.strip() not in ("RUNNING", "COMPLETING", "SUSPENDED"))
