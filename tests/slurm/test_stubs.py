"""Stub mode at the width of the paper's run, on a cluster."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml

from tests.slurm.conftest import SlurmSite
from tests.slurm.test_claim import attempts
from tests.workflow.conftest import ROOT, STUB_TARGET

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def fitted(values: dict[str, Any]) -> dict[str, Any]:
    """A preset whose jobs fit a node of the test cluster."""
    for name, value in values.items():
        if name == "resources":
            value |= {"threads": 2, "gpus": min(value.get("gpus", 0), 4), "memory_mb": 2000, "runtime_minutes": 60}
        elif isinstance(value, dict):
            fitted(value)
    return values


def test_the_whole_l2_goes_through_a_cluster_as_stubs(site: SlurmSite) -> None:
    values = fitted(yaml.safe_load((ROOT / "config/l2.yaml").read_text()))
    (site.folder / "l2.yaml").write_text(yaml.safe_dump(values | {"stub": True}, sort_keys=False))
    began = time.monotonic()
    done = site.snakemake(STUB_TARGET, "--slurm-logdir", "stub/results/logs/slurm", config="l2.yaml")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout
    assert (site.folder / STUB_TARGET).is_file()
    assert not (site.folder / "results").exists()

    jobs = attempts(site, "stub/results")
    print(f"{len(jobs)} jobs in {seconds:.0f} s")
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert {len(job.gpus) for job in jobs if job.rule.startswith("rule_train_")} == {4}
    assert {len(job.gpus) for job in jobs if job.rule.startswith("rule_encode_latents")} == {1}
    assert seconds < 15 * 60
