"""Several Snakemake runs on one machine, whose GPUs (pretended ones) they share."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drifting_core.jobs import pool
from tests.workflow.conftest import ROOT, TARGET, Site

pytestmark = pytest.mark.workflow

# Two Snakemakes run this, each in its folder. Jobs called `meet` hold their device until that of the other run has one as
# well; the one called `doomed` is killed with its two devices, and tried again.
SNAKEFILE = f"""
ROOT = "{ROOT}"
include: "{ROOT}/rules/common.smk"
rule all:
    default_target: True
    input: "meet.1", "other.1", "pair.2", "doomed.2"
rule one:
    output: "{{name}}.1"
    resources: gpu=1
    shell: "exec python ../job.py 1 {{output}}"
rule two:
    output: "{{name}}.2"
    resources: gpu=2
    shell: "exec python ../job.py 2 {{output}}"
"""
JOB = """
import json, os, signal, sys, time
from pathlib import Path
from drifting_core.jobs.pool import take

began, output = time.monotonic(), Path(sys.argv[2])
take(int(sys.argv[1]))
taken = time.monotonic()
killed = Path("killed")
if output.stem == "doomed" and not killed.exists():
    killed.touch()
    os.kill(os.getpid(), signal.SIGKILL)
if output.stem == "meet":
    Path("met").touch()
    while not all(Path(f"../{run}/met").exists() for run in "ab"):
        time.sleep(0.02)
time.sleep(0.3)
devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
output.write_text(json.dumps({"devices": devices, "began": began, "taken": taken, "ended": time.monotonic()}))
"""


def test_two_snakemakes_never_give_one_device_to_two_jobs(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(JOB)
    environment = {**os.environ, pool.LEASES: str(tmp_path / "leases"), "PYTHONPATH": str(ROOT)}
    heads = []
    for run in "ab":
        site = Site(tmp_path / run)
        site.folder.mkdir()
        site.configure(devices=[0, "1", 2], rehearsal=True)
        command = [
            sys.executable, "-m", "snakemake", "--profile", str(ROOT / "profiles/local"), "--snakefile", "../Snakefile",
            "--cores", "4", "--retries", "1", "--configfile", "config.yaml",
        ]  # fmt: skip
        head = subprocess.Popen(
            command, cwd=site.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        heads.append(head)
    try:
        said = [head.communicate(timeout=180)[0] for head in heads]
    finally:
        for head in heads:
            head.kill()
    assert [head.returncode for head in heads] == [0, 0], said
    runs = [[json.loads(path.read_text()) for path in sorted((tmp_path / run).glob("*.[12]"))] for run in "ab"]
    assert [len(jobs) for jobs in runs] == [4, 4]
    assert all((tmp_path / run / "killed").exists() for run in "ab")
    for one, other in itertools.combinations([*runs[0], *runs[1]], 2):
        assert not (together(one, other) and set(one["devices"]) & set(other["devices"])), (one, other)
    assert any(together(one, other) for one in runs[0] for other in runs[1])
    # Each Snakemake counts: it starts no job that could not be given its devices.
    for jobs in runs:
        for job in jobs:
            started = [other for other in jobs if other["began"] <= job["began"] < other["ended"]]
            assert sum(len(other["devices"]) for other in started) <= 3, jobs


def together(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True when both held their devices at some moment."""
    return one["taken"] < other["ended"] and other["taken"] < one["ended"]


def test_more_gpus_than_there_are_is_said_before_anything_runs(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(devices=[0, 1, 2], rehearsal=True, **{"training.resources": {"gpus": 4}})
    done = site.snakemake(TARGET)
    assert done.returncode != 0
    assert "4 GPUs are asked for, but this machine has 3 to share (0, 1, 2)" in done.stdout
    assert "lower training.resources.gpus (4)" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "results").exists()
