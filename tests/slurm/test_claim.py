"""`snakemake --profile slurm results/claim_bundle.done`, on a cluster."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from itertools import combinations
from typing import NamedTuple

import pytest

from tests.slurm.conftest import SlurmSite
from tests.workflow.conftest import TARGET, Walk

pytestmark = pytest.mark.workflow

ONE_GPU = {"gpus": 1, "memory_mb": 1000, "runtime_minutes": 10}


class Attempt(NamedTuple):
    """One row of SLURM's own record of ended jobs, and what the job's log says."""

    job: str
    rule: str  # and its wildcards
    state: str
    node: str
    start: datetime
    end: datetime
    gpus: tuple[str, ...]  # granted; none where the job asked for none

    def beside(self, other: Attempt) -> bool:
        """Whether both ran at the same time."""
        return self.start < other.end and other.start < self.end


def attempts(site: SlurmSite, results: str = "results") -> list[Attempt]:
    """Of all jobs of the folder."""
    found, logs = [], site.folder / results / "logs/slurm"
    for row in site.cluster.jobs():
        if row["WorkDir"] != str(site.folder):
            continue
        [log] = logs.rglob(f"{row['JobId']}.log")
        granted = re.search(r"with GPU (\S+) granted", log.read_text())
        found.append(
            Attempt(
                row["JobId"], str(log.parent.relative_to(logs)), row["JobState"], row["NodeList"],
                datetime.fromisoformat(row["StartTime"]), datetime.fromisoformat(row["EndTime"]),
                tuple(granted[1].split(",")) if granted else (),
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("begins", ["with latents and encoder", pytest.param("with archives", marks=pytest.mark.slow)])
def test_the_demo_reaches_its_claim_on_a_cluster(site: SlurmSite, begins: str, request: pytest.FixtureRequest) -> None:
    if begins == "with latents and encoder":
        walk: Walk = request.getfixturevalue("walk")
        shutil.copytree(walk.site.folder, site.folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(site.folder / "results/logs")
    site.configure(**{
        "name": "cluster", "rehearsal": True, "training.resources": ONE_GPU | {"gpus": 2}, "training.steps": 90,
        "encoder.resources": ONE_GPU, "evaluation.resources": ONE_GPU, "evaluation.selection.last_k": 3,
        "evaluation.selection.alphas": [1.5],
    })  # fmt: skip
    done = site.snakemake(TARGET)
    assert done.returncode == 0, done.stdout
    assert (site.folder / TARGET).is_file()

    jobs = attempts(site)
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert len({job.rule for job in jobs}) == len(jobs), "one row per job"
    on_gpus = [job for job in jobs if job.gpus]
    assert len(on_gpus) > 10
    assert all(job.node.startswith("gpu") == bool(job.gpus) for job in jobs), "CPU jobs went to the other partition"
    beside = [(a, b) for a, b in combinations(on_gpus, 2) if a.node == b.node and a.beside(b)]
    assert beside, "no two ran at once, so that nothing was shown"
    assert not [(a, b) for a, b in beside if set(a.gpus) & set(b.gpus)]

    [evaluated] = [job for job in jobs if re.match("rule_evaluate/.*step_?30|rule_evaluate/.*_30_", job.rule)]
    slices = [job for job in jobs if job.rule.startswith("rule_train_generator")]
    assert any(evaluated.beside(job) for job in slices), "the first milestone was evaluated while training went on"
    assert all(len(job.gpus) == 2 for job in slices)
