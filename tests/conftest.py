"""What all tests share: the repository, the configurations, small stores."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from drifting_core.jobs import pool

# Small tensors on shared cores: one thread each is faster than two that wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
NO_SLURM = "no_slurm"  # folder that hides SLURM's clients


def until(true: Callable[[], object], seconds: float = 180) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def no_dead_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where SLURM's clients are installed and no controller answers, none of them is asked.

    Every start of Snakemake with its SLURM plugin asks scontrol, which tries for nine seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        if shutil.which("scontrol") and not _controller_answers():
            place = tmp_path_factory.mktemp(NO_SLURM)
            (place / "scontrol").write_text("#!/bin/sh\nexit 1\n")
            (place / "scontrol").chmod(0o755)
            patch.setenv("PATH", str(place), prepend=os.pathsep)
        yield


def _controller_answers() -> bool:
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=3).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(scope="session", autouse=True)
def pretended_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests pretend devices: they stand in no line with the jobs of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(pool.LEASES, str(tmp_path_factory.mktemp("leases")))
        yield


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The devices that a test takes are its own, and are given back."""
    monkeypatch.setattr(pool, "_held", [])
    before = {name: os.environ.get(name) for name in (pool.POOL, "CUDA_VISIBLE_DEVICES")}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """A StopRequest's handlers end with its test: processes forked later would inherit them and ignore Pool.terminate."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def demo_values() -> dict[str, Any]:
    """The demo's preset as parsed YAML, free to change."""
    return copy.deepcopy(yaml.safe_load((ROOT / "config" / "demo.yaml").read_text()))


# Files of unit tests that are not fast: they start processes and wait for them, or train for seconds.
WITH_PATIENCE = {
    f"test_{name}.py"
    for name in (
        "archives", "audit", "devices", "doctor", "drift_loss", "encoding_faults", "gpu", "heads", "latents", "leases",
        "neighbours", "parallel", "plan", "pool", "progress", "pruning", "ranks", "rates", "reference", "sampler",
        "survival", "toy", "training", "warm_start",
    )
}  # fmt: skip


def kind_of(item: pytest.Item) -> str | None:
    """The mark that a test has by where it stands: slurm, fast, or none (workflow and slow stand in the files)."""
    kind = item.path.relative_to(ROOT / "tests").parts[0]
    if kind == "slurm":
        return "slurm"
    others = any(item.get_closest_marker(name) for name in ("slow", "gpu", "internet"))
    return "fast" if kind == "unit" and item.path.name not in WITH_PATIENCE and not others else None


def group_of(file: str) -> str:
    """What `make test` keeps together in one of its processes: users of the cluster, a file."""
    return "slurm" if file.startswith("tests/slurm/") else file


def place_of(path: Path) -> int:
    """When a file's turn is: the walk and the cluster, which take longest, at once; what needs the walk when it is done."""
    room = path.parent.name
    if path.name == "test_walk.py":
        return 0
    if room == "slurm":
        return 2 if "walk: Walk" in path.read_text() else 1
    if room == "workflow":
        return 4 if "walk: Walk" in path.read_text() else 3
    return 3 if path.name in WITH_PATIENCE else 5


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: a gzip holds the second at which it was made, and the names of the tests
    must be the same in every process of `make test`."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks, and the order."""
    for item in items:
        if kind := kind_of(item):
            item.add_marker(kind)
    places = {path: place_of(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes of `make test` take whole groups. (xdist's own groups, by marks, do nothing under pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return Groups(config, log)


# Seconds that each kind of test may take in `make test` on two cores, over both of its processes; printed beside what it
# took, so that growth is seen.
BUDGETS = {"slow": 1500, "slurm": 600, "workflow": 1200, "fast": 60, "unit": 600}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    spent = dict.fromkeys(BUDGETS, 0.0)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                kind = next((name for name in BUDGETS if name in report.keywords), "unit")
                spent[kind] += report.duration
    terminalreporter.section("time by kind of test")
    for kind, seconds in spent.items():
        terminalreporter.write_line(f"{kind:<10}{seconds:6.0f} s of {BUDGETS[kind]} s")
