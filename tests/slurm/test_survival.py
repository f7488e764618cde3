"""A training slice that SLURM ends early goes on where it was, and ends with the bytes of one that nothing happened to."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import until
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import SlurmSite, write_profile
from tests.workflow.conftest import Site

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

STEPS = 1200
TWO_GPUS = ("gpus: 1\n", "gpus: 2\n")
NEED = {"gpus": 1, "memory_mb": 1000, "runtime_minutes": 10}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with everything that the training reads, and its export's name."""
    site = Site(tmp_path_factory.mktemp("prepared").resolve())
    site.configure(**{
        "training.steps": STEPS, "training.milestone_every": STEPS, "training.commit_every": 200, "training.log_every": 20,
        "training.resources": NEED, "evaluation.selection.last_k": 1, "rehearsal": True, "devices": ["0", "1"],
    })  # fmt: skip
    [(_, config)] = [job for job in site.planned("results/claim_bundle.done") if job[0] == "record_run"]
    run = str(Path(config).parent)
    done = site.snakemake(f"{run}/exports/step_0/metadata.json")
    assert done.returncode == 0, done.stdout
    return site.folder, f"{run}/exports/step_{STEPS}/metadata.json"


@pytest.fixture(scope="module")
def undisturbed(prepared: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_undisturbed(prepared, tmp_path_factory)


def train_undisturbed(prepared: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory, *changed: str) -> Path:
    """The run's folder after the same training, with no cluster and no limit; `changed`: old and new text of its file."""
    folder = tmp_path_factory.mktemp("undisturbed").resolve() / "site"
    shutil.copytree(prepared[0], folder)
    if changed:
        change(folder, *changed)
    done = Site(folder).snakemake(prepared[1])
    assert done.returncode == 0, done.stdout
    return run_of(folder, prepared[1])


def run_of(folder: Path, export: str) -> Path:
    return folder / Path(export).parents[2]


@pytest.fixture
def site(slurm: Cluster, prepared: tuple[Path, str], tmp_path: Path) -> Iterator[SlurmSite]:
    folder = tmp_path.resolve() / "site"
    shutil.copytree(prepared[0], folder)
    limits_of_a_minute = {"slurm_extra": "'--signal=USR1@15'"}
    profile = write_profile(folder / "profile", limits_of_a_minute, retries=20)  # the machine may be slow
    yield SlurmSite(folder, slurm, profile)
    # Where a node fails, SLURM without control groups, as here, may leave the process behind that started the step.
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if Path(process.cwd()) == folder:
                process.kill()


class Writers(threading.Thread):
    """Looks all the time how many processes train."""

    def __init__(self, site: SlurmSite) -> None:
        super().__init__(daemon=True)
        self.site, self.most, self.over = site, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            training = [job for job in self.site.jobs() if "train_generator.py" in " ".join(job.cmdline()[:2])]
            self.most = max(self.most, len(training))


@contextmanager
def one_job_at_a_time(site: SlurmSite, processes: int) -> Iterator[None]:
    """`processes` of the training's script are one job."""
    writers = Writers(site)
    writers.start()
    try:
        yield
    finally:
        writers.over.set()
        writers.join()
    assert writers.most == processes


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"time": None} for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_ends_alike(
    site: SlurmSite, export: str, undisturbed: Path, disturb: Callable[[str], None] | None = None, processes: int = 1
) -> list[str]:
    """Train on the cluster, with `disturb` called with the job's number in mid-training; the states of its attempts."""
    run = run_of(site.folder, export)
    with one_job_at_a_time(site, processes):
        head = site.start(export)
        try:
            if disturb:
                until(lambda: (run / "metrics.jsonl").exists() and len(lines(run)) > 7, 120)
                disturb(site.cluster.call("squeue", "-h", "-t", "R", "-o", "%i").strip())
            assert head.wait(900) == 0, (site.folder / "head.log").read_text()
        finally:
            head.kill()
    state = f"state/step_{STEPS:08d}/state.safetensors"
    assert (run / state).read_bytes() == (undisturbed / state).read_bytes()
    assert lines(run) == lines(undisturbed)
    weights = f"exports/step_{STEPS}/model.safetensors"
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()
    jobs = [job for job in site.cluster.jobs() if job["WorkDir"] == str(site.folder)]
    return [job["JobState"] for job in jobs]


def logs(site: SlurmSite) -> str:
    return "".join(path.read_text() for path in sorted((site.folder / "results/logs/slurm").rglob("*.log")))


def test_a_slice_that_reaches_its_time_limit_goes_on(site: SlurmSite, prepared: tuple[Path, str], undisturbed: Path) -> None:
    states = assert_ends_alike(limited(site), prepared[1], undisturbed)
    assert states[-1] == "COMPLETED"
    assert states[:-1] == ["FAILED"] * (len(states) - 1), "each attempt before ended by itself, with exit code 75"
    assert len(states) > 1
    assert "stopped: signal SIGUSR1; committed at step" in logs(site)


def limited(site: SlurmSite) -> SlurmSite:
    change(site.folder, "runtime_minutes: 10", "runtime_minutes: 1")
    return site


def change(folder: Path, old: str, new: str) -> None:
    config = folder / "config.yaml"
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))


def test_a_slice_whose_node_fails_goes_on(site: SlurmSite, prepared: tuple[Path, str], undisturbed: Path) -> None:
    def fail(job: str) -> None:
        node = site.cluster.call("squeue", "-h", "-j", job, "-o", "%N").strip()
        site.cluster.call("scontrol", "update", f"nodename={node}", "state=DOWN", "reason=test")
        until(lambda: "PENDING" in site.cluster.call("squeue", "-h", "-j", job, "-o", "%T"), 120)
        # Where its daemon has said that it is well, SLURM has taken it back already, and refuses this.
        site.cluster.call("scontrol", "update", f"nodename={node}", "state=RESUME", check=False)
        until(lambda: f"{node} idle" in site.cluster.sinfo())

    states = assert_ends_alike(site, prepared[1], undisturbed, fail)
    assert states == ["NODE_FAIL", "COMPLETED"]


def test_a_preempted_slice_goes_on(site: SlurmSite, prepared: tuple[Path, str], undisturbed: Path) -> None:
    def preempt(job: str) -> None:
        urgent = site.cluster.call(
            "sbatch", "--parsable", "-p", "urgent", "-N2", "--gpus-per-node=4", "--mem=1000", "-o", "/dev/null",
            "--wrap", "sleep 5",
        ).strip()  # fmt: skip
        until(lambda: "PENDING" in site.cluster.call("squeue", "-h", "-j", job, "-o", "%T"), 120)
        until(lambda: not site.cluster.call("squeue", "-h", "-j", urgent, "-o", "%T"), 120)

    states = assert_ends_alike(site, prepared[1], undisturbed, preempt)
    assert states == ["PREEMPTED", "COMPLETED"]


def test_a_slice_of_two_ranks_that_reaches_its_limit_goes_on(
    site: SlurmSite, prepared: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    change(site.folder, *TWO_GPUS)
    alone = train_undisturbed(prepared, tmp_path_factory, *TWO_GPUS)
    states = assert_ends_alike(limited(site), prepared[1], alone, processes=3)  # the launcher is one of them
    assert (states[-1], set(states[:-1])) == ("COMPLETED", {"FAILED"})
    assert "world size 2: 1 node(s) of 2 ranks, started by srun" in logs(site)
    assert "stopped: signal SIGUSR1; committed at step" in logs(site)
