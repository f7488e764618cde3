"""What every job has in common: its command line, its log, its exit code, its progress.

A script of workflow_scripts is `main(argv)` plus `raise SystemExit(run(main))`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from drifting_core.artifacts import STUB
from drifting_core.faults import CALL_AGAIN, Fault, Stopped
from drifting_core.jobs.stubs import REAL, make_stub

log = logging.getLogger("drifting")

RANK = "DRIFTING_RANK"  # number of a process that devices.py started as one of several on this machine
SIZE = "DRIFTING_SIZE"  # how many they are
SRUN = "DRIFTING_SRUN"  # set for the tasks of a SLURM step that devices.py started
ENDED = "exit code %d after %s, peak memory %.0f MB"  # last line of a log
_LINE_SECONDS = 30.0  # between lines of a batch log that say how far a job is


class _StubMade(Exception):
    """In place of its work, the job has written its stub."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Argument parser with what all jobs take: `--log FILE` and `--threads N`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", type=Path, help="also write the log to this file")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    return made


def takes_configuration(made: argparse.ArgumentParser) -> None:
    """Add `--configfile` and `--config`, as Snakemake has them: what `config.load_file` reads."""
    made.add_argument("--configfile", type=Path, default=Path("config/demo.yaml"), help="preset (default: %(default)s)")
    made.add_argument("--config", nargs="+", default=[], metavar="NAME=VALUE", help="changes, as Snakemake takes them")


def start(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, open the log, and begin it with the command that repeats this job. In stub mode most jobs go no further.

    Of several ranks the first speaks; the others say what goes wrong.
    """
    arguments = made.parse_args(argv)
    rank = _rank()
    handlers: list[logging.Handler] = [_AboveTheBar(sys.stderr)]
    if arguments.log:
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        if rank is None:
            arguments.log.write_text("")
        handlers.append(logging.FileHandler(arguments.log, mode="a"))  # ranks write to the same file
    form = f"rank {rank}: %(message)s" if rank else "%(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=handlers, force=True)
    for name in ("drifting", "drifting_core"):
        logging.getLogger(name).setLevel(logging.WARNING if rank else logging.INFO)
    if arguments.log and rank is None:
        command = shlex.join([sys.executable, *sys.argv])
        handlers[-1].handle(log.makeRecord(log.name, logging.INFO, "", 0, command, (), None))
    if rank is not None:
        arguments.threads = max(1, arguments.threads // int(os.environ.get(SIZE, "1")))
    # Thread pools read these when numpy and torch are imported, which happens after this line.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    script = Path(made.prog).stem
    if STUB in os.environ and script not in REAL:
        make_stub(script, arguments)
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            log.info("stub: nothing computed, with GPU %s granted", os.environ["CUDA_VISIBLE_DEVICES"])
        raise _StubMade
    return arguments


def _rank() -> int | None:
    """Number of this process among the ranks of a job; None when it is no rank."""
    return int(os.environ[RANK]) if RANK in os.environ else int(os.environ["SLURM_PROCID"]) if SRUN in os.environ else None


class _AboveTheBar(logging.StreamHandler):
    """Lines on a terminal where a progress bar may stand: it is taken away for a line and put back below."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def _has_log_file() -> bool:
    return any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers)


def json_argument(text: str) -> Any:
    """A JSON value on the command line, as the rules pass their params."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main and give its exit code: 0, 75 (call again), 1 (a fault, said in one message).

    It is also the last line of the job's log, which `claims/commands.py` reads; a log without it is of a job that was
    killed, or that still runs.
    """
    began = time.monotonic()
    code = _exit_code(main, argv)
    if _has_log_file() and _rank() is None:
        log.info(ENDED, code, duration(time.monotonic() - began), peak_megabytes())
    return code


def _exit_code(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    try:
        main(argv)
    except _StubMade:
        return 0
    except Stopped as stopped:
        log.warning("stopped: %s; the same command continues", stopped)
        return CALL_AGAIN
    except Fault as fault:
        log.error("error: %s", fault)
        return 1
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 1
        log.exception("unexpected error")
        return 1
    return 0


def _reader_left() -> bool:
    """Whether whoever read this program's output wants no more of it (`| head`); then the rest of it goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    left = any(event & select.POLLERR for _, event in output.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def peak_megabytes() -> float:
    """The most memory that this process has had resident, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class StopRequest:
    """True once the job should commit and stop: it was signalled, its time is up, or its Snakemake has died.

    SIGTERM, SIGUSR1 and SIGUSR2 are caught (the latter two are what SLURM sends before a limit). Its time is up
    `max_seconds` after the start, or before SLURM ends the job, less what `needs` says.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.reason = ""
        self.needs = 0.0  # seconds that the job takes from being asked until it has ended
        self._parent = os.getppid()
        ends = [seconds for seconds in (max_seconds, _seconds_of_allocation()) if seconds is not None]
        self._deadline = time.monotonic() + min(ends) if ends else None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"signal {signal.Signals(number).name}"

    def __bool__(self) -> bool:
        if os.getppid() != self._parent:
            self.reason = "the process that started this job has died"
        if self._deadline is not None and time.monotonic() + self.needs > self._deadline:
            self.reason = "the time limit is near"
        return bool(self.reason)


def _seconds_of_allocation() -> float | None:
    """Seconds until SLURM ends this job; None outside SLURM and where it cannot be asked (then its signal must do)."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME")
    if end is None:  # older SLURM, or a step that Snakemake's plugin started
        try:
            asked = subprocess.run(
                ["squeue", "--noheader", "--jobs", job, "--format", "%L"], capture_output=True, text=True, timeout=20
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return slurm_seconds(asked.stdout.strip())
    return float(end) - time.time()


def slurm_seconds(text: str) -> float | None:
    """SLURM's [days-]hours:minutes:seconds (or minutes:seconds) as seconds; None for UNLIMITED, INVALID and the like."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class Progress:
    """Says how far a long job is, and in its last line how long the whole took.

    A job that has the terminal to itself shows a bar with the time left. All others write a line every 30 s: in a batch
    log, and where Snakemake started them, since such jobs share its terminal. These have a log file (--log). Of several
    ranks the first says it. A `part` of a job says nothing at its end where it took less than 30 s.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "steps", *, part: bool = False) -> None:
        self.label, self.total, self.unit, self._part = label, total, unit, part
        self._first = self._done = done
        self._began = self._said = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty() and not _has_log_file() and not _rank() and done < total:
            self._bar = tqdm(
                desc=label, total=total, initial=done, unit=f" {unit}", file=sys.stderr, leave=False, dynamic_ncols=True,
                mininterval=0.2, miniters=1,
            )  # fmt: skip

    def advance(self, count: int = 1, note: str = "") -> None:
        before, self._done = self._done, self._done + count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif self._done < self.total and now - self._said >= _LINE_SECONDS:
            self._said = now
            rate = self._rate(now)
            self._say(f"{rate:.3g} a second, {duration((self.total - self._done) / rate)} left", note)
        if before < self.total <= self._done:
            if self._bar is not None:
                self._bar.close()
            if not self._part or now - self._began >= _LINE_SECONDS:
                self._say(f"{self._rate(now):.3g} a second, in {duration(now - self._began)}", note)

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(now - self._began, 1e-9)

    def _say(self, how: str, note: str) -> None:
        log.info("%s: %d of %d %s, %s%s", self.label, self._done, self.total, self.unit, how, f", {note}" if note else "")


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
