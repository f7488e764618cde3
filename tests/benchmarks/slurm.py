"""What a job costs on a cluster beside its own work, and how long its dependant waits: a chain of jobs that do nothing.

    python -m tests.benchmarks.slurm

On the cluster that tests start, with the shipped profile and with the tests' intervals. Needs root and SLURM's packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.conftest import SHIM, write_profile

LINKS = 5
SNAKEFILE = """
rule link:
    input: lambda w: [] if w.n == "0" else f"{int(w.n) - 1}.json"
    output: "{n}.json"
    resources: slurm_partition="cpu"
    shell: "date +%s.%N > {output}"
"""


class Job(NamedTuple):
    """Seconds since 1970: SLURM's start and end (whole seconds), and the moment of its own work."""

    start: float
    worked: float
    end: float


def chain(made: Cluster, folder: Path, *, tests: bool) -> tuple[list[Job], float]:
    """The chain's jobs, with the tests' profile and polls or with the shipped ones, and the head's end."""
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    shipped = {"slurm-init-seconds-before-status-checks": 20, "max-status-checks-per-second": 0.2, "latency-wait": 60}
    profile = write_profile(folder / "profile", **({} if tests else shipped))
    environment = {**os.environ, "PYTHONPATH": f"{SHIM}:{ROOT}"} | ({"SECONDS_BETWEEN_POLLS": "0.5"} if tests else {})
    command = [sys.executable, "-m", "snakemake", "--profile", str(profile), f"{LINKS - 1}.json"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    ended = datetime.now().timestamp()
    rows = [row for row in made.jobs() if row["WorkDir"] == str(folder)]
    times = [[datetime.fromisoformat(row[name]).timestamp() for name in ("StartTime", "EndTime")] for row in rows]
    worked = [json.loads((folder / f"{n}.json").read_text()) for n in range(LINKS)]
    return [Job(start, at, end) for (start, end), at in zip(times, worked, strict=True)], ended


def main() -> None:
    print(
        "| profile | start of a job to its work, s | its work to its end, s | end to the dependant's start, s | chain, s |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch, cluster() as made:
        for name, tests in (("shipped", False), ("tests'", True)):
            jobs, ended = chain(made, Path(scratch).resolve() / name.strip("'"), tests=tests)
            before = median(job.worked - job.start for job in jobs)
            behind = median(job.end - job.worked for job in jobs)
            gaps = [after.start - job.end for job, after in pairwise(jobs)]
            said = f"{median(gaps):.0f} ({min(gaps):.0f} to {max(gaps):.0f})"
            print(f"| {name} | {before:.1f} | {behind:.1f} | {said} | {ended - jobs[0].start:.0f} |")


if __name__ == "__main__":
    main()
