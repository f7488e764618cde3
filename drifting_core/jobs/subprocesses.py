"""What other programs say, within a time limit: clients of SLURM hang for 9 s where no controller answers. Light."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Answer(NamedTuple):
    """What a program printed, and its exit code; None where it is not there or gave no answer in time."""

    code: int | None
    text: str = ""
    error: str = ""

    @property
    def failure(self) -> str:
        """Why there is no good answer; empty where there is one."""
        if self.code == 0:
            return ""
        said = " ".join((self.error or self.text).split())[:200]
        return said if said else f"ended with code {self.code}"


def ask(command: Sequence[str], seconds: float) -> Answer:
    """Run a program. Its children are ended with it: they would keep its output open."""
    if shutil.which(command[0]) is None:
        return Answer(None, error=f"{command[0]} is not on PATH")
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        text, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Answer(None, error=f"{command[0]} gave no answer within {seconds:g} s")
    return Answer(process.returncode, text, error)


def ask_all(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, Answer]:
    """The same of several programs at once."""
    with ThreadPoolExecutor(max(len(commands), 1)) as pool:
        return dict(zip(commands, pool.map(lambda command: ask(command, seconds), commands.values()), strict=True))
