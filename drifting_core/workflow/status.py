"""One screen on a working folder: its head, what runs and waits, what failed lately, how far trainings and claims are.

Read from SLURM's queue, processes, Snakemake's logs and what lies below results/; nothing is changed. Light.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from drifting_core.config import Configuration, load_file
from drifting_core.faults import Fault
from drifting_core.jobs.job import duration
from drifting_core.jobs.leases import holder_of, name_of
from drifting_core.workflow import slurm
from drifting_core.workflow.heads import LEASE, is_locked, live_heads, live_holder
from drifting_core.workflow.layout import mark_of_stubs

log = logging.getLogger(__name__)

_LOGS = 20  # of Snakemake that are looked into for failures, newest first
_FAILURES, _LINES, _WIDTH = 5, 5, 120  # that are shown, and of each log
_TAIL = 200_000  # bytes in which the last two lines of metrics are


def page(folder: Path, results: Path) -> str:
    """The whole screen."""
    heads, queued, silence = live_heads(folder), list[slurm.QueuedJob](), list[str]()
    try:
        queued = _queued(folder)
    except Fault as fault:
        silence = [f"SLURM does not say what runs: {fault}"]
    runs = dict(_runs(results))
    waiting = [job for job in queued if job.state == "PENDING"]
    running = [job for job in queued if job.state != "PENDING"]
    mark = mark_of_stubs(results)
    parts = [
        *([("stubs", [f"{mark} says so: nothing below {results} was computed"])] if mark else []),
        ("head", [*_head(folder, heads), *silence]),
        ("running", in_columns([*map(_running, running), *_local_jobs(heads)])),
        ("waiting", in_columns((f"job {job.id}", job.rule, job.reason) for job in waiting)),
        ("failed lately", _failed(folder)),
        ("trainings", in_columns(_trainings(results, runs))),
        ("claims", in_columns(_claims(results, runs))),
    ]
    return "\n\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines or ["-"]) for title, lines in parts)


def in_columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with their columns below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


# --- the head and its jobs -------------------------------------------------------------------------------------------


def _head(folder: Path, heads: Sequence[psutil.Process]) -> Iterator[str]:
    if holder := live_holder(folder):
        yield f"{name_of(holder)}, {_since(holder['since'])}"
    elif heads:
        yield f"process {heads[0].pid} on this machine, {_since(heads[0].create_time())}"
    else:
        killed = is_locked(folder) or holder_of(folder / ".snakemake", LEASE)
        yield "none" + ("; the last one was killed, and the next start sees to what it left" if killed else "")
    for path in _snakemake_logs(folder)[:1]:
        steps = re.findall(r"^\d+ of \d+ steps \(\S+\) done$", path.read_text(errors="replace"), re.MULTILINE)
        yield f"{steps[-1] if steps else 'no step done yet'}; last said something {_ago(path.stat().st_mtime)}"


def _queued(folder: Path) -> list[slurm.QueuedJob]:
    """Jobs of the folder, and its controller."""
    if shutil.which("squeue") is None:
        return []
    return [job for job in slurm.queue() if Path(job.folder) == folder.resolve()]


def _running(job: slurm.QueuedJob) -> tuple[str, ...]:
    where = f"{job.node} {job.state.lower()}"
    return f"job {job.id}", job.rule, where, f"{job.used} used, {job.left} left"


def _local_jobs(heads: Sequence[psutil.Process]) -> Iterator[tuple[str, ...]]:
    """What the heads of this machine run themselves."""
    for head in heads:
        for process in head.children(recursive=True):
            try:
                command, began = process.cmdline(), process.create_time()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has just ended
            if len(command) > 1 and Path(command[1]).parent.name == "workflow_scripts":
                output = command[command.index("--output") + 1] if "--output" in command else ""
                what = f"{Path(command[1]).stem} {output}"
                yield f"process {process.pid}", what, "this machine", f"{duration(time.time() - began)} used"


# --- what failed -----------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """What Snakemake said of a job that failed."""

    rule: str
    when: float
    outputs: tuple[str, ...]
    logs: tuple[str, ...]
    job: str  # its number in SLURM, or empty


def failures(log: Path) -> Iterator[Failure]:
    """Those in a log of Snakemake, oldest first."""
    when, lines = 0.0, list(_own_lines(log))
    for number, line in enumerate(lines):
        if stamp := re.fullmatch(r"\[(\w{3} \w{3} [ \d]\d [\d:]{8} \d{4})\]", line):
            when = datetime.strptime(stamp[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif error := re.fullmatch(r"Error in rule (\w+):", line):
            block = takewhile(lambda field: field.startswith("    "), lines[number + 1 :])
            fields = {name: value for name, _, value in (field.strip().partition(": ") for field in block)}
            logs = fields.get("log", "").removesuffix(" (check log file(s) for error details)")
            yield Failure(error[1], when, _paths(fields.get("output", "")), _paths(logs), fields.get("external_jobid", ""))


def _own_lines(log: Path) -> Iterator[str]:
    """Without the logs of jobs that Snakemake quotes, each between two bars."""
    lines = iter(log.read_text(errors="replace").splitlines())
    for line in lines:
        if line.startswith("Logfile "):
            bar = next(lines, "")
            while next(lines, bar) != bar:
                pass
        else:
            yield line


def _paths(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(", ") if part)


def _failed(folder: Path) -> list[str]:
    """The last failures whose outputs are still not there, newest first, with the end of their logs."""
    last: dict[tuple[str, ...], Failure] = {}
    for log in reversed(_snakemake_logs(folder)[:_LOGS]):
        last |= {failure.outputs: failure for failure in failures(log)}
    still = [each for each in last.values() if not all((folder / path).exists() for path in each.outputs)]
    shown = []
    for failure in sorted(still, key=lambda each: -each.when)[:_FAILURES]:
        job = f" (job {failure.job})" if failure.job else ""
        shown.append(f"{failure.rule}{job}, {_ago(failure.when)}: {', '.join(failure.outputs)}")
        for log in [folder / path for path in failure.logs if (folder / path).is_file()][:1]:
            lines = log.read_text(errors="replace").splitlines()[-_LINES:]
            shown += [f"  {log.relative_to(folder)}", *(f"    {line[:_WIDTH]}" for line in lines)]
    return shown


def _snakemake_logs(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((folder / ".snakemake/log").glob("*.log"), key=lambda path: -path.stat().st_mtime)


# --- how far it is ---------------------------------------------------------------------------------------------------


def _trainings(results: Path, runs: Mapping[str, Configuration]) -> Iterator[tuple[str, ...]]:
    horizons = {run: config.training.steps for run, config in runs.items()}
    for config in runs.values():
        horizons |= {each.key("encoder"): each.encoder.recipe.steps for each in config.relatives()}
    for path in sorted([*results.glob("encoders/*/metrics.jsonl"), *results.glob("runs/*/metrics.jsonl")]):
        name, lines = path.parent.name, _last_metrics(path)
        if lines:
            # Between the last line and the end there may be steps that are not logged.
            over = (path.parent / "trained.json").is_file() or f"step_{horizons.get(name)}" in _names(
                path.parent / "exports"
            )
            yield name, *_progress(lines, horizons.get(name), over), _ago(path.stat().st_mtime)


def _names(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/metadata.json")}


def _progress(lines: Sequence[dict[str, Any]], horizon: int | None, over: bool) -> tuple[str, str, str]:
    """Step, rate and time left, from the last lines of metrics.jsonl."""
    step, spent = lines[-1]["step"], lines[-1].get("time", {})
    rate = f"{spent['images_per_second']:.4g} images/s" if "images_per_second" in spent else ""
    if over:
        return f"{max(step, horizon or 0):,} steps, done", rate, ""
    if horizon is None or step > horizon:
        return f"step {step:,}", rate, ""
    steps = step - lines[-2]["step"] if len(lines) > 1 else step
    left = f"{duration((horizon - step) * spent['seconds'] / steps)} left" if "seconds" in spent and steps > 0 else ""
    return f"step {step:,} of {horizon:,} ({100 * step // horizon} %)", rate, left


def _last_metrics(path: Path) -> list[dict[str, Any]]:
    """The last two whole lines; a training may be writing one more."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1][-2:]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        return []


def _claims(results: Path, runs: Mapping[str, Configuration]) -> Iterator[tuple[str, ...]]:
    """Of each run, what of its way to the bundle is there."""
    for name, config in runs.items():
        run = results / "runs" / name
        exports = len(list(run.glob("exports/step_*/metadata.json")))
        yield (
            name,
            f"{exports} of {len(config.milestones)} exports" if exports else f"canary {_is(run / 'canary/passed.json')}",
            f"{len(list(run.glob('eval/**/metrics.json')))} evaluations",
            f"recommendation {_is(run / 'recommendation.json')}",
            f"claim {_is(run / 'tables/claim.json')}",
            f"bundle {_is(results / 'bundles' / name / 'claim_bundle.done')}",
        )


def _is(path: Path) -> str:
    return "done" if path.is_file() else "missing"


def _runs(results: Path) -> Iterator[tuple[str, Configuration]]:
    """Name and configuration of each run that this version can read."""
    for path in sorted(results.glob("runs/*/config.json")):
        try:
            yield path.parent.name, load_file(path)
        except Fault as fault:
            log.warning("%s", fault)


def _since(moment: float) -> str:
    return f"since {datetime.fromtimestamp(moment):%Y-%m-%d %H:%M} ({duration(time.time() - moment)})"


def _ago(moment: float) -> str:
    return f"{duration(max(0.0, time.time() - moment))} ago"
