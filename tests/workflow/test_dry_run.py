"""`snakemake -n` as an audit: every preset, on a machine with no data, no GPU, no torch, no scheduler."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from drifting_core.config import load_file
from drifting_core.doctor.profile import asks, read_profile
from drifting_core.planning.report import make_plan
from tests.workflow.conftest import ROOT, TARGET, Site, Walk

pytestmark = pytest.mark.workflow
PRESETS = ("demo", "smoke", "ablation", "b2", "l2", "cifar10", "own_images")
BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "h5py", "diffusers"):
            raise ImportError(f"{name} is not there in this test")
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which torch, h5py and diffusers cannot be imported."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "absent")}


def snakemake(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_environment_is_really_bare(bare: dict[str, str]) -> None:
    for name in ("torch", "h5py", "diffusers"):
        assert subprocess.run([sys.executable, "-c", f"import {name}"], env=bare, capture_output=True).returncode != 0


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_is_printed_with_nothing_there(preset: str, bare: dict[str, str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    file = ROOT / f"config/{preset}.yaml"
    target = f"{load_file(file).root}/claim_bundle.done"
    done = snakemake("-n", target, "--snakefile", str(ROOT / "Snakefile"), "--configfile", str(file), cwd=site, env=bare)
    assert done.returncode == 0, done.stdout
    for rule in ("check_archives", "encode_latents", "train_encoder", "train_generator", "audit_neighbours", "make_bundle"):
        assert f"rule {rule}:" in done.stdout
    assert [path.name for path in site.iterdir() if path.name != ".snakemake"] == []


def test_the_plan_takes_at_most_twice_the_time_of_an_empty_one(bare: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "Snakefile").write_text("rule all:\n    output:\n        'x',\n    shell:\n        'touch x'\n")
    plans = {
        "empty": ("-n",),
        "l2": ("-n", TARGET, "--snakefile", str(ROOT / "Snakefile"), "--configfile", str(ROOT / "config/l2.yaml")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(5):
        for name, arguments in plans.items():
            began = time.perf_counter()
            assert snakemake(*arguments, cwd=empty, env=bare).returncode == 0
            seconds[name].append(time.perf_counter() - began)
    ratio = statistics.median(seconds["l2"]) / statistics.median(seconds["empty"])
    print(f"\nmedian of 5: l2 {statistics.median(seconds['l2']):.2f} s, empty {statistics.median(seconds['empty']):.2f} s")
    assert ratio <= 2.0, seconds


PROFILE = """
executor: slurm
jobs: 10
default-resources: {slurm_partition: gpu, cpu_partition: cpu, gpu_type: h200, nodes: 1, mem_mb: 4000, runtime: 60}
set-resources: {sample: {slurm_partition: short, runtime: 30}}
"""


@pytest.mark.parametrize(("preset", "change"), [
    ("demo", None), ("released_l2", None), ("ablation", "encoder={source: released:mae_latent_256}"),
    ("ablation", "training={resources: {nodes: 2, gpus: 4}}"), ("released_l2", "evaluation={resources: {gpus: 4}}"),
])  # fmt: skip
def test_the_doctor_knows_what_each_job_asks_for(
    preset: str, change: str | None, bare: dict[str, str], tmp_path: Path
) -> None:
    """Of every rule that is submitted."""
    (tmp_path / "config.yaml").write_text(PROFILE)
    path, overrides = ROOT / f"config/{preset}.yaml", [change] if change else []
    arguments = ["-n", TARGET, "--profile", str(tmp_path), "--cores", "1000", "--snakefile", str(ROOT / "Snakefile")]
    arguments += ["--configfile", str(path), *(["--config", *overrides] if overrides else [])]
    done = snakemake(*arguments, cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stdout
    found: dict[str, tuple[int | str, ...]] = {}
    for rule, text in re.findall(r"^rule (\w+):\n((?:    .*\n)+)", done.stdout, re.MULTILINE):
        threads = re.search(r"^    threads: (\d+)$", text, re.MULTILINE)
        [line] = re.findall(r"^    resources: (.*)$", text, re.MULTILINE)
        of = dict(each.partition("=")[::2] for each in line.split(", "))
        gpus = int(of.get("gres", of.get("gpu", "0")).rpartition(":")[2])
        wanted = (gpus, int(threads[1]) if threads else 1, int(of["mem_mb"]), int(of["runtime"]), int(of["nodes"]))
        found[rule] = (*wanted, of["slurm_partition"])
    files = "".join(path.read_text() for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")))
    local = {
        rule for block in re.findall(r"^localrules:\n((?:    \w+,\n)+)", files, re.MULTILINE) for rule in block.split(",\n")
    }
    known = {each.rule: each[2:8] for each in asks(load_file(path, overrides), read_profile(str(tmp_path)))}
    assert known == {rule: job for rule, job in found.items() if rule not in {name.strip() for name in local}}


@pytest.mark.parametrize("profile", ["local", "slurm", "profiles/local"])
def test_profiles_are_found_by_their_short_names(profile: str, bare: dict[str, str]) -> None:
    done = snakemake("--profile", profile, "-n", TARGET, cwd=ROOT, env=bare)
    assert done.returncode == 0, done.stdout


def test_overrides_reach_the_configuration_as_strings(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure()
    done = site.snakemake("-n", TARGET, "--config", "training={steps: 90}")
    assert done.returncode == 0, done.stdout
    assert "exports/step_90/metadata.json" in done.stdout


def test_all_configuration_errors_come_before_the_plan(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(**{"training.stesp": 7, "encoder.colour": "red", "generator.depth": "deep"})
    done = site.snakemake("-n", TARGET)
    assert done.returncode != 0
    for said in (
        "configuration has 3 problem(s)",
        "training.stesp: unknown key; did you mean 'steps'?",
        "encoder.colour: unknown key; known keys here: augmentation",
        "generator.depth: found 'deep'",
    ):
        assert said in done.stdout
    assert "Traceback" not in done.stdout


def test_demo_yaml_is_not_below_other_presets(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "results", ".snakemake", ".*_cache", ".hypothesis")
    )
    arguments = ("-n", TARGET, "--configfile", "config/l2.yaml")
    before = snakemake(*arguments, cwd=copy)
    with (copy / "config/demo.yaml").open("a") as file:
        file.write("bogus: 1\n")
    after = snakemake(*arguments, cwd=copy)
    assert before.returncode == after.returncode == 0, after.stdout
    bundle = next(line for line in before.stdout.splitlines() if "bundles/l2-" in line)
    assert bundle in after.stdout
    default = snakemake("-n", cwd=copy)
    assert default.returncode != 0
    assert "bogus: unknown key" in default.stdout


def test_a_missing_archive_is_said_by_the_first_job(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(**{"data.pack": None, "data.md5.train": "1d675b47d978889d74fa0da5fadfb00e"})
    done = site.snakemake(TARGET)
    assert done.returncode != 0
    assert "results/archives/photos/train.tar" in done.stdout
    assert "1d675b47d978889d74fa0da5fadfb00e" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_folder_that_is_no_tokenizer_is_said_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "not_a_vae").mkdir()
    (tmp_path / "not_a_vae/config.json").write_text("{}")
    site = Site(tmp_path)
    site.configure(**{"tokenizer.source": "folder", "tokenizer.folder": "not_a_vae", "tokenizer.training": None})
    done = site.snakemake(TARGET, "--until", "make_tokenizer", "index_archives", "--keep-going")
    assert done.returncode != 0
    assert "not_a_vae: not a tokenizer" in done.stdout
    assert "Traceback" not in done.stdout
    assert list((tmp_path / "results/data").glob("*/index.json"))


def test_the_plan_says_what_is_there_and_why_the_rest_would_run(walk: Walk, tmp_path: Path) -> None:
    """Of a finished site: nothing would run, nothing is added. Then a lost file and a changed choice, as `-n` has them."""
    site = Site(tmp_path / "copy")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    preset = site.folder / "config.yaml"
    local = str(ROOT / "profiles/local")

    done = make_plan(preset, [], site.folder, (1,), local, None)
    counts = {stage: of["there"] for stage, of in done["jobs"].items()}
    assert not any(of["to_run"] for of in done["jobs"].values())
    assert counts["generator"] > counts["encoder"] > 0
    assert (done["disk"]["systems"][0]["adds"], done["disk"]["systems"][0]["peak"]) == ({"bytes": 0, "files": 0}, 0)

    [lost] = site.folder.glob("results/runs/*/tables/last_k.json")
    lost.unlink()
    change = "evaluation={selection: {tie_errors: 3.0}}"
    partly = make_plan(preset, [change], site.folder, (1,), local, None)
    rules = {rule: count for of in partly["jobs"].values() for rule, count in of["rules"].items()}
    assert rules == Counter(rule for rule, _ in site.planned(TARGET, "--config", change))
    assert partly["jobs"]["evaluation"]["why"]["missing output"] == 1
    assert partly["jobs"]["selection"]["why"]["params changed"] == 1
    now = {stage: of["there"] + of["to_run"] for stage, of in partly["jobs"].items()}
    assert now == counts


def test_an_unrelated_preset_reruns_nothing(tmp_path: Path) -> None:
    copy, site = tmp_path / "copy", Site(tmp_path / "site")
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "results", ".snakemake", ".*_cache", ".hypothesis")
    )
    site.folder.mkdir()
    preset = site.configure()
    record = f"results/runs/{load_file(preset).key('run')}/config.json"
    arguments = (record, "--snakefile", str(copy / "Snakefile"), "--configfile", "config.yaml")
    made = snakemake("--cores", "1", *arguments, cwd=site.folder)
    assert made.returncode == 0, made.stdout
    for name in ("demo", "l2"):
        path = copy / f"config/{name}.yaml"
        path.write_text(path.read_text().replace("learning_rate: ", "learning_rate: 1"))
    assert "Nothing to be done" in snakemake("-n", *arguments, cwd=site.folder).stdout
