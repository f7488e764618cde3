"""What the plan gives a job and what it finds: devices, ranks, the end of its time."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from drifting_core.config import Resources
from drifting_core.faults import Fault
from drifting_core.jobs import devices, job, pool
from drifting_core.jobs.job import StopRequest
from tests.unit.training.jobs import make_site

# `srun --ntasks=N ... COMMAND` as SLURM runs it on one node, without SLURM.
SRUN = """#!/bin/bash
for option in "$@"; do case $option in
  --ntasks=*) tasks=${option#*=};;
  --*) ;;
  *) break;;
esac; shift; done
for task in $(seq 0 $((tasks - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$tasks SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 \\
    SLURM_NNODES=1 SLURM_JOB_NODELIST=localhost "$@" & ids+=($!)
done
trap 'kill -USR1 "${ids[@]}"' USR1
code=0
for id in "${ids[@]}"; do wait $id || code=$?; done
exit $code
"""


def test_ranks_that_are_not_one_per_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="resources.ranks: 3 with 2 GPUs; a rank has one GPU"):
        devices.in_ranks(lambda: None, Resources(gpus=2, ranks=3), tmp_path, StopRequest())


def test_a_plan_with_gpus_never_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(pool.POOL, ",".join(map(str, range(99))))
    if torch.cuda.is_available():
        with pytest.raises(Fault, match=f"gives this job 99 GPUs, but {torch.cuda.device_count()} are granted"):
            devices.device(99, 1)
    else:
        with pytest.raises(Fault, match=r"gives this job 1 GPU\(s\), but torch .* finds none"):
            devices.device(1, 1)


def test_in_a_rehearsal_gpus_are_granted_and_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(devices.REHEARSAL, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with caplog.at_level("INFO", "drifting_core"):
        assert devices.device(1, 1).type == "cpu"
    assert "rehearsal: on the CPU, with GPU 3 granted" in caplog.text


def test_another_number_of_ranks_than_planned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ((job.RANK, "0"), (job.SIZE, "2"), ("DRIFTING_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert devices.place(2) is not None
    with pytest.raises(Fault, match="world size 2, but the plan .* says 4"):
        devices.place(4)


def test_several_nodes_need_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(Fault, match="resources.nodes: 2; several nodes need SLURM"):
        devices.in_ranks(lambda: None, Resources(nodes=2, ranks=1), tmp_path, StopRequest())


def test_srun_starts_the_ranks_where_slurm_gave_the_job(tmp_path: Path, demo_values: dict[str, Any]) -> None:
    """The ranks read their places through submitit, and end with the numbers of ranks that were started here."""
    site = make_site(tmp_path, demo_values, ranks=2)
    site.finish("generator", "local")
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    soon = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    environment = {**os.environ, **soon, "PATH": f"{srun.parent}:{os.environ['PATH']}"}
    done = subprocess.run(site.command("generator", "slurm"), env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 ranks, started by srun" in done.stderr
    assert site.state("slurm") == site.state("local")


@pytest.mark.parametrize(("text", "seconds"), [
    ("2-03:04:05", 183845), ("3:04:05", 11045), ("10:00", 600), ("0:00", 0), ("UNLIMITED", None), ("", None),
])  # fmt: skip
def test_what_slurm_says_is_left(text: str, seconds: float | None) -> None:
    assert job.slurm_seconds(text) == seconds


def test_the_end_of_a_slurm_job_is_a_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 100))
    stop = StopRequest()
    assert not stop
    stop.needs = 101  # seconds that a step and its commit take
    assert stop
    assert stop.reason == "the time limit is near"
    # Without the variable squeue is asked.
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 1:40\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = StopRequest(max_seconds=1000)
    asked.needs = 90
    assert not asked
    asked.needs = 101
    assert asked
