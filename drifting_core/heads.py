"""The Snakemake process of a folder: is one alive, and is its lock stale?

Snakemake's lock survives a kill -9 and does not say who holds it. Light.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from drifting_core.config import load_file
from drifting_core.faults import Fault

log = logging.getLogger(__name__)


def live_heads(folder: Path) -> list[psutil.Process]:
    """Snakemake processes that work in `folder`, oldest first; not this process and those that started it."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    heads = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and _is_snakemake(process.cmdline()) and Path(process.cwd()) == folder.resolve():
                heads.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # gone, or another user's
    return sorted(heads, key=lambda process: process.create_time())


def _is_snakemake(command: Sequence[str]) -> bool:
    return any(Path(word).name == "snakemake" for word in command[:3])


def is_locked(folder: Path) -> bool:
    return any((folder / ".snakemake" / "locks").glob("*"))


def clear_stale_lock(folder: Path, arguments: Sequence[str]) -> None:
    """Remove the lock of a dead Snakemake; `arguments` are those of the coming start.

    Raises Fault naming the process when one is alive: two heads would run the same jobs twice.
    """
    heads = live_heads(folder)
    if heads:
        raise Fault(
            f"Snakemake already runs in this folder as process {heads[0].pid} ({' '.join(heads[0].cmdline()[:6])} …); "
            f"wait for it, or stop it with `kill {heads[0].pid}` (it then waits for its running jobs)"
        )
    if is_locked(folder):
        log.info("the Snakemake that locked this folder is dead: unlocking")
        unlock = [sys.executable, "-m", "snakemake", *arguments, "--unlock"]
        done = subprocess.run(unlock, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Fault(f"`snakemake --unlock` failed:\n{done.stderr.strip()}")


def planned_jobs(folder: Path, preset: Path, overrides: Sequence[str] = ()) -> dict[str, int]:
    """Jobs by rule that `snakemake -n` would run for the claim bundle of `preset`. Raises Fault with its message."""
    target = f"{load_file(preset, overrides).results}/claim_bundle.done"
    command = [sys.executable, "-m", "snakemake", "-n", target, "--configfile", str(preset), "--quiet", "rules"]
    command += ["--config", *overrides] if overrides else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}".strip())
    jobs = {}
    for line in done.stdout.splitlines() + done.stderr.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            jobs[words[0]] = int(words[1])
    return jobs
