"""What Snakemake would run for a claim bundle, why, and what is there already: from `snakemake -n` and its graph. Light."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from drifting_core.artifacts.provenance import ROOT
from drifting_core.config import Configuration
from drifting_core.faults import Fault

# How a dry run begins each of a job's reasons, and what the plan calls it; a job is counted under its first one here.
_REASONS = {
    "Forced execution": "forced",
    "Missing output files": "missing output",
    "Incomplete output files": "incomplete output",
    "Params have changed": "params changed",
    "Set of input files has changed": "other set of inputs",
    "Code has changed": "code changed",
    "Software environment definition has changed": "software environment changed",
    "Updated input files": "updated input",
    "Input files updated by another job": "after a job that runs",
}
_OTHER = "another reason"


class Job(NamedTuple):
    """A job that would run; files in Snakemake's order."""

    rule: str
    stage: str  # the file of rules/ that its rule stands in
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reasons: tuple[str, ...]  # why it would, in the plan's words


class Planned(NamedTuple):
    """Jobs that would run, and how many of each rule need not."""

    jobs: tuple[Job, ...]
    there: Mapping[str, int]
    command: str  # the dry run that says so


def ask_snakemake(config: Configuration, preset: Path, overrides: Sequence[str], profile: Path, folder: Path) -> Planned:
    """What `snakemake -n` says of the claim bundle of `preset` in `folder`. Raises Fault with its message.

    The dry run names the jobs that would run, the graph (asked for where there is something) all jobs, side by side.
    """
    arguments = [f"{config.root}/claim_bundle.done", "--profile", str(profile), "--configfile", str(preset)]
    arguments += ["--config", *overrides] if overrides else []
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    ways = [["-n"], ["--dag", "dot"]] if any((folder / config.root).glob("*/*")) else [["-n"]]
    commands = [[*snakemake, *how, *arguments] for how in ways]
    running = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    answers = [process.communicate() for process in running]
    for command, process, (text, error) in zip(commands, running, answers, strict=True):
        if process.returncode:
            said = f"{text}{error}".strip()
            raise Fault(f"`{' '.join(command)}` failed:\n{said}\nrun it by hand to see more")
    jobs = dry_run_jobs("".join(answers[0]))
    of_all = Counter(re.findall(r'^\s*\d+\[label = "(\w+)', answers[1][0], re.MULTILINE)) if answers[1:] else Counter()
    there = of_all - Counter(job.rule for job in jobs)
    shown = shlex.join(arguments).replace(f"{ROOT}/", "")
    return Planned(tuple(jobs), there, f"snakemake -n {shown}")


def dry_run_jobs(text: str) -> list[Job]:
    """The jobs in what a dry run printed."""
    stages, jobs = stages_of_rules(), []
    for rule, lines in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", text, re.MULTILINE):
        of = dict(re.findall(r"^    (\w+): (.*)$", lines, re.MULTILINE))
        files = [tuple(of[name].split(", ")) if name in of else () for name in ("input", "output")]
        jobs.append(Job(rule, stages[rule], files[0], files[1], _reasons(of.get("reason", ""))))
    return jobs


def _reasons(said: str) -> tuple[str, ...]:
    # Snakemake also says "Updated input files" of files that other jobs update, with nothing behind it.
    begun = re.findall(rf"(?:^|; )({'|'.join(_REASONS)})(?!: *(?:;|$))", said)
    return tuple(name for start, name in _REASONS.items() if start in begun) or (_OTHER,)


def stages_of_rules() -> dict[str, str]:
    """The stage of every rule: the name of the file of rules/ that it stands in; the canary's is the generator."""
    stages: dict[str, str] = {}
    for path in sorted((ROOT / "rules").glob("*.smk")):
        stage = "generator" if path.stem == "canary" else path.stem
        stages |= dict.fromkeys(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", path.read_text(), re.MULTILINE), stage)
    return stages
