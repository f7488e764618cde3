"""The head dies, is interrupted, loses sight of SLURM or of its jobs: no job is run twice, and the run completes."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from drifting_core.config import load_file
from drifting_core.jobs.leases import holder_of
from tests.conftest import until
from tests.slurm.conftest import SlurmSite
from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.workflow

# Jobs that take as long as a test needs, with no work in them: some seconds, or until there is a file `go`.
SNAKEFILE = """
rule all:
    input: "all.txt"
rule slow:
    output: "slow_{n}.txt"
    shell: "touch began_{wildcards.n}; timeout {config[seconds]} sh -c 'until [ -e go ]; do sleep 0.2; done' || true; "
           "echo {wildcards.n} > {output}"
rule join:
    input: "slow_1.txt", "slow_2.txt"
    output: "all.txt"
    shell: "cat {input} > {output}"
rule other:
    output: "other.txt"
    shell: "echo other > {output}"
"""


@pytest.fixture
def sleepers(site: SlurmSite) -> SlurmSite:
    (site.folder / "Snakefile").write_text(SNAKEFILE)
    return site


@pytest.fixture(autouse=True)
def _no_head_outlives_its_test(site: SlurmSite) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        if any("run_workflow" in word for word in process.info["cmdline"] or []) and process.cwd() == str(site.folder):
            process.kill()


def start(site: SlurmSite, script: str, *arguments: str) -> subprocess.Popen[str]:
    log = (site.folder / "head.log").open("a")
    return subprocess.Popen(
        [sys.executable, str(ROOT / "workflow_scripts" / script), "--profile", str(site.profile), *arguments],
        cwd=site.folder, env=site.environment, stdout=log, stderr=log, text=True, start_new_session=True,
    )  # fmt: skip


def said(site: SlurmSite) -> str:
    return (site.folder / "head.log").read_text()


def running(site: SlurmSite, rule: str = "") -> list[str]:
    rows = [row.split("|") for row in site.cluster.call("squeue", "-h", "-t", "R", "-o", "%i|%Z|%k").splitlines()]
    return [job for job, folder, comment in rows if folder == str(site.folder) and comment.startswith(f"rule_{rule}")]


def jobs(site: SlurmSite) -> list[tuple[str, str]]:
    """(rule and wildcards, state) of each attempt at a job of the folder, as SLURM has recorded it."""
    states = {row["JobId"]: row["JobState"] for row in site.cluster.jobs() if row["WorkDir"] == str(site.folder)}
    logs = site.folder / "results/logs/slurm"
    return [(str(path.parent.relative_to(logs)), states[path.stem]) for path in logs.rglob("*.log") if path.stem in states]


def assert_completed(site: SlurmSite, target: str, count: int) -> None:
    """Each job once, the target there, nothing left of any head."""
    assert (site.folder / target).is_file()
    assert [state for _, state in jobs(site)] == ["COMPLETED"] * count, jobs(site)
    assert len({rule for rule, _ in jobs(site)}) == count, jobs(site)
    assert not list((site.folder / ".snakemake").glob("locks/*"))
    assert holder_of(site.folder / ".snakemake", "head") == {}


def test_a_killed_head_is_followed_by_one_that_repeats_nothing(site: SlurmSite) -> None:
    data = f"results/data/{load_file(site.configure()).key('data')}"
    head = site.start(f"{data}/index.json")
    until(lambda: (site.folder / "results/archives/photos/packed.json").exists() and running(site, "check_archives"))
    head.kill()
    head.wait()
    assert running(site), "nothing was left running, so that nothing was shown"
    done = site.snakemake(f"{data}/index.json")
    assert done.returncode == 0, done.stdout
    assert_completed(site, f"{data}/index.json", 3)
    assert "waiting for 1 job(s) of an earlier head: check_archives tiny-" in done.stdout
    assert "the Snakemake that locked this folder is dead: unlocking" in done.stdout
    # Snakemake would have no record of it, and would judge it by time.
    record = base64.urlsafe_b64encode(b"results/archives/photos/packed.json").decode()
    assert (site.folder / ".snakemake/metadata" / record).is_file()

    (site.folder / "results/archives/photos/packed.json").touch()
    assert site.planned(f"{data}/index.json") == [], "what the job was made from is on record, as if its head had lived"


def test_a_controller_of_slurm_that_is_away_for_half_a_minute_costs_nothing(sleepers: SlurmSite) -> None:
    head = start(sleepers, "run_workflow.py", "all", "--config", "seconds=40")
    until(lambda: len(list(sleepers.folder.glob("began_*"))) == 2)
    time.sleep(6)  # it saves what it knows every 5 s; from an older state SLURM itself would start the jobs again
    sleepers.cluster.stop_controller()
    time.sleep(30)
    sleepers.cluster.start_controller()
    assert head.wait(180) == 0, said(sleepers)
    assert "Falling back to 'sacct'" in said(sleepers), "Snakemake did not notice, so that nothing was shown"
    assert_completed(sleepers, "all.txt", 3)


def stand_in_for_squeue(site: SlurmSite, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """A squeue that does this first."""
    (site.folder / "bin").mkdir()
    squeue = site.folder / "bin/squeue"
    squeue.write_text(f"#!/bin/sh\n{does}\nPATH=$(echo $PATH | sed 's#[^:]*/bin/*:##') exec squeue \"$@\"\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)


def test_a_head_that_lost_its_jobs_is_started_again(sleepers: SlurmSite, monkeypatch: pytest.MonkeyPatch) -> None:
    blind, asked = sleepers.folder / "blind", sleepers.folder / "asked"
    stand_in_for_squeue(sleepers, monkeypatch, f"[ -e {blind} ] && echo >> {asked} && exit 1")
    head = start(
        sleepers,
        "run_workflow.py",
        "--silent-minutes",
        "0.1",
        "all",
        "--config",
        "seconds=3",
        "--slurm-status-attempts",
        "1",
    )
    until(lambda: len(running(sleepers)) == 2)
    blind.touch()
    until(lambda: asked.exists() and asked.stat().st_size >= 2)  # in squeue's place and in sacct's: its jobs are lost
    blind.unlink()
    assert head.wait(180) == 0, said(sleepers)
    assert "killing Snakemake: silent for 0.1 minutes, and none of its jobs is left" in said(sleepers)
    assert_completed(sleepers, "all.txt", 3)


def test_a_second_head_is_refused_and_jobs_are_cancelled_on_request(sleepers: SlurmSite) -> None:
    head = start(sleepers, "run_workflow.py", "slow_1.txt", "--config", "seconds=100")
    until(lambda: running(sleepers))
    second = start(sleepers, "run_workflow.py", "slow_1.txt", "--config", "seconds=100")
    assert second.wait(90) == 1
    assert f"Snakemake already runs in this folder: process {head.pid} on " in said(sleepers)
    assert start(sleepers, "run_workflow.py", "-n", "slow_1.txt", "--config", "seconds=1").wait(90) == 0, (
        "to look is allowed"
    )
    head.kill()
    head.wait()
    third = start(sleepers, "run_workflow.py", "--cancel-jobs", "other.txt", "--config", "seconds=100")
    assert third.wait(90) == 0, said(sleepers)
    assert sorted(jobs(sleepers)) == [("rule_other", "COMPLETED"), ("rule_slow/1", "CANCELLED")]


def test_an_interrupted_head_leaves_no_job(sleepers: SlurmSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the one whose state Snakemake asks for at that moment, which it does not cancel."""
    slow, asked = sleepers.folder / "slow", sleepers.folder / "asked"
    stand_in_for_squeue(sleepers, monkeypatch, f"trap '' INT; [ -e {slow} ] && touch {asked} && sleep 5")
    head = start(sleepers, "run_workflow.py", "slow_1.txt", "--config", "seconds=100")
    until(lambda: running(sleepers))
    slow.touch()
    until(asked.exists)
    head.send_signal(signal.SIGINT)
    assert head.wait(90) == 1
    assert "cancelling 1 job(s) that Snakemake left: slow 1 (job" in said(sleepers)
    until(lambda: jobs(sleepers) == [("rule_slow/1", "CANCELLED")])
    assert not list((sleepers.folder / ".snakemake").glob("locks/*"))


def controller(site: SlurmSite, minutes: int = 60) -> str:
    """Number of a submitted controller's job, which has jobs that run until they are told to go on."""
    arguments = ["--minutes", str(minutes), "--", "all", "--config", "seconds=3600"]
    submitted = start(site, "submit_controller.py", *arguments)
    assert submitted.wait(90) == 0, said(site)
    until(lambda: len(running(site)) == 2)
    return said(site).partition("submitted as job ")[2].partition(";")[0]


def comes_back(site: SlurmSite, job: str) -> None:
    """Wait for its end. SLURM would start it again two minutes after each requeue; here it need not wait as long."""
    log = site.folder / f"results/logs/controller/{job}_0_log.out"

    def ends() -> list[str]:
        return [row["JobState"] for row in site.cluster.jobs() if row["JobId"] == job]

    until(lambda: site.cluster.call("squeue", "-h", "-j", job, "-o", "%T %r").strip() == "PENDING BeginTime", 240)
    assert len(running(site)) == 2, "its jobs went on"
    time.sleep(5)  # in the second of its end a node refuses to start it again, and SLURM ends it for ever
    site.cluster.call("scontrol", "update", f"jobid={job}", "starttime=now")
    until(lambda: "waiting for 2 job(s) of an earlier head" in log.read_text() or "FAILED" in ends(), 240)
    (site.folder / "go").touch()
    until(lambda: {"COMPLETED", "FAILED"} & set(ends()), 240)
    assert ends()[-1] == "COMPLETED", log.read_text()


def test_a_controller_that_is_interrupted_comes_back_to_its_jobs(sleepers: SlurmSite) -> None:
    job = controller(sleepers)
    for script in ("submit_controller.py", "run_workflow.py"):
        assert start(sleepers, script, "--", "all").wait(90) == 1
    refused = f"Snakemake already runs in this folder: process \\d+ on \\S+ \\(SLURM job {job}\\)"
    assert len(re.findall(refused, said(sleepers))) == 2, said(sleepers)

    sleepers.cluster.call("scancel", "--signal=USR2", job)  # what SLURM does before a limit
    comes_back(sleepers, job)
    assert_completed(sleepers, "all.txt", 3)
    assert "Requeued job" in (sleepers.folder / f"results/logs/controller/{job}_0_log.out").read_text()


@pytest.mark.slow
def test_a_controller_that_reaches_its_limit_comes_back_to_its_jobs(sleepers: SlurmSite) -> None:
    job = controller(sleepers, minutes=2)
    comes_back(sleepers, job)
    assert_completed(sleepers, "all.txt", 3)
