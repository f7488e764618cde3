"""Runs Snakemake to its end. On SLURM it is watched: it can lose its jobs, and then waits for them for ever.

Its SLURM plugin forgets jobs whose states it could not learn a number of times; they are then neither finished nor
failed. Light.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from drifting_core.artifacts import publish
from drifting_core.faults import Fault
from drifting_core.workflow import slurm
from drifting_core.workflow.heads import cancel_left, clear_stale_lock, is_locked, only_head, read_start, settle_jobs

log = logging.getLogger(__name__)

_LOOKS = 5.0  # seconds between looks at a Snakemake that runs
_IDLE = "No active jobs; skipping status query."  # all that a Snakemake which lost its jobs says, under --verbose
_OF_A_JOB = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")  # variables of the job that a head runs in
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

# Where SLURM keeps no accounts, sacct fails at once. The plugin asks it all the same whenever SLURM's controller is away,
# and after slurm-status-attempts failures, within seconds, the jobs are lost. squeue answers when the controller is back.
_SACCT = """#!/bin/sh
for name; do :; done # the last argument is the name of the jobs
exec squeue --noheader --states=all --format='%i|%T' --name="$name"
"""


def run_snakemake(arguments: Sequence[str], *, cancel_jobs: bool, silent_minutes: float) -> int:
    """Run Snakemake here and return its exit code; away from SLURM it takes this process's place.

    Raises Fault when another head works here, or SLURM does not answer.
    """
    start = read_start(arguments)
    if start.looks_only or not start.on_slurm:
        if cancel_jobs:
            raise Fault(
                "--cancel-jobs: found a dry run or another executor than SLURM; give it with --profile slurm, or "
                "leave it out"
            )
        if not start.looks_only:
            clear_stale_lock(start.folder, arguments)
        # Signals and the exit code are its own.
        os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments])
    if not start.named:
        arguments = ["--slurm-jobname-prefix", start.name, *arguments]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM sends them to every process of a job; they are for others
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while jobs are waited for, Ctrl-C is the end
    with only_head(start.folder):
        while True:
            settle_jobs(start.folder, cancel_jobs)
            clear_stale_lock(start.folder, arguments)
            code = _supervise(arguments, start.folder, silent_minutes)
            if code is None:
                log.warning("starting again")
                continue
            if is_locked(start.folder):  # it was killed
                clear_stale_lock(start.folder, arguments)
            return code if code >= 0 else 128 - code


def _supervise(arguments: Sequence[str], folder: Path, silent_minutes: float) -> int | None:
    """Exit code of a Snakemake; None when it waited for nothing and was killed, which cancels no job.

    One that is interrupted leaves no job. One that was told to end is not started again.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *arguments], env=environment(folder), process_group=0, preexec_fn=_as_head
    )
    watch = Watch(folder, child.pid, silent_minutes * 60)
    with _signals_for(child) as received:
        while child.returncode is None:
            try:
                child.wait(_LOOKS)
            except subprocess.TimeoutExpired:
                if watch.waits_for_nothing():
                    log.warning("killing Snakemake: silent for %g minutes, and none of its jobs is left", silent_minutes)
                    child.kill()
                    child.wait()
                    if not received:
                        return None
    if signal.SIGINT in received:
        cancel_left(folder)
    return child.returncode


_libc = ctypes.CDLL(None)


def _as_head() -> None:
    """In the child: a Snakemake whose supervisor was killed would be a head that nobody knows of."""
    _libc.prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` has switched off


@contextmanager
def _signals_for(child: subprocess.Popen[bytes]) -> Iterator[set[int]]:
    """Hand on what is sent to this process; Ctrl-C also reaches the jobs that Snakemake runs here, as on a terminal.

    Yields the signals that came.
    """
    received = set[int]()

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.add(number)
        if child.returncode is None:
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Whether a Snakemake waits for nothing: it says nothing, runs nothing here, and SLURM has none of its jobs."""

    def __init__(self, folder: Path, pid: int, seconds: float) -> None:
        self.folder, self.pid, self.seconds = folder, pid, seconds
        self._began = time.time()
        self._heard, self._since = self._said(), time.monotonic()

    def waits_for_nothing(self) -> bool:
        said = self._said()
        if said != self._heard or psutil.Process(self.pid).children():
            self._heard, self._since = said, time.monotonic()
        if time.monotonic() - self._since < self.seconds:
            return False
        try:
            jobs = slurm.submitted_from(self.folder)
        except Fault as fault:
            log.warning("%s", fault)
            return False
        if jobs:  # when the last one ends, Snakemake has the same time to notice
            self._since = time.monotonic()
        return not jobs

    def _said(self) -> Mapping[str, int]:
        """Sizes of the logs that Snakemake writes."""
        logs = [path for path in (self.folder / ".snakemake/log").glob("*.log") if path.stat().st_mtime >= self._began]
        return {path.name: path.stat().st_size for path in logs if _last_line(path) != _IDLE}


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return (file.read().decode(errors="replace").splitlines() or [""])[-1]


def environment(folder: Path) -> dict[str, str]:
    """Of a Snakemake that submits jobs: nothing of the job that it runs in itself, and a sacct that can answer."""
    ours = dict(os.environ)
    if "SLURM_JOB_ID" in ours:
        ours = {name: value for name, value in ours.items() if name == "SLURM_CONF" or not name.startswith(_OF_A_JOB)}
    if shutil.which("sacct") and not slurm.keeps_accounts():
        place = folder / ".snakemake/programs"
        with publish(place / "sacct") as scratch:
            scratch.write_text(_SACCT)
        (place / "sacct").chmod(0o755)
        ours["PATH"] = f"{place}{os.pathsep}{ours['PATH']}"
    return ours
