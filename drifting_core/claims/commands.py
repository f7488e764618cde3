"""What the jobs behind a claim were, and how they ended: RUN.md and commands.txt of a bundle, from the jobs' logs."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from drifting_core.claims.pages import Block, Code, Heading, Link, Paragraph, Table

PAGE, COMMANDS = "RUN.md", "commands.txt"
_ENDED = re.compile(r"exit code (\d+) after (.+), peak memory (\d+) MB")  # jobs.ENDED
_NOT_RECORDED = "none recorded (killed, or made by an older version)"


class Job(NamedTuple):
    """The last attempt of a job, as its log has it: exit code, duration and peak memory as words."""

    log: str
    command: str
    exit_code: str
    took: str
    memory: str

    @property
    def script(self) -> str:
        return next((Path(word).stem for word in self.command.split(" ", 3) if word.endswith(".py")), self.command[:40])

    @property
    def output(self) -> str:
        """What it was called to make, as far as the command says."""
        words = shlex.split(self.command)
        return next((after for word, after in itertools.pairwise(words) if word == "--output"), "-")


def jobs_of(results: Path, folders: Iterable[str]) -> list[Job]:
    """The jobs whose command names one of these folders below `results`, by log; but for the one that asks."""
    wanted = tuple(f"{results.as_posix()}/{folder}/" for folder in folders)
    logs = (_read(path, results) for path in sorted((results / "logs").rglob("*.log")))
    asking = shlex.join([sys.executable, *sys.argv])
    return [job for job in logs if job and job.command != asking and any(folder in job.command for folder in wanted)]


def _read(path: Path, results: Path) -> Job | None:
    lines = path.read_text(errors="replace").splitlines()
    if not lines:
        return None
    ended = _ENDED.fullmatch(lines[-1])
    words = ended.groups() if ended else (_NOT_RECORDED, "-", "-")
    return Job(path.relative_to(results).as_posix(), lines[0], *words)


def text(jobs: Sequence[Job]) -> str:
    """commands.txt: every job's command, as it was called, under what it left."""
    return "".join(f"# {job.log}: exit code {job.exit_code}\n{job.command}\n\n" for job in jobs)


def page(run: str, jobs: Sequence[Job], commands: str) -> list[Block]:
    """RUN.md: how the bundle is made again, and each job's exit code."""
    rows = [[job.script, job.output, job.exit_code, job.took, job.memory, job.log] for job in jobs]
    failed = sum(job.exit_code.isdigit() and job.exit_code != "0" for job in jobs)
    return [
        Heading(1, f"How {run} was made"),
        Code(commands),
        Heading(2, "Jobs"),
        Paragraph(
            [
                f"{len(jobs)} jobs, of each its last attempt; exit codes are those of the processes, written by them as the "
                f"last line of their logs. {failed} ended with another one than 0. Their commands in full: ",
                Link(COMMANDS, COMMANDS),
                ".",
            ]
        ),
        Table(["script", "output", "exit code", "took", "peak memory, MB", "log (below results/)"], rows),
    ]
