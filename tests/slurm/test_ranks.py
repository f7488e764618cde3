"""Ranks of one node and of several, started by srun in a job that Snakemake submitted, end with one process's weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import SlurmSite
from tests.unit.training import test_ranks
from tests.unit.training.samples import write_store

pytestmark = pytest.mark.workflow

SNAKEFILE = """
import json, sys
from drifting_core import config as settings
from drifting_core.workflow.slurm import requested_ranks
from drifting_core.jobs.pool import REHEARSAL

os.environ[REHEARSAL] = "1"
CASES = {cases}

for name, asked in CASES.items():
    rule:
        name: name
        output: f"{name}/done"
        log: f"{name}/log"
        threads: settings.Resources(**asked).cores
        resources: **requested_ranks(settings.Resources(**asked), {"gpu_type": "h200"})
        params: asked=json.dumps(asked), start=f"{sys.executable} -m tests.unit.training.launched_ranks", folder=name
        shell: "{params.start} {params.folder} {params.asked:q} --log {log} && touch {output}"
"""
CASES = {"two_nodes": {"nodes": 2, "gpus": 2}, "one_node": {"gpus": 4}}


alone, configuration = test_ranks.alone, test_ranks.configuration  # fixtures


def test_ranks_of_srun_end_with_the_weights_of_one_process(
    site: SlurmSite, alone: Path, configuration: dict[str, Any]
) -> None:
    (site.folder / "Snakefile").write_text(SNAKEFILE.replace("{cases}", json.dumps(CASES)))
    for name in CASES:
        write_store(site.folder / name / "store")
        (site.folder / name / "configuration.json").write_text(json.dumps(configuration))
    done = site.plain(*(f"{name}/done" for name in CASES))
    assert done.returncode == 0, done.stdout
    nodes = {job["NodeList"] for job in site.cluster.jobs()}
    assert {"gpu[1-2]"} < nodes, nodes
    for name, asked in CASES.items():
        text = (site.folder / name / "log").read_text()
        assert f"world size 4: {asked.get('nodes', 1)} node(s) of {asked['gpus']} ranks, started by srun" in text
        assert re.search(r"with GPU 0,1(,2,3)? granted", text), text
        for case in test_ranks.CASES:
            if case.dtype == "float64":
                test_ranks.assert_same(case, site.folder / name, configuration, alone)
