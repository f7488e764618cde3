"""Snakemake as users start it, in a folder of its own, on the tiny configuration (tests/data/tiny.yaml)."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock

from drifting_core import artifacts

ROOT = Path(__file__).resolve().parents[2]
TARGET = "results/claim_bundle.done"
STUB_TARGET = f"stub/{TARGET}"

# What a training leaves for readers: written by each of its jobs, no output of any.
RECORDS = {
    "env_snapshot.json": artifacts.EnvironmentSnapshot,
    "env_fingerprint.json": artifacts.EnvironmentFingerprint,
    "codebase_fingerprint.json": artifacts.CodebaseFingerprint,
    "latent_summary.json": artifacts.LatentSummary,
    "mae_summary.json": artifacts.EncoderSummary,
}


@dataclass
class Site:
    """A working folder with a configuration file of its own."""

    folder: Path

    def configure(self, file: str = "config.yaml", **changes: Any) -> Path:
        """Write the tiny configuration with dotted changes, e.g. `**{"training.steps": 60}`."""
        values = yaml.safe_load((ROOT / "tests/data/tiny.yaml").read_text())
        for dotted, value in changes.items():
            *sections, key = dotted.split(".")
            section = values
            for part in sections:
                section = section.setdefault(part, {})
            section[key] = value
        path = self.folder / file
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def command(self, *arguments: str, config: str = "config.yaml", profile: bool = True) -> list[str]:
        """What `make demo` runs, here: the launcher with Snakemake's arguments."""
        chosen = ["--profile", str(ROOT / "profiles/local")] if profile else ["--cores", "2"]
        return [
            sys.executable, str(ROOT / "workflow_scripts/run_workflow.py"), *chosen, "--snakefile", str(ROOT / "Snakefile"),
            *arguments, "--configfile", config,
        ]  # fmt: skip

    def snakemake(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, **how), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A script of workflow_scripts, by hand."""
        command = [sys.executable, str(ROOT / "workflow_scripts" / script), *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the workflow as the head of its own process group."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip

    def planned(self, *arguments: str, **how: Any) -> list[tuple[str, str]]:
        """(rule, output) of every job that a dry run would start."""
        done = self.snakemake("-n", *arguments, **how)
        assert done.returncode == 0, done.stdout
        return jobs_in(done.stdout)

    def finished(self) -> dict[Path, int]:
        """Outputs that Snakemake takes for done, with their modification times."""
        marks = self.folder / ".snakemake/incomplete"
        # The marker's name is the output's, in base64; long ones go over several folders that begin with @.
        names = [
            "".join(part.removeprefix("@") for part in mark.relative_to(marks).parts)
            for mark in marks.rglob("*")
            if mark.is_file()
        ]
        incomplete = {self.folder / base64.urlsafe_b64decode(name).decode() for name in names}
        outputs = [*self.folder.glob("results/**/*.json"), *self.folder.glob("results/**/*.done")]
        undeclared = {path for path in outputs if path.name in RECORDS or {"state", "vae"} & set(path.parts)}
        undeclared |= {path for path in outputs if "bundles" in path.parts and path.name != "claim_bundle.done"}
        declared = set(outputs) - undeclared
        return {path: path.stat().st_mtime_ns for path in declared - incomplete}

    def jobs(self) -> list[psutil.Process]:
        """Job processes that work in this folder, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if "workflow_scripts" in " ".join(process.cmdline()) and Path(process.cwd()) == self.folder:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def artifacts(self) -> dict[Path, dict[str, Any]]:
        """Every JSON that the workflow wrote, parsed."""
        paths = [*(self.folder / "results").rglob("*.json"), *(self.folder / "results").rglob("*.done")]
        return {path: json.loads(path.read_text()) for path in paths}


def jobs_in(output: str) -> list[tuple[str, str]]:
    """(rule, output) of every job that Snakemake says that it runs, or would run."""
    return re.findall(r"^(?:local)?rule (\w+):\n(?:    input: .*\n)?    output: ([^\s,]+)(?:, .*)?$", output, re.MULTILINE)


@dataclass
class Walk:
    """What happened on the way to the tiny claim bundle."""

    site: Site
    kills: list[str]
    repeated: list[str]
    output: str


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """A finished tiny run. The processes of `make test` share one, so that nobody changes it: work in a copy."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent
    folder, told = shared / "walked", shared / "walked.json"
    with FileLock(shared / "walked.lock"):
        if not told.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            told.write_text(json.dumps(_walk(Site(folder.resolve()))))
    return Walk(Site(folder.resolve()), **json.loads(told.read_text()))


def _walk(site: Site) -> dict[str, Any]:
    """The tiny configuration brought to its bundle through kill -9: three times everything, once the head alone."""
    site.configure()
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns() % 10**6)))
    print(f"KILL_SEED={seed}")
    random = Random(seed)
    kills, repeated = [], []
    before: dict[Path, int] = {}

    def note_repeats() -> None:
        now = site.finished()
        repeated.extend(str(path) for path, stamp in before.items() if path in now and now[path] != stamp)

    for kill in ("all", "all", "head", "all"):
        head = site.start(TARGET)
        if not _wait(head, random.uniform(4, 12)):
            break
        if kill == "head":
            _wait_for_job(site, head)
            head.send_signal(signal.SIGKILL)
        else:
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        kills.append(f"{kill} with {len(site.jobs())} job(s) left running")
        note_repeats()
        before = site.finished()
    done = site.snakemake(TARGET)
    assert done.returncode == 0, done.stdout
    note_repeats()
    return {"kills": kills, "repeated": repeated, "output": done.stdout}


def _wait(head: subprocess.Popen[str], seconds: float) -> bool:
    """True when the head still runs after `seconds`."""
    try:
        head.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _wait_for_job(site: Site, head: subprocess.Popen[str]) -> None:
    """A head is killed alone only where it leaves something behind."""
    for _ in range(200):
        if any(process.ppid() == head.pid for process in site.jobs()):
            return
        time.sleep(0.05)
