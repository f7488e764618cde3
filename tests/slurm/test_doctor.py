"""The doctor on a cluster: what it says of partitions, limits and features is what SLURM's daemons do."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

from tests.slurm.conftest import SlurmSite, write_profile

pytestmark = pytest.mark.workflow
ONE_GPU = {"gpus": 1, "memory_mb": 1000, "runtime_minutes": 10}


def examined(site: SlurmSite, section: str = "training.resources", **asked: Any) -> subprocess.CompletedProcess[str]:
    site.configure(rehearsal=True, **{section: {**ONE_GPU, **asked}})
    return site.run("doctor.py", "--profile", str(site.profile), "--configfile", "config.yaml")


def test_a_run_that_fits_is_let_through(site: SlurmSite) -> None:
    done = examined(site)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "on cluster test; 0 of your jobs",
        "gpu is up, 2 of 2 nodes usable, at most 120 minutes",
        "cpu is up, 1 of 1 nodes usable, at most 1440 minutes",
        "account        not checked (",
        "kinds of job (sbatch --test-only)",
    ):
        assert said in done.stdout
    assert site.cluster.call("squeue", "--noheader") == ""


@pytest.mark.parametrize(("section", "asked", "said"), [
    ("training.resources", {"runtime_minutes": 121}, "at most 120 minutes, not 121 (canary_train, train_generator)"),
    ("training.resources", {"nodes": 4}, "2 nodes that each have 1 GPUs, 1 CPUs and 1000 MB, not 4"),
    ("evaluation.network.resources", {"gpus": 5}, "at most 4 GPUs a node, not 5"),
    ("data.latents.resources", {"memory_mb": 64_001}, "at most 64000 MB a node, not 64001 (encode_latents)"),
])  # fmt: skip
def test_what_would_wait_for_ever_is_found(site: SlurmSite, section: str, asked: dict[str, int], said: str) -> None:
    done = examined(site, section, **asked)
    assert done.returncode == 1
    assert f"FAIL  jobs           {section}: gpu has {said}" in done.stdout


def test_features_and_status_queries_that_this_cluster_lacks_are_found(site: SlurmSite) -> None:
    values = yaml.safe_load((site.profile / "config.yaml").read_text())
    write_profile(site.profile, **{"slurm-status-command": "sacct"})
    assert "the cluster keeps no accounts" in examined(site).stdout
    values["default-resources"]["constraint"] = "no_node_has_this"
    (site.profile / "config.yaml").write_text(yaml.safe_dump(values))
    done = examined(site)
    assert done.returncode == 1
    assert "allocation failure: Invalid feature specification; to try again: sbatch --test-only --partition=" in done.stdout
