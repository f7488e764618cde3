"""The GPUs of this machine, shared by the jobs of all Snakemake runs on it (docs/decisions/12).

A job that the plan gives N GPUs takes N leases: each is an flock on the device's file in a folder on a local disk, held
by the job's process and its ranks, so that any death frees it. All N are taken at once, or none. Jobs that wait stand in
line: a ticket is a locked file as well, and nobody takes a device that somebody before him waits for.
Where SLURM has granted the devices there is nothing to take. Light.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from drifting_core.artifacts.identity import operations
from drifting_core.config import Configuration
from drifting_core.faults import Fault, Stopped
from drifting_core.jobs.job import RANK, StopRequest
from drifting_core.jobs.subprocesses import ask

log = logging.getLogger(__name__)

POOL = "DRIFTING_POOL"  # the devices that jobs share: set by the Snakemake whose jobs run on this machine
LEASES = "DRIFTING_LEASES"  # folder of the leases, where it is not the user's own in /tmp
REHEARSAL = "DRIFTING_REHEARSAL"  # set where GPUs are asked for and the CPU computes (configuration key rehearsal)
_DRIVER_SECONDS = 60.0  # that nvidia-smi may take: the first who asks wakes the driver
_SAY = 60.0  # seconds between lines of a waiting job
_NEVER_OLD = 4102444800  # the year 2100, as a time of modification
_held: list[TextIO] = []  # this process's leases; open until it ends


def granted_by_slurm() -> bool:
    """True when SLURM gave this job its devices. A local Snakemake inside an allocation shares that out itself."""
    return "SLURM_JOB_ID" in os.environ and POOL not in os.environ


# --- which devices there are --------------------------------------------------------------------------------------------


def share(config: Configuration, asked: Mapping[str, int], allowed: int | None) -> int:
    """Tell the jobs of this Snakemake which devices they share; how many of them it may use at a time.

    `asked`: GPUs of the jobs that are to run, by rule. `allowed`: what --resources gpu says.

    Raises Fault when a job asks for more: Snakemake would start it with fewer.
    """
    if config.stub:  # whose jobs take none
        return max(asked.values(), default=0)
    names = devices(config.devices, config.rehearsal) if any(asked.values()) else []
    os.environ[POOL] = ",".join(names)
    count = len(names) if allowed is None else min(len(names), allowed)
    greedy = [rule for rule, gpus in asked.items() if gpus > count]
    if greedy:
        limit = "" if allowed is None else f", and --resources gpu={allowed} allows {count} of them"
        keys = ", ".join(_keys_above(operations(config), count))
        raise Fault(
            f"{', '.join(greedy)}: up to {max(asked.values())} GPUs are asked for, but this machine has {len(names)} to "
            f"share ({', '.join(names) or 'none'}){limit}; lower {keys} (0: the CPU computes), or run where there are more "
            "(profiles/slurm)"
        )
    return count


def _keys_above(values: Mapping[str, Any], count: int, at: str = "") -> Iterator[str]:
    """Configuration keys of stages that ask for more than `count` GPUs, with what they say."""
    for name, value in values.items():
        if name == "resources":
            if value["gpus"] > count:
                yield f"{at}resources.gpus ({value['gpus']})"
        elif isinstance(value, Mapping):
            yield from _keys_above(value, count, f"{at}{name}.")


def devices(named: Sequence[str | int] = (), rehearsal: bool = False) -> list[str]:
    """The GPUs to share: those `named` (configuration key devices), else of CUDA_VISIBLE_DEVICES, else all there are.

    By UUID, so that they mean the same to every job on the machine; in a rehearsal as they were named, and pretended.

    Raises Fault when one is not there or comes twice.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named and visible is None:
        return list(installed())
    origin = "devices" if named else "CUDA_VISIBLE_DEVICES"
    hidden = visible in ("", "-1", "NoDevFiles") and not named
    names = [] if hidden else [str(name).strip() for name in named or (visible or "").split(",")]
    found = names
    if names and not rehearsal:
        present = list(installed())
        found = [_uuid(name, present, origin) for name in names]
    if len(set(found)) < len(found):
        raise Fault(f"{origin}: found {', '.join(names)}; name each device once")
    return found


def installed() -> dict[str, str]:
    """Models of all GPUs of this machine by UUID, in the order of their indices. Raises Fault when the driver fails."""
    if shutil.which("nvidia-smi") is None:
        return {}
    answer = ask(["nvidia-smi", "-L"], _DRIVER_SECONDS)
    if answer.failure:
        raise Fault(f"`nvidia-smi -L` fails: {answer.failure}; call it by hand, and ask who keeps the machine")
    return {uuid: model for model, uuid in re.findall(r"^GPU \d+: (.*) \(UUID: (\S+)\)", answer.text, re.MULTILINE)}


def _uuid(name: str, present: Sequence[str], origin: str) -> str:
    """The UUID of a device that CUDA_VISIBLE_DEVICES would call `name`: an index, the beginning of a UUID, or a MIG's."""
    if name.startswith("MIG-"):
        return name
    found = present[int(name) :][:1] if name.isdigit() else [uuid for uuid in present if uuid.startswith(name)]
    if len(found) != 1:
        raise Fault(
            f"{origin}: found '{name}', but `nvidia-smi -L` shows {len(present)} GPU(s) here "
            f"({', '.join(present) or 'none'}); name them by index or UUID (only a rehearsal may name others)"
        )
    return found[0]


# --- taking them ----------------------------------------------------------------------------------------------------


def take(count: int, stop: StopRequest | None = None) -> list[int]:
    """Hold `count` devices of the pool until this process has ended, and show only these to CUDA. Waits for its turn.

    Gives the leases' file descriptors, for ranks to inherit: they hold the devices as well. Nothing is taken twice, by a
    rank, or where SLURM has granted the devices.

    Raises Fault when there are fewer devices, and Stopped when the job is told to stop while it waits.
    """
    if count and not _held and RANK not in os.environ and not granted_by_slurm():
        shared = os.environ.get(POOL)
        names = devices(rehearsal=REHEARSAL in os.environ) if shared is None else shared.split(",") if shared else []
        if count > len(names):
            raise Fault(
                f"the plan gives this job {count} GPU(s), but this machine has {len(names)} to share "
                f"({', '.join(names) or 'none'}); lower the stage's resources.gpus (0: the CPU computes)"
            )
        taken = leases(count, names, _folder(), stop)
        _held.extend(taken.values())
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        log.info("GPU %s taken, of %d that this machine shares", ", ".join(taken), len(names))
    return [file.fileno() for file in _held]


def leases(
    count: int, names: Sequence[str], folder: Path, stop: StopRequest | None = None, *, poll_seconds: float = 0.25
) -> dict[str, TextIO]:
    """`count` of the devices `names`, each with the file whose lock is its lease; waits until it is this job's turn.

    Raises Stopped when the job is told to stop, or what started it has died.
    """
    parent, said = os.getppid(), -_SAY
    with _ticket(folder, names) as ticket:
        while True:
            with _alone(folder):
                before = _before(folder, Path(ticket.name))
                wanted = {name for other in before for name in other["devices"]}
                taken = _free(folder, [name for name in names if name not in wanted], count)
                if taken:
                    return taken
                if time.monotonic() - said >= _SAY:
                    said = time.monotonic()
                    log.info("waiting for %d of the GPUs %s", count, ", ".join(names))
                    for line in (*_holders(folder, names), *(f"earlier in line: {_job(other)}" for other in before)):
                        log.info("  %s", line)
            if stop or os.getppid() != parent:
                reason = stop.reason if stop else "the process that started this job has died"
                raise Stopped(f"{reason}, while it waited for GPUs")
            time.sleep(poll_seconds)


def _folder() -> Path:
    """The folder of this user's leases. Not below TMPDIR: sessions of one machine may differ in it."""
    if LEASES in os.environ:
        folder = Path(os.environ[LEASES])
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(f"/tmp/drifting-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise Fault(f"{folder}: belongs to somebody else; name a folder of your own on a local disk in {LEASES}")
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """For the milliseconds in which tickets are drawn and devices are looked at."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ticket(folder: Path, names: Sequence[str]) -> TextIO:
    """The next place in line, for some of the devices `names`; kept by its lock, so that the dead hold nobody up."""
    with _alone(folder):
        last = max((int(path.name.removeprefix("ticket_")) for path in folder.glob("ticket_*")), default=0)
        ticket = _locked(folder / f"ticket_{last + 1:08}")
        assert ticket is not None
        _sign(ticket, names)
        return ticket


def _before(folder: Path, own: Path) -> list[dict[str, Any]]:
    """What the tickets before `own` say. Removes those that nobody holds any more."""
    found = []
    for path in sorted(folder.glob("ticket_*")):
        if path.name >= own.name:
            break
        nobodys = _locked(path)
        if nobodys:
            path.unlink()
            nobodys.close()
        else:
            found.append(json.loads(path.read_text()))
    return found


def _free(folder: Path, names: Sequence[str], count: int) -> dict[str, TextIO]:
    """The first `count` devices that nobody holds, locked; none when there are fewer."""
    taken: dict[str, TextIO] = {}
    for name in names:
        lease = _locked(_device(folder, name)) if len(taken) < count else None
        if lease:
            taken[name] = lease
    if len(taken) < count:
        for lease in taken.values():
            lease.close()
        return {}
    for lease in taken.values():
        _sign(lease, names)
        os.utime(lease.fileno(), (_NEVER_OLD, _NEVER_OLD))  # or what tidies temporary folders might remove it
    return taken


def _holders(folder: Path, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        free = _locked(_device(folder, name))
        if free:
            free.close()
        else:
            found.append(f"{name} is held by {_job(json.loads(_device(folder, name).read_text()))}")
    return found


def _device(folder: Path, name: str) -> Path:
    return folder / f"device_{name.replace('/', '_')}"


def _locked(path: Path) -> TextIO | None:
    """The file, opened and locked; None while another process has the lock."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sign(file: TextIO, names: Sequence[str]) -> None:
    # What others are told of this job: its command, without the JSON in it.
    command = shlex.join("..." if word.startswith(("{", "[")) else word for word in sys.argv)
    file.truncate(0)
    json.dump({"pid": os.getpid(), "command": command, "devices": list(names)}, file)
    file.flush()


def _job(said: Mapping[str, Any]) -> str:
    return f"process {said['pid']} ({said['command']})"
