"""The status page, on folders that are made up."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from drifting_core.config import load
from drifting_core.workflow import status
from drifting_core.workflow.layout import Layout

STAMP = "%a %b %d %H:%M:%S %Y"

LOG = """Building DAG of jobs...
[{stamp}]
rule evaluate:
    output: results/a.json
    jobid: 4
Job 4 has been submitted with SLURM jobid 9 (log: /x/9.log).
[{stamp}]
Error in rule evaluate:
    message: SLURM-job '9' failed, SLURM status is: 'FAILED'. For further error details see the log: files
    jobid: 4
    output: results/a.json, results/b.json
    log: results/logs/a.log, {folder}/results/logs/slurm/9.log (check log file(s) for error details)
    shell:
        exec python x.py --output results/a.json
        (command exited with non-zero exit code)
    external_jobid: 9
Logfile results/logs/a.log:
===========================
[{stamp}]
Error in rule evaluate:
    jobid: 0
    output: results/quoted.json
===========================
Trying to restart job 4.
[{stamp}]
Error in rule sample:
    jobid: 5
    output: results/there.json
    log: results/logs/none.log (check log file(s) for error details)
3 of 12 steps (25%) done
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stamp = datetime.fromtimestamp(time.time() - 120).strftime(STAMP)
    write(tmp_path / ".snakemake/log/1.snakemake.log", LOG.format(stamp=stamp, folder=tmp_path))
    write(tmp_path / "results/logs/a.log", "the command\n" + "".join(f"line {n}\n" for n in range(9)) + "error: no space\n")
    write(tmp_path / "results/there.json", "{}")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def section(page: str, title: str) -> list[str]:
    return next(part for part in page.split("\n\n") if part.startswith(title + "\n")).splitlines()[1:]


def page(folder: Path) -> str:
    return status.page(folder, folder / "results")


def test_failures_are_read_from_snakemakes_log_and_not_from_what_it_quotes(folder: Path) -> None:
    first, second = status.failures(folder / ".snakemake/log/1.snakemake.log")
    assert (first.rule, first.job, first.outputs) == ("evaluate", "9", ("results/a.json", "results/b.json"))
    assert first.logs == ("results/logs/a.log", f"{folder}/results/logs/slurm/9.log")
    assert time.time() - first.when == pytest.approx(120, abs=5)
    assert (second.rule, second.job) == ("sample", "")


def test_what_failed_is_shown_with_the_end_of_its_log_until_its_output_is_there(folder: Path) -> None:
    lines = section(page(folder), "failed lately")
    assert lines[0].startswith("  evaluate (job 9), 2:0")
    assert [line.strip() for line in lines[1:]] == [
        "results/logs/a.log",
        "line 5",
        "line 6",
        "line 7",
        "line 8",
        "error: no space",
    ]
    for name in ("a", "b"):
        write(folder / f"results/{name}.json", "{}")
    assert section(page(folder), "failed lately") == ["  -"]


def lease(folder: Path, **holder: Any) -> None:
    known = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "host": socket.gethostname(),
        "since": time.time(),
        "slurm_job": None,
    }
    write(folder / ".snakemake/.head.lease", json.dumps(known | holder))


def test_a_head_is_alive_by_its_process_its_job_or_its_heart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def head() -> str:
        return section(page(folder), "head")[0].strip()

    assert head() == "none"
    assert section(page(folder), "head")[1].startswith("  3 of 12 steps (25%) done; last said something 0:0")
    lease(folder)
    assert head().startswith(f"process {os.getpid()} on {socket.gethostname()}, since ")
    lease(folder, since=psutil.Process().create_time() - 100)
    assert head().startswith("none; the last one was killed"), "the number is another process's by now"
    lease(folder, host="another-node")
    assert head().startswith("process")
    os.utime(folder / ".snakemake/.head.lease", (0, 0))
    assert head().startswith("none; the last one was killed")


def test_jobs_of_the_folder_run_and_wait(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f"5|x_uuid|RUNNING|gpu1|1:00|9:00|None|rule_train_generator_wildcards_tiny_30|{folder}",
        f"6|x_uuid|PENDING||0:00|9:00|Priority|rule_evaluate|{folder}",
        f"7|drifting-0123-head|RUNNING|cpu1|1:00|9:00|None|(null)|{folder}",
        f"8|x_uuid|RUNNING|gpu1|1:00|9:00|None|rule_evaluate|{folder}/elsewhere",
    ]
    write(tmp_path / "bin/squeue", "#!/bin/sh\ncat <<END\n" + "\n".join(rows) + "\nEND\n")
    (tmp_path / "bin/squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert [line.split() for line in section(page(folder), "running")] == [
        ["job", "5", "train_generator", "tiny_30", "gpu1", "running", "1:00", "used,", "9:00", "left"],
        ["job", "7", "drifting-0123-head", "cpu1", "running", "1:00", "used,", "9:00", "left"],
    ]
    assert section(page(folder), "waiting") == ["  job 6   evaluate   Priority"]
    write(tmp_path / "bin/squeue", "#!/bin/sh\necho no controller >&2; exit 1\n")
    assert "SLURM does not say what runs: squeue failed: no controller" in page(folder)


def metrics(path: Path, *steps: int, partly: str = "") -> None:
    spent = {"seconds": 30.0, "images_per_second": 12.5}
    write(path, "".join(json.dumps({"step": step, "loss": 1.0, "time": spent}) + "\n" for step in steps) + partly)


def test_how_far_trainings_and_claims_are(folder: Path, demo_values: dict[str, Any]) -> None:
    config, results = load(demo_values), folder / "results"
    name, encoder = config.key("run"), config.key("encoder")
    record = {"kind": "run", "configuration": "0" * 64, "code": "0.1.0"}
    write(results / f"runs/{name}/config.json", json.dumps(record | {"values": demo_values}))
    metrics(results / f"runs/{name}/metrics.jsonl", 90, 100, partly='{"step": 110, "lo')
    metrics(results / f"encoders/{encoder}/metrics.jsonl", 50)
    write(results / f"encoders/{encoder}/trained.json", "{}")
    metrics(results / "encoders/of_no_run-01234567/metrics.jsonl", 7)
    for path in (f"runs/{name}/exports/step_0/metadata.json", f"runs/{name}/eval/step_0/alpha_1/seed_1/n_9/metrics.json"):
        write(results / path, "{}")
    trainings = {line.split()[0]: " ".join(line.split()[1:]) for line in section(page(folder), "trainings")}
    left = "45:00"  # 900 steps, 10 in 30 s
    assert trainings[name].startswith(f"step 100 of 1,000 (10 %) 12.5 images/s {left} left 0:0")
    assert trainings[encoder].startswith(f"{config.encoder.training.steps:,} steps, done 12.5 images/s 0:0")
    assert trainings["of_no_run-01234567"].startswith("step 7 12.5 images/s 0:0")
    write(results / f"runs/{name}/exports/step_{config.training.steps}/metadata.json", "{}")
    assert "1,000 steps, done" in page(folder)
    [claim] = section(page(folder), "claims")
    assert " ".join(claim.split()).startswith(
        f"{name} 2 of {len(config.milestones)} exports 1 evaluations recommendation missing"
    )


def test_stubs_are_said_to_be_stubs(folder: Path, demo_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert page(folder).startswith("head")
    monkeypatch.chdir(folder)
    Layout(load(demo_values | {"stub": True})).mark_stubs()
    stubs = Path("stub/results")
    assert status.page(folder, stubs).startswith(
        "stubs\n  stub/results/STUBS says so: nothing below stub/results was computed"
    )
    assert page(folder).startswith("head")


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    assert [section(page(tmp_path), title) for title in ("running", "failed lately", "claims")] == [["  -"]] * 3
