"""Progress: a bar for a job alone on a terminal, lines everywhere else, and no line torn by the bar."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from drifting_core.faults import CALL_AGAIN

STEPS = 5

# A job as a script of workflow_scripts is one; lines are due at once.
JOB = f"""
import logging
import sys
import time
from drifting_core.jobs import job
from drifting_core.faults import Stopped

def main(argv):
    made = job.parser("a job")
    made.add_argument("--stop-at", type=int)
    arguments = job.start(made, argv)
    progress = job.Progress("generator", {STEPS}, done=1)
    for step in range(1, {STEPS}):
        time.sleep(0.05)
        if step == arguments.stop_at:
            raise Stopped("a test asked")
        if step == 3:
            logging.getLogger("drifting_core.training").warning("something was odd")
        progress.advance(note=f"loss {{step}}")

job._LINE_SECONDS = 0.0
raise SystemExit(job.run(main, sys.argv[1:]))
"""
LAST = rf"generator: {STEPS} of {STEPS} steps, [0-9.]+ a second, in 0:00, loss {STEPS - 1}"


def on_terminal(*arguments: str, ends: int = 0) -> str:
    """What the job writes to a terminal of 100 columns."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    with subprocess.Popen([sys.executable, "-c", JOB, *arguments], stderr=its, stdout=its) as process:
        os.close(its)
        written = b""
        try:
            while block := os.read(ours, 4096):
                written += block
        except OSError:  # Linux says EIO when the other end is closed
            pass
        os.close(ours)
    assert process.returncode == ends, written
    return written.decode()


def shown(written: str) -> list[str]:
    """The lines that stand on the terminal in the end: a carriage return goes over what the line had."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return [line for line in lines if line]


def test_alone_on_a_terminal_a_bar_with_the_time_left_stands_below_whole_lines() -> None:
    written = on_terminal()
    assert re.search(rf"generator: +\d+%\|.*\| \d/{STEPS} \[\d\d:\d\d<[^\]]*steps/s, loss \d\]", written)
    assert " of 5 steps" not in written.split("something")[0], "no progress lines beside the bar"
    lines = shown(written)
    assert lines[0] == "something was odd"
    assert re.fullmatch(LAST, lines[1])
    assert len(lines) == 2, "the bar is gone when the job is done"


def test_a_job_that_stops_leaves_its_message_and_no_bar() -> None:
    lines = shown(on_terminal("--stop-at", "2", ends=CALL_AGAIN))
    assert lines == ["stopped: a test asked; the same command continues"]


def test_a_job_with_a_log_file_writes_lines_on_a_shared_terminal(tmp_path: Path) -> None:
    written = on_terminal("--log", str(tmp_path / "job.log"))
    assert "\r" not in written.replace("\r\n", "\n")
    assert "%|" not in written
    assert re.search(LAST, written)
    assert re.search(LAST, (tmp_path / "job.log").read_text())


def test_in_a_batch_log_there_are_lines() -> None:
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == STEPS
    assert re.fullmatch(r"generator: 2 of 5 steps, [0-9.]+ a second, 0:00 left, loss 1", lines[0])
    assert lines[2] == "something was odd"
    assert re.fullmatch(LAST, lines[-1])


def test_lines_are_half_a_minute_apart(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from drifting_core.jobs import job

    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="drifting"):
        progress = job.Progress("generator", 100)
        for _ in range(100):
            progress.advance()
    said = [int(line.split()[1]) for line in caplog.messages]
    assert said == [30, 60, 90, 100]
    assert caplog.messages[0] == "generator: 30 of 100 steps, 1 a second, 1:10 left"
    assert caplog.messages[-1] == "generator: 100 of 100 steps, 1 a second, in 1:40"


def test_the_last_line_comes_once(caplog: pytest.LogCaptureFixture) -> None:
    from drifting_core.jobs.job import Progress

    with caplog.at_level("INFO", logger="drifting"):
        progress = Progress("MD5", 2)
        progress.advance(3)
        progress.advance(1)
        Progress("all done before", 5, done=5)
    assert len(caplog.messages) == 1


def test_a_short_part_says_nothing_at_its_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from drifting_core.jobs import job

    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", logger="drifting"):
        for steps in (20, 40):
            progress = job.Progress("bootstrap", steps, part=True)
            for _ in range(steps):
                progress.advance()
    assert [line.split()[1] for line in caplog.messages] == ["30", "40"]


def test_a_reader_that_wants_no_more_is_no_error_but_another_broken_pipe_is() -> None:
    """`plan.py | head`; and a pipe between processes of a job."""
    for work, said in (
        ("print('x' * 10**6, flush=True)", ""),
        ("raise BrokenPipeError('of a worker')", "BrokenPipeError: of a worker"),
    ):
        script = f"from drifting_core.jobs import job\ndef main(argv):\n    {work}\nraise SystemExit(job.run(main, []))"
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stderr
            if not said:
                process.stdout.close()  # nobody is left who reads
            written = process.stderr.read()
        assert process.returncode == 1
        assert written.splitlines()[-1:] == ([said] if said else [])
