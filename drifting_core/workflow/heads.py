"""The head of a folder, the one Snakemake process that decides there, and what dead ones left: locks and SLURM jobs.

Snakemake's lock survives a kill -9 and does not say who holds it, and Snakemake never looks for jobs that another head
submitted: it would run them twice. Light.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from drifting_core.faults import Fault
from drifting_core.jobs.leases import holder_of, lives, name_of, writer_lease
from drifting_core.workflow import slurm

log = logging.getLogger(__name__)

LEASE = "head"  # its name in .snakemake
_SECONDS = 5.0  # between looks at jobs that are waited for
_LINE_SECONDS = 600.0  # between lines that say so while nothing changes


# --- how Snakemake is to be started ----------------------------------------------------------------------------------


class Start(NamedTuple):
    """What Snakemake's arguments and profiles say about a start."""

    folder: Path
    on_slurm: bool
    name: str  # of its SLURM jobs
    named: bool  # whether the user chose that
    looks_only: bool  # a dry run
    site: dict[str, Any]  # default-resources of the profile


def read_start(arguments: Sequence[str]) -> Start:
    """Raises Fault when a profile is no YAML."""
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    made.add_argument("--profile", default=os.environ.get("SNAKEMAKE_PROFILE"))
    made.add_argument("--workflow-profile")
    made.add_argument("--executor", "-e")
    made.add_argument("--directory", "-d", type=Path, default=Path())
    made.add_argument("--slurm-jobname-prefix")
    given, rest = made.parse_known_args(arguments)
    values = _profile(given.profile) | _profile(given.workflow_profile)
    folder = given.directory.resolve()
    return Start(
        folder,
        (given.executor or values.get("executor")) == "slurm",
        given.slurm_jobname_prefix or slurm.job_name(folder, values.get("slurm-jobname-prefix", "drifting")),
        given.slurm_jobname_prefix is not None,
        any(word.startswith("--dry") or re.fullmatch("-[A-Za-z]*n[A-Za-z]*", word) for word in rest),
        values.get("default-resources", {}),
    )


def _profile(name: str | None) -> dict[str, Any]:
    """Values of a profile, a file or folder, here or where Snakemake keeps those of the user and of the site."""
    for parent in ("", Path.home() / ".config/snakemake", "/etc/xdg/snakemake") if name else ():
        place = Path(parent, str(name))
        files = [place] if place.is_file() else sorted(place.glob("config*.yaml"), key=lambda file: len(file.name))
        if files:  # the last is config.v8+.yaml, where there is one
            try:
                return yaml.safe_load(files[-1].read_text()) or {}
            except yaml.YAMLError as error:
                raise Fault(f"{files[-1]}: cannot be read as YAML: {error}; correct it, or give another file") from error
    return {}  # Snakemake says that there is none


# --- one head per folder ---------------------------------------------------------------------------------------------


@contextmanager
def only_head(folder: Path) -> Iterator[None]:
    """Be the head of `folder`. Raises Fault naming the one that lives, on this machine or another."""
    place = folder / ".snakemake"
    before = holder_of(place, LEASE)
    with ExitStack() as stack:
        try:
            stack.enter_context(writer_lease(place, LEASE, outlives_parent=True))
        except Fault:
            raise _taken(holder_of(place, LEASE)) from None
        _refuse_others(folder)
        if is_locked(folder) and not before:
            raise Fault(
                f"{folder} is locked by a Snakemake that run_workflow.py did not start. None runs on this machine; if none "
                "runs on another one either, remove the lock with `snakemake --unlock`, and start again"
            )
        yield


def live_holder(folder: Path) -> dict[str, Any]:
    """Signature of the head of `folder`, on whatever machine; empty where none is alive."""
    place = folder / ".snakemake"
    holder = holder_of(place, LEASE)
    return holder if holder and lives(holder, place, LEASE) else {}


def refuse_live_holder(folder: Path) -> None:
    """Raises Fault naming the head of `folder`, if one is alive."""
    if head := live_holder(folder):
        raise _taken(head)


def _taken(head: dict[str, Any]) -> Fault:
    end = f"`scancel {head['slurm_job']}`" if head.get("slurm_job") else f"`kill -9 {head['pid']}` on {head['host']}"
    return Fault(
        f"Snakemake already runs in this folder: {name_of(head)}. Wait for it, or end it with {end}; its running jobs go "
        "on, and the next start takes them over"
    )


def live_heads(folder: Path) -> list[psutil.Process]:
    """Snakemake processes of this machine that work in `folder`, oldest first; not this one and those that started it."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    heads = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and _is_head(process.cmdline()) and Path(process.cwd()) == folder.resolve():
                heads.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # gone, or another user's
    return sorted(heads, key=lambda process: process.create_time())


def _is_head(command: Sequence[str]) -> bool:
    """A job runs Snakemake, too, with a `--mode` of its own."""
    return any(Path(word).name == "snakemake" for word in command[:3]) and "--mode" not in command


def _refuse_others(folder: Path) -> None:
    heads = live_heads(folder)
    if heads:
        raise Fault(
            f"Snakemake already runs in this folder as process {heads[0].pid} ({' '.join(heads[0].cmdline()[:6])} …); "
            f"wait for it, or stop it with `kill {heads[0].pid}` (it then waits for its running jobs)"
        )


# --- what a dead one left --------------------------------------------------------------------------------------------


def settle_jobs(folder: Path, cancel: bool) -> None:
    """Wait until no SLURM job of an earlier head is left, or cancel them. Raises Fault when SLURM does not answer.

    What they finish counts: a job takes Snakemake's mark of incomplete files away itself.
    """
    jobs = slurm.submitted_from(folder)
    if cancel and jobs:
        log.info("cancelling %s of an earlier head: %s", *_shown(jobs))
        slurm.cancel(jobs)
    told, when = set[tuple[str, str]](), 0.0
    while jobs:
        now = {(job.id, job.state) for job in jobs}
        if now != told or time.monotonic() - when > _LINE_SECONDS:
            hint = "" if cancel else " (--cancel-jobs would end them)"
            log.info("waiting for %s of an earlier head: %s%s", *_shown(jobs), hint)
            told, when = now, time.monotonic()
        time.sleep(_SECONDS)
        try:
            jobs = slurm.submitted_from(folder)
        except Fault as fault:
            log.warning("%s; asking again", fault)


def cancel_left(folder: Path) -> None:
    """Cancel the SLURM jobs that an interrupted Snakemake left.

    It cancels its own, but not those whose states it asks for at that moment, nor one that it is just submitting.
    """
    try:
        if jobs := [job for job in slurm.submitted_from(folder) if job.state != "COMPLETING"]:
            log.info("cancelling %s that Snakemake left: %s", *_shown(jobs))
            slurm.cancel(jobs)
    except Fault as fault:
        log.warning("%s; jobs may be left, which the next start waits for, or ends with --cancel-jobs", fault)


def _shown(jobs: Sequence[slurm.QueuedJob]) -> tuple[str, str]:
    """How many, and the first of them."""
    some = (
        f"{job.rule} (job {job.id}, {job.state}, {job.reason if job.node == '' else job.left + ' left'})" for job in jobs[:5]
    )
    return f"{len(jobs)} job(s)", f"{', '.join(some)}{', …' if len(jobs) > 5 else ''}"


def is_locked(folder: Path) -> bool:
    return any((folder / ".snakemake" / "locks").glob("*"))


def clear_stale_lock(folder: Path, arguments: Sequence[str]) -> None:
    """Remove the lock of a dead Snakemake; `arguments` are those of the coming start.

    Raises Fault naming the process when one is alive: two heads would run the same jobs twice.
    """
    _refuse_others(folder)
    if is_locked(folder):
        log.info("the Snakemake that locked this folder is dead: unlocking")
        unlock = [sys.executable, "-m", "snakemake", "--unlock", *arguments]
        done = subprocess.run(unlock, capture_output=True, text=True)
        if done.returncode:
            raise Fault(f"`snakemake --unlock` failed:\n{done.stderr.strip()}\ncall it by hand where the lock was made")
