"""The workflow as users start it on a cluster: `--profile`, jobs submitted, SLURM's daemons on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import NO_SLURM
from tests.slurm.cluster import Cluster, cluster, why_not
from tests.workflow.conftest import ROOT, Site
from tests.workflow.conftest import walk as walk

SHIM = Path(__file__).parent / "shim"


@dataclass
class SlurmSite(Site):
    """A working folder whose jobs go to a cluster."""

    cluster: Cluster
    profile: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of the head, which asks for the states of its jobs more often than usual."""
        return {**os.environ, "PYTHONPATH": f"{SHIM}:{ROOT}", "SECONDS_BETWEEN_POLLS": "0.5"}

    def command(self, *arguments: str, config: str = "config.yaml", profile: bool = True) -> list[str]:
        return [
            sys.executable, str(ROOT / "workflow_scripts/run_workflow.py"), "--profile", str(self.profile),
            "--snakefile", str(ROOT / "Snakefile"), *arguments, "--configfile", config,
        ]  # fmt: skip

    def snakemake(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, **how), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def plain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Snakemake itself, on a Snakefile of the folder's own."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", str(self.profile), *arguments], cwd=self.folder,
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        log = (self.folder / "head.log").open("a")
        return subprocess.Popen(
            self.command(*arguments, **how), cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip


def write_profile(folder: Path, site: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """The shipped profile as a user fills it in for the test cluster (`site` values), with intervals of tests."""
    values = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    values["default-resources"] |= {"cpu_partition": "cpu", "gpu_type": "h200", "mem_mb": 500, "runtime": 5} | (site or {})
    values |= {
        "slurm-init-seconds-before-status-checks": 1,
        "max-status-checks-per-second": 10,
        "latency-wait": 10,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def require_slurm(accounting: bool = False) -> None:
    """Skip with the reason, where no cluster can be started; fail where one must be (in CI)."""
    reason = why_not(accounting)
    if reason and "SLURM_REQUIRED" in os.environ:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@contextmanager
def running_cluster(accounting: bool = False) -> Iterator[Cluster]:
    """A cluster, and SLURM's clients on the path again (tests/conftest.py puts them away while there is no controller)."""
    with pytest.MonkeyPatch.context() as patch:
        path = [part for part in os.environ["PATH"].split(os.pathsep) if NO_SLURM not in part]
        patch.setenv("PATH", os.pathsep.join(path))
        with cluster(accounting) as made:
            yield made


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    require_slurm()
    with running_cluster() as made:
        yield made


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path) -> SlurmSite:
    folder = tmp_path.resolve()
    return SlurmSite(folder, slurm, write_profile(folder / "profile"))
