"""The head without SLURM: stand-ins for Snakemake and for SLURM's programs say what these would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from drifting_core.faults import Fault
from drifting_core.jobs import leases
from drifting_core.workflow import heads, slurm
from drifting_core.workflow.heads import read_start
from tests.conftest import ROOT, until

RUN = """
import logging, sys
from drifting_core.workflow import heads
from drifting_core.workflow import supervision
logging.basicConfig(level=logging.INFO, format="%(message)s")
heads._SECONDS = supervision._LOOKS = 0.1
sys.exit(supervision.run_snakemake(["--executor", "slurm", *sys.argv[1:]], cancel_jobs={cancel}, silent_minutes={silent}))
"""
# Says what it was started with; then does what the file `todo` says.
SNAKEMAKE = """
import os, pathlib, signal, sys, time
here = pathlib.Path(".snakemake")
if "--unlock" in sys.argv:
    (here / "locks/0.lock").unlink()
    sys.exit()
(here / "log").mkdir(parents=True, exist_ok=True)
with open("starts", "a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
with open(here / f"log/{os.getpid()}.log", "w") as log:
    print("Building DAG", file=log, flush=True)
    exec(pathlib.Path("todo").read_text())
"""
UUID = "4b7f1e8a-0f4e-4c9e-9d59-0a1b2c3d4e5f"


class Stage:
    """A folder with the stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.heads: list[subprocess.Popen[str]] = []
        self.bin.mkdir()
        (folder / "snakemake.py").write_text(SNAKEMAKE)
        self.program("scontrol", "echo 'AccountingStorageType   = accounting_storage/none'")
        self.program("sacct", "exit 1")
        self.program("squeue", f"cat {folder}/queue")
        self.program("scancel", f'echo "$@" >> {folder}/cancelled; : > {folder}/queue')
        self.queue()

    def program(self, name: str, does: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.bin / name).chmod(0o755)

    def queue(self, *rows: str) -> None:
        (self.folder / "queue").write_text("".join(f"{row}\n" for row in rows))

    def job(self, number: int, folder: Path | None = None, name: str = f"drifting_{UUID}") -> str:
        return f"{number}|{name}|RUNNING|gpu1|1:00|9:00|None|rule_evaluate_wildcards_tiny_30|{folder or self.folder}"

    def start(
        self, todo: str, *arguments: str, cancel: bool = False, silent: float = 1.0, **variables: str
    ) -> subprocess.Popen[str]:
        (self.folder / "todo").write_text(todo)
        command = [sys.executable, "-c", RUN.format(cancel=cancel, silent=silent), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{self.bin}:/usr/bin:/bin", **variables}
        self.heads.append(subprocess.Popen(command, cwd=self.folder, env=environment, text=True, stderr=subprocess.PIPE))
        return self.heads[-1]

    def starts(self) -> list[list[str]]:
        path = self.folder / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path.resolve())
    yield made
    for head in made.heads:
        head.kill()  # of a test that failed
        head.wait()


def test_the_exit_code_and_the_arguments_are_snakemakes(stage: Stage) -> None:
    head = stage.start("sys.exit(7)", "target", "--config", "a=1")
    assert head.wait(90) == 7
    [[_, *arguments]] = stage.starts()
    name = slurm.job_name(stage.folder, "drifting")
    assert arguments == ["--slurm-jobname-prefix", name, "--executor", "slurm", "target", "--config", "a=1"]
    assert leases.holder_of(stage.folder / ".snakemake", "head") == {}
    stage.start("", "--slurm-jobname-prefix", "mine").wait(90)
    assert stage.starts()[-1][1:] == ["--executor", "slurm", "--slurm-jobname-prefix", "mine"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_handed_on_and_ctrl_c_leaves_no_job(stage: Stage, number: signal.Signals) -> None:
    todo = "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, lambda number, frame: sys.exit(number))\n"
    head = stage.start(todo + "open('ready', 'w').close()\ntime.sleep(60)")
    until((stage.folder / "ready").exists)
    completing = stage.job(6).replace("RUNNING", "COMPLETING")
    stage.queue(stage.job(5), completing, stage.job(7, stage.folder / "elsewhere"), stage.job(8, name="interactive"))
    head.send_signal(number)
    assert head.wait(90) == number
    cancelled = stage.folder / "cancelled"
    assert (cancelled.read_text() if cancelled.exists() else "") == ("5\n" if number == signal.SIGINT else "")


def test_jobs_that_may_be_left_are_told_when_slurm_is_away(stage: Stage) -> None:
    head = stage.start("open('ready', 'w').close()\ntime.sleep(60)")
    until((stage.folder / "ready").exists)
    stage.program("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    head.send_signal(signal.SIGINT)
    assert head.wait(90) == 128 + signal.SIGINT
    assert head.stderr is not None
    said = head.stderr.read()
    assert "Unable to contact slurm controller" in said
    assert "jobs may be left, which the next start waits for, or ends with --cancel-jobs" in said


def test_a_killed_head_takes_its_snakemake_along(stage: Stage) -> None:
    head = stage.start("time.sleep(60)")
    until(stage.starts)
    child = psutil.Process(int(stage.starts()[0][0]))
    head.kill()
    child.wait(10)


def test_a_snakemake_that_waits_for_nothing_is_started_again(stage: Stage) -> None:
    say = "print('No active jobs; skipping status query.', file=log, flush=True)"  # as it does under --verbose
    todo = f"if len(open('starts').readlines()) < 2:\n    while True: {say}; time.sleep(0.05)"
    head = stage.start(todo, silent=0.02)
    assert head.wait(180) == 0
    assert len(stage.starts()) == 2
    assert head.stderr is not None
    assert "killing Snakemake: silent for 0.02 minutes, and none of its jobs is left" in head.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_was_told_to_end_is_not_started_again(stage: Stage, number: signal.Signals) -> None:
    todo = (
        "told = []\nfor number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, lambda *_: told.append(1))\n"
        "open('ready', 'w').close()\nwhile True:\n    time.sleep(0.05)\n    told or print('word', file=log, flush=True)"
    )
    head = stage.start(todo, silent=0.02)
    until((stage.folder / "ready").exists)
    head.send_signal(number)
    assert head.wait(180) == 128 + signal.SIGKILL
    assert len(stage.starts()) == 1


@pytest.mark.parametrize("sign", ["job", "word", "work here", "squeue is away"])
def test_a_snakemake_that_waits_for_something_is_left_alone(stage: Stage, sign: str) -> None:
    todo = "time.sleep(2.5)"
    if sign == "word":
        todo = "for _ in range(25): time.sleep(0.1); print('Finished jobid', file=log, flush=True)"
    if sign == "work here":
        todo = "os.system('sleep 2.5')"
    head = stage.start(todo, silent=0.02)
    until(stage.starts)
    if sign == "job":
        stage.queue(stage.job(5))
    if sign == "squeue is away":
        stage.program("squeue", "exit 1")
    assert head.wait(180) == 0
    assert len(stage.starts()) == 1


def test_jobs_of_an_earlier_head_are_waited_for_and_others_are_not(stage: Stage, tmp_path: Path) -> None:
    others = [stage.job(1, tmp_path / "elsewhere"), stage.job(2, name="interactive"), "a row of another kind"]
    stage.queue(stage.job(5), *others)
    head = stage.start("")
    assert head.stderr is not None
    waits = "waiting for 1 job(s) of an earlier head: evaluate tiny_30 (job 5, RUNNING, 9:00 left)"
    assert head.stderr.readline().startswith(waits)
    time.sleep(0.5)
    assert not stage.starts()
    stage.queue(*others)
    assert head.wait(180) == 0


def test_jobs_are_cancelled_on_request(stage: Stage) -> None:
    stage.queue(stage.job(5), stage.job(6), stage.job(7, stage.folder / "elsewhere"))
    assert stage.start("", cancel=True).wait(90) == 0
    assert (stage.folder / "cancelled").read_text() == "5 6\n"


def test_a_slurm_that_does_not_answer_starts_nothing(stage: Stage) -> None:
    stage.program("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    head = stage.start("")
    assert head.wait(90) == 1
    assert not stage.starts()
    assert head.stderr is not None
    assert "squeue failed: Unable to contact slurm controller" in head.stderr.read()


def test_the_lock_of_a_dead_head_is_removed_and_one_of_an_unknown_is_not(stage: Stage) -> None:
    head = stage.start("(here / 'locks').mkdir(); (here / 'locks/0.lock').touch(); time.sleep(60)")
    until((stage.folder / ".snakemake/locks/0.lock").exists)
    head.kill()
    head.wait()
    assert stage.start("").wait(90) == 0
    assert not list((stage.folder / ".snakemake/locks").iterdir())

    (stage.folder / ".snakemake/locks/0.lock").touch()
    head = stage.start("")
    assert head.wait(90) == 1
    assert head.stderr is not None
    assert "locked by a Snakemake that run_workflow.py did not start" in head.stderr.read()


def test_a_snakemake_that_is_killed_leaves_no_lock(stage: Stage) -> None:
    todo = "(here / 'locks').mkdir(); (here / 'locks/0.lock').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    assert stage.start(todo).wait(90) == 128 + signal.SIGKILL
    assert not list((stage.folder / ".snakemake/locks").iterdir())


def test_a_live_head_is_refused_wherever_it_lives(stage: Stage) -> None:
    head = stage.start("time.sleep(60)")
    until(stage.starts)
    second = stage.start("")
    assert second.wait(90) == 1
    assert second.stderr is not None
    assert f"already runs in this folder: process {head.pid} on " in second.stderr.read()
    head.kill()


def test_nothing_of_the_job_that_a_head_runs_in_reaches_its_jobs(stage: Stage) -> None:
    inside = {
        "SLURM_JOB_ID": "5",
        "SLURM_CONF": "/conf",
        "SBATCH_PARTITION": "x",
        "SRUN_DEBUG": "1",
        "SUBMITIT_EXECUTOR": "slurm",
    }
    todo = "open('environment', 'w').write('\\n'.join(os.environ)); os.system('sacct -X --name run > asked')"
    assert stage.start(todo, **inside, OTHER="kept").wait(90) == 0
    names = (stage.folder / "environment").read_text().split()
    assert {name for name in names if name in inside} == {"SLURM_CONF"}
    assert "OTHER" in names


def test_sacct_is_answered_by_squeue_where_slurm_keeps_no_accounts(stage: Stage) -> None:
    stage.program("squeue", f'echo "$@" >> {stage.folder}/asked')
    assert stage.start("os.system('sacct -X --noheader --name the_run')").wait(90) == 0
    assert (stage.folder / "asked").read_text().splitlines()[-1].endswith("--format=%i|%T --name=the_run")
    (stage.folder / "asked").unlink()
    stage.program("scontrol", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'")
    assert stage.start("os.system('sacct --name the_run')").wait(90) == 0
    assert "the_run" not in (stage.folder / "asked").read_text()


def submit(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "workflow_scripts/submit_controller.py"
    return subprocess.run(
        [sys.executable, str(script), "--profile", "site", *arguments], cwd=stage.folder, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{stage.bin}:/usr/bin:/bin"},
    )  # fmt: skip


def test_a_controller_is_submitted_where_the_profile_says_and_only_once(stage: Stage) -> None:
    stage.program("srun", "exit 1")
    stage.program("sbatch", "echo Submitted batch job 7")
    write(
        stage.folder / "site/config.yaml", "executor: slurm\ndefault-resources: {cpu_partition: cpu, slurm_account: lab}\n"
    )
    done = submit(stage, "--minutes", "90", "--extra", "qos=long", "--", "target", "--configfile", "a.yaml")
    assert done.returncode == 0, done.stderr
    assert "submitted as job 7; its log: results/logs/controller/7_0_log.out" in done.stdout
    name = f"{slurm.job_name(stage.folder, 'drifting')}-head"
    options = (stage.folder / "results/logs/controller/7_submission.sh").read_text().splitlines()
    wanted = {"job-name": name, "partition": "cpu", "account": "lab", "qos": "long", "time": "90", "signal": "USR2@90"}
    assert {f"#SBATCH --{option}={value}" for option, value in wanted.items()} | {"#SBATCH --requeue"} <= set(options)

    stage.queue(f"8|{name}|PENDING||0:00|9:00|Priority|(null)|{stage.folder}")
    assert "has a controller already: job 8, PENDING" in submit(stage).stderr
    stage.queue()
    head = stage.start("time.sleep(60)")
    until(stage.starts)
    assert f"already runs in this folder: process {head.pid} on " in submit(stage).stderr
    head.kill()
    assert "expected a profile whose executor is slurm" in submit(stage, "--", "--executor", "local").stderr


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_how_snakemake_is_started_is_read_from_arguments_and_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    write(
        tmp_path / "here/config.yaml",
        "executor: slurm\nslurm-jobname-prefix: ours\ndefault-resources: {cpu_partition: cpu}\n",
    )
    write(tmp_path / "home/.config/snakemake/mine/config.v8+.yaml", "executor: slurm\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    start = read_start(["--profile", "here", "-j10", "target", "--config", "a=-1", "--", "b"])
    assert (start.folder, start.on_slurm, start.looks_only) == (tmp_path, True, False)
    assert start.name == slurm.job_name(tmp_path, "ours")
    assert start.site == {"cpu_partition": "cpu"}
    assert read_start(["--profile", "mine"]).on_slurm
    assert read_start(["--workflow-profile", "here/config.yaml"]).on_slurm
    assert read_start(["-e", "slurm", "-d", "here"]).folder == tmp_path / "here"
    assert not read_start(["--profile", "here", "--executor=local"]).on_slurm
    assert not read_start([]).on_slurm
    named = read_start(["--profile", "here", "--slurm-jobname-prefix", "mine"])
    assert (named.name, named.named) == ("mine", True)
    for look in ("-n", "-np", "--dry-run", "--dryrun"):
        assert read_start(["target", look]).looks_only
    write(tmp_path / "broken/config.yaml", "executor: [")
    with pytest.raises(Fault, match="broken/config.yaml: cannot be read as YAML"):
        read_start(["--profile", "broken"])


def test_names_of_jobs_differ_by_folder_and_fit_the_plugin(tmp_path: Path) -> None:
    names = {slurm.job_name(tmp_path / folder, prefix) for folder in ("a", "b") for prefix in ("drifting", "x" * 60)}
    assert len(names) == 4
    assert all(len(name) <= 50 and name.replace("-", "").isalnum() for name in names)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert slurm.job_name(tmp_path / "link", "drifting") == slurm.job_name(tmp_path / "a", "drifting")


@pytest.mark.parametrize("command", [["python", "-m", "snakemake", "-n"], ["/bin/python", "/bin/snakemake", "all"]])
def test_a_head_is_told_from_its_jobs(command: list[str]) -> None:
    assert heads._is_head(command)
    assert not heads._is_head([*command, "--mode", "remote"])
