"""The head as a SLURM job of its own, for sites that end long processes on login nodes. Light.

submitit requeues it before its limit and when it is preempted. Its own jobs go on running meanwhile, and when it is back
it takes over what they have made.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from drifting_core.artifacts.provenance import ROOT
from drifting_core.faults import Fault
from drifting_core.workflow import slurm
from drifting_core.workflow.heads import read_start, refuse_live_holder

LOGS = Path("results/logs/controller")
_RUN_WORKFLOW = ROOT / "workflow_scripts/run_workflow.py"
_TIMES = 10_000  # that it may reach its limit


class Controller:
    """What the job calls; submitit pickles it into the folder of its logs, where its own job reads it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._head: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        self._head = subprocess.Popen([sys.executable, str(_RUN_WORKFLOW), *self.arguments])
        code = self._head.wait()
        if code:
            raise Fault(f"{_RUN_WORKFLOW.name} ended with exit code {code}: see above; submit it again when that is mended")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before the limit, or when preempted: end the head, and be called again.

        By kill -9, because that alone leaves its jobs running and takes no time: on SIGINT Snakemake cancels them, on
        SIGTERM it waits for them, and the limit comes first.
        """
        if self._head is not None:
            self._head.kill()  # and no wait(): the interrupted one holds its lock
        return submitit.helpers.DelayedSubmission(Controller(self.arguments))


def submit(arguments: Sequence[str], *, minutes: int, memory_mb: int, cpus: int, **where: Any) -> str:
    """Submit a head that is started with Snakemake's `arguments`; the number of its job.

    `where`: partition, account and other options of sbatch; what is None is the profile's, or the cluster's. Raises Fault
    when the arguments do not say that jobs go to SLURM, and when a head of this folder is alive or in the queue.
    """
    start = read_start(arguments)
    if not start.on_slurm:
        raise Fault(f"{' '.join(arguments)}: expected a profile whose executor is slurm; give --profile slurm")
    refuse_live_holder(start.folder)
    name = f"{start.name}-head"
    for job in slurm.queue():
        if job.name == name:
            raise Fault(
                f"{start.folder} has a controller already: job {job.id}, {job.state}. Wait for it, or end it with "
                f"`scancel {job.id}`; its running jobs go on, and the next start takes them over"
            )
    given = _site(start.site) | {option: value for option, value in where.items() if value is not None}
    executor = submitit.SlurmExecutor(LOGS, max_num_timeout=_TIMES)
    executor.update_parameters(
        job_name=name, time=minutes, mem=f"{memory_mb}M", cpus_per_task=cpus, stderr_to_stdout=True, signal_delay_s=90,
        additional_parameters={"requeue": True, **given},
    )  # fmt: skip
    try:
        return executor.submit(Controller(arguments)).job_id
    except submitit.core.utils.FailedJobError as error:
        raise Fault(
            f"sbatch refused the controller: {error}; give --partition, --account or --extra as your site wants them"
        ) from None


def _site(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Where the profile sends jobs that need no GPU."""
    known = {"partition": resources.get("cpu_partition", resources.get("slurm_partition"))}
    known["account"] = resources.get("slurm_account")
    return {option: value for option, value in known.items() if value is not None}
