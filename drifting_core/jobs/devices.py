"""Devices are given, not looked for; ranks are started here, and stopped (docs/decisions/12).

A training or sampling of several ranks is one job: its process holds the folder's lease, starts the same command once per
rank (`srun` does where SLURM gave the job), hands signals on, and ends with one exit code. torchrun would not do: it dies
of SIGUSR1 and turns exit codes into 1. Light: torch is imported by the function that needs it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from drifting_core.costs.estimates import read_rates
from drifting_core.faults import CALL_AGAIN, Fault, Stopped
from drifting_core.jobs.job import RANK, SIZE, SRUN, StopRequest, peak_megabytes
from drifting_core.jobs.leases import writer_lease
from drifting_core.jobs.pool import REHEARSAL, granted_by_slurm, take

if TYPE_CHECKING:
    import torch

    from drifting_core.config import Resources

log = logging.getLogger(__name__)

_PORT = "DRIFTING_PORT"  # where the ranks of this machine meet
_GRACE = 30.0  # seconds that the other ranks have to end by themselves when one has died


class Place(NamedTuple):
    """One rank among those that were started together, and where they meet."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def place(planned: int) -> Place | None:
    """Where this process stands among the `planned` ranks of its job; None when it is none (also when it will start some).

    Raises Fault when another number of ranks was started than the plan says.
    """
    if RANK in os.environ:
        rank, size, port = (int(os.environ[name]) for name in (RANK, SIZE, _PORT))
        found = Place(rank, size, rank, "127.0.0.1", port)
    elif SRUN in os.environ:
        from submitit import JobEnvironment

        task = JobEnvironment()
        found = Place(task.global_rank, task.num_tasks, task.local_rank, task.hostnames[0], int(os.environ[SRUN]))
    else:
        return None
    if found.size != planned:
        raise Fault(
            f"world size {found.size}, but the plan (nodes times ranks of each, resources) says {planned}; set the stage's "
            "resources to what is granted, or start again"
        )
    return found


def device(gpus: int, threads: int, local_rank: int = 0) -> torch.device:
    """The device that the plan gave this process: the CPU when it asked for no GPU, else the granted GPU of its rank.

    In a rehearsal (configuration key `rehearsal`) the CPU as well, and the log says which GPUs were granted.

    Where no scheduler granted GPUs they are taken from the machine's pool, if need be after those who came before.

    Raises Fault when GPUs were planned and CUDA has fewer: the CPU never stands in for one silently, nor one for two.
    """
    take(gpus)  # before CUDA looks at what is visible
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True  # a resumed training is the uninterrupted one on a GPU, too
    if gpus and REHEARSAL in os.environ:
        log.info("rehearsal: on the CPU, with GPU %s granted", os.environ.get("CUDA_VISIBLE_DEVICES", "(none)"))
    if gpus == 0 or REHEARSAL in os.environ:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Fault(
            f"the plan gives this job {gpus} GPU(s), but torch {torch.__version__} finds none that works here; run it "
            "where a GPU is granted (profiles/slurm), or set the stage's resources.gpus to 0 to compute on the CPU"
        )
    if torch.cuda.device_count() < gpus:
        raise Fault(
            f"the plan gives this job {gpus} GPUs, but {torch.cuda.device_count()} are granted here; grant as many, or "
            "lower the stage's resources.gpus"
        )
    log.info("on %s", torch.cuda.get_device_name(local_rank))
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def memory_megabytes() -> float:
    """The most memory that this process has used: of its GPU where it has one, else resident."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_initialized() else peak_megabytes()


def peak_flops(on: torch.device, precision: str, count: int) -> float | None:
    """Floating-point operations a second of `count` such devices (config/rates.yaml); None where it is not known."""
    import torch

    if on.type != "cuda":
        return None
    known = read_rates()["peak_tflops"]
    name = torch.cuda.get_device_name(on)
    return next((rates[precision] * 1e12 * count for part, rates in known.items() if part in name), None)


def in_ranks(
    work: Callable[[], None],
    resources: Resources,
    folder: Path,
    stop: StopRequest,
    finish: Callable[[], None] | None = None,
) -> None:
    """Do `work` as the one writer of `folder`: here, or in as many processes of this same command as the plan says.

    `finish`: what the job's own process does, still as that writer, when all ranks have ended well.

    Raises Stopped when all ranks committed and stopped, and Fault when one failed.
    """
    if place(resources.processes) is not None:
        work()
        return
    if resources.gpus and resources.ranks_per_node != resources.gpus:
        raise Fault(f"resources.ranks: {resources.ranks} with {resources.gpus} GPUs; a rank has one GPU, leave it at 0")
    if resources.nodes > 1 and not granted_by_slurm():
        raise Fault(
            f"resources.nodes: {resources.nodes}; several nodes need SLURM, this is one machine: set it to 1, or "
            "start with --profile slurm"
        )
    with writer_lease(folder) as lease:
        held = [lease, *take(resources.gpus, stop)]
        if resources.processes == 1:
            work()
        else:
            start_ranks([sys.executable, *sys.argv], resources, stop, held)
        if finish:
            finish()


def start_ranks(
    command: Sequence[str], resources: Resources, stop: StopRequest, leases: Sequence[int], grace: float = _GRACE
) -> None:
    """Run `command` once per rank and wait for all. Raises Stopped and Fault as `in_ranks` does.

    Ranks inherit the locks of the `leases`: when this process is killed, they write and compute until they have noticed.
    """
    count, port = resources.processes, _free_port()
    if granted_by_slurm():
        log.info("world size %d: %d node(s) of %d ranks, started by srun", count, resources.nodes, resources.ranks_per_node)
        joint = {SRUN: str(port), SIZE: str(count), "SUBMITIT_EXECUTOR": "slurm"}
        started = {"srun": subprocess.Popen([*_step(resources, grace), *command], env={**os.environ, **joint})}
    else:
        log.info("world size %d: ranks on this machine", count)
        environments = [{**os.environ, RANK: str(rank), SIZE: str(count), _PORT: str(port)} for rank in range(count)]
        started = {f"rank {own[RANK]}": subprocess.Popen(command, env=own, pass_fds=leases) for own in environments}
    try:
        first = _first_failure(started, stop, grace)
    finally:
        for process in started.values():
            process.kill()  # nothing where it has ended
            process.wait()
    if first is not None:
        raise Fault(
            f"{first} of {count} ranks {_said(started[first].returncode)}, and the others were stopped; the last committed "
            "state stays: see above, and call the same command again to continue from it"
        )
    if any(process.returncode == CALL_AGAIN for process in started.values()):
        raise Stopped(f"all {count} ranks committed and stopped")


def _step(resources: Resources, grace: float) -> list[str]:
    """srun with everything said: Snakemake's plugin hides from its jobs what their allocation has.

    Steps overlap, since a plugin may have started this very process in a step that holds the allocation's GPUs.
    """
    return [
        "srun", "--overlap", "--unbuffered", f"--wait={grace:.0f}",
        f"--nodes={resources.nodes}", f"--ntasks={resources.processes}", f"--ntasks-per-node={resources.ranks_per_node}",
        f"--cpus-per-task={resources.threads}", *([f"--gpus-per-node={resources.gpus}"] if resources.gpus else []),
    ]  # fmt: skip


def _first_failure(started: Mapping[str, subprocess.Popen[bytes]], stop: StopRequest, grace: float) -> str | None:
    """Wait for all; the name of the first that failed. It ends the others: they would wait for it in a collective."""
    first: str | None = None
    told: float | None = None
    while True:
        codes = {name: process.poll() for name, process in started.items()}
        first = first or next((name for name, code in codes.items() if code not in (None, 0, CALL_AGAIN)), None)
        running = [started[name] for name, code in codes.items() if code is None]
        if not running:
            return first
        if told is None and (first or stop):
            told = time.monotonic()
            for process in running:
                process.send_signal(signal.SIGTERM)
        if first and told is not None and time.monotonic() - told > grace:
            for process in running:
                process.kill()
        time.sleep(0.1)


def _said(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
