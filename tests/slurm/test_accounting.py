"""A cluster that keeps accounts: Snakemake asks sacct, which has a row for every attempt of every job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import SlurmSite, require_slurm, running_cluster, write_profile

pytestmark = pytest.mark.workflow

SNAKEFILE = """
rule stops_once:
    output: "stopped"
    resources: slurm_partition="cpu", mem_mb=lambda wildcards, attempt: 100 * attempt
    shell: "test -e state && touch {output} || (touch state; exit 75)"

rule goes_on:
    input: "stopped"
    output: "done"
    resources: slurm_partition="cpu"
    shell: "touch {output}"
"""


@pytest.fixture(scope="module")
def accounts() -> Iterator[Cluster]:
    require_slurm(accounting=True)
    with running_cluster(accounting=True) as made:
        yield made


def test_sacct_has_a_row_of_each_attempt(accounts: Cluster, tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    (folder / "Snakefile").write_text(SNAKEFILE)
    profile = write_profile(folder / "profile", {"slurm_account": "lab"}, **{"slurm-status-command": "sacct"})
    site = SlurmSite(folder, accounts, profile)
    done = site.plain("done")
    assert done.returncode == 0, done.stdout
    assert (folder / "done").is_file()
    rows = accounts.call("sacct", "-X", "-n", "-P", "--units=M", "-o", "Comment,State,ReqMem,Account").split()
    assert rows == [
        "rule_stops_once|FAILED|100M|lab", "rule_stops_once|COMPLETED|200M|lab", "rule_goes_on|COMPLETED|500M|lab",
    ]  # fmt: skip
