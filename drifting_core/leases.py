"""Who may write: one writer per folder, held by the kernel.

A lease is an flock on `<folder>/.lease` (`.<name>.lease` for one file of a shared folder), so any death of its holder
frees it. A job that finds it taken waits when the holder is an orphan (its Snakemake was killed; it will end by itself)
and refuses, naming the pid, when the holder's Snakemake is alive: then two workflows were started on one folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import psutil

from drifting_core.faults import Fault

log = logging.getLogger(__name__)


@contextmanager
def writer_lease(folder: Path, name: str = "", *, poll_seconds: float = 0.5) -> Iterator[None]:
    """Hold the right to write below `folder`, or of its file `name` alone. Raises Fault when a live job holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / (f".{name}.lease" if name else ".lease")).open("a+") as file:
        _wait_for_turn(file, folder, poll_seconds)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "parent": os.getppid(), "host": socket.gethostname()}, file)
        file.flush()
        yield


def _wait_for_turn(file: TextIO, folder: Path, poll_seconds: float) -> None:
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(file)
        if holder and not is_orphan(holder):
            raise Fault(
                f"{folder}: process {holder['pid']} on {holder['host']} is writing here, and what started it "
                f"(process {holder['parent']}) is alive; wait for it, or stop it first"
            )
        if not told:
            log.info("waiting for process %s, left over from a killed run, to end", holder.get("pid", "?"))
            told = True
        time.sleep(poll_seconds)


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # it has the lock and is about to write its name
        return {}


def is_orphan(holder: dict[str, Any]) -> bool:
    """True when the holder's parent has died: it was handed to another process, or has just ended itself."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(holder["pid"]).ppid() != holder["parent"]
    except psutil.NoSuchProcess:
        return True
