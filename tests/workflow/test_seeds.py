"""Training seeds in the workflow: they share everything but the run, and a seed that is added later costs its own run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from drifting_core import config as settings
from drifting_core.artifacts import SeedsTable
from tests.workflow.conftest import Site, Walk

pytestmark = pytest.mark.workflow
OF_A_RUN = {
    "record_run", "train_generator", "canary_train", "canary_sample", "canary_evaluate", "canary", "sample", "evaluate",
    "tabulate", "recommend", "sample_claim", "evaluate_claim",
}  # fmt: skip


def runs(planned: list[tuple[str, str]]) -> set[str]:
    return {Path(output).parts[2] for _, output in planned if output.startswith("results/runs/")}


def test_seeds_share_everything_but_the_run(tmp_path: Path) -> None:
    site = Site(tmp_path)
    alone = site.configure("alone.yaml", **{"seeds": [0]})
    site.configure(**{"seeds": [0, 1, 2]})
    one = site.planned("seeds", config="alone.yaml")
    three = site.planned("seeds")
    shared, again = ({job for job in jobs if job[0] not in {*OF_A_RUN, "tabulate_seeds"}} for jobs in (one, three))
    assert shared == again
    assert {"train_encoder", "encode_latents", "make_tokenizer", "make_reference"} <= {rule for rule, _ in shared}
    assert len(runs(three)) == 3
    assert runs(one) < runs(three)
    assert len([rule for rule, _ in three if rule in OF_A_RUN]) == 3 * len([rule for rule, _ in one if rule in OF_A_RUN])
    assert settings.load_file(alone).key("run") not in runs(three)  # 42, the preset's own, is not among the seeds


def test_a_seed_that_is_added_later_plans_its_own_run_only(walk: Walk) -> None:
    finished = settings.load_file(walk.site.folder / "config.yaml")
    planned = walk.site.planned("seeds", "--config", "seeds=[42,7]")  # 42: the walk's
    [added] = runs(planned)
    assert added != finished.key("run")
    assert {rule for rule, _ in planned} == {*OF_A_RUN, "tabulate_seeds"}
    for seeds in ("seeds=[7,42]", "seeds=['42','7']"):
        assert sorted(walk.site.planned("seeds", "--config", seeds)) == sorted(planned)


def test_the_table_of_a_finished_run_is_made_without_training(walk: Walk, tmp_path: Path) -> None:
    site = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    done = site.snakemake("seeds", "--config", "seeds=[42]")
    assert done.returncode == 0, done.stdout
    assert "rule train_generator" not in done.stdout
    [path] = (site.folder / "results/seeds").glob("tiny-*/table.json")
    table = SeedsTable.read(path)
    table.verify(path.parent)
    [claim] = (site.folder / "results/runs").glob("*/tables/claim.json")
    assert table.rows[0]["distance"] == json.loads(claim.read_text())["rows"][0]["distance"]
    assert "| FD | FD∞ | KD | DS |" in (path.parent / "table.md").read_text()
    # By its name from another configuration, as long as no known one compares these seeds: one message.
    asked = site.snakemake("-n", "results/seeds/tiny-01234567/table.json")
    assert asked.returncode != 0
    assert "no known configuration compares seeds as 'tiny-01234567'" in asked.stdout


def test_a_seeded_run_records_its_own_seed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    preset = site.configure(**{"seeds": [7]})
    [seeded] = settings.load_file(preset).seeded()
    record = f"results/runs/{seeded.key('run')}/config.json"
    assert site.snakemake(record).returncode == 0
    recorded = settings.load(json.loads((tmp_path / record).read_text())["values"])
    assert recorded == seeded
    # and is known by its name from any other configuration
    site.configure("other.yaml", name="other")
    assert site.planned(f"results/runs/{seeded.key('run')}/exports/step_0/metadata.json", config="other.yaml")


def test_no_seeds_is_one_message(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure()
    done = site.snakemake("-n", "seeds")
    assert done.returncode != 0
    assert "seeds: empty, so there is nothing to compare" in done.stdout
