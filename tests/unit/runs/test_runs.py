"""Runs, read from Python, in a table and side by side: numbers of unlike contracts never meet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import drifting_core
from drifting_core import artifacts
from drifting_core.faults import Fault
from drifting_core.jobs.job import run as run_script
from drifting_core.models.exports import write_export
from drifting_core.models.generator import Generator
from drifting_core.runs import comparing
from drifting_core.runs.reading import Run
from tests.unit.jobs.test_leases import hold
from tests.unit.runs.samples import configured, write, write_claim, write_evaluation, write_run
from workflow_scripts import runs

OTHER = {"objective.alpha": {"power": 4.0}, "training.steps": 750}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A claimed run, and one of another alpha law that was stopped at step 500."""
    results = tmp_path / "results"
    first = write_run(configured(results))
    write_claim(first)
    write(results / "bundles" / first.name / "claim_bundle.done", 10)
    second = write_run(configured(results, **OTHER), (0, 250, 500))
    write_evaluation(second, 250, distance=7.0)
    return results


def named(results: Path) -> tuple[Run, Run]:
    first, second = configured(results), configured(results, **OTHER)
    return tuple(drifting_core.open_run(results / "runs" / each.key("run")) for each in (first, second))  # type: ignore[return-value]


ARCHITECTURE = {
    "input_size": 8, "channels": 4, "patch_size": 4, "hidden_size": 32, "depth": 1, "num_heads": 2, "cond_dim": 16,
    "num_classes": 3, "in_context_tokens": 2, "style_tables": 4, "style_entries": 8,
}  # fmt: skip


def write_weights(metadata: Path) -> None:
    contract = artifacts.LatentContract(
        tokenizer_sha256="a" * 64, scaling_factor=1.0, posterior="mean", views=["image"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    weights = Generator(**ARCHITECTURE).state_dict()
    write_export(
        metadata, "generator", weights, ARCHITECTURE, step=500, ema_decay=0.9, latents=contract, configuration="0" * 64,
        inputs={},
    )  # fmt: skip


def test_a_run_is_read_in_three_lines(results: Path) -> None:
    folder = named(results)[0].folder
    run = drifting_core.open_run(folder)
    assert [line["step"] for line in run.metrics()] == list(range(100, 1001, 100))
    assert [(row["of"], row["step"]) for row in run.evaluations()][-2:] == [("selection", 1000), ("claim", 1000)]
    assert [(row["distance"], row["seed"], row["samples"]) for row in run.claim()] == [(8.0, 1000, 1000)]
    assert run.configuration.training.steps == 1000
    write_weights(folder / "exports/step_500/metadata.json")
    assert isinstance(run.generator(500), Generator)
    with pytest.raises(Fault, match=r"no export of step 77; choose one of \[0, 250, 500, 750, 1000\]"):
        run.generator(77)
    with pytest.raises(Fault, match=f"no config.json, so no run; name one of those beside it: .*{run.name}"):
        drifting_core.open_run(folder.with_name("demo"))


def test_a_line_that_is_being_written_is_not_read_and_a_broken_one_is_said(results: Path) -> None:
    run, _ = named(results)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11')
    assert run.metrics()[-1]["step"] == 1000
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(Fault, match="line 11 is no JSON"):
        run.metrics()


def test_opening_a_run_imports_nothing_heavy(results: Path) -> None:
    code = "import sys, drifting_core\nrun = drifting_core.open_run(sys.argv[1])\n"
    code += "run.metrics(), run.claim(), run.configuration\n"
    code += "print([name for name in ('torch', 'numpy', 'h5py') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, named(results)[0].folder], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_table_says_where_each_run_stands(results: Path) -> None:
    first, second = named(results)
    one, other = (comparing.summary(each, first) for each in (first, second))
    assert (one["state"], one["step"], one["horizon"], one["differences"]) == ("claimed", 1000, 1000, {})
    assert (other["state"], other["step"], other["horizon"]) == ("stopped", 500, 750)
    assert other["differences"] == {"objective.alpha.power": 4.0, "training.steps": 750}
    assert (one["number"]["of"], one["number"]["distance"], one["number"]["seeds"]) == ("claim", 8.0, [1000])
    assert (other["number"]["of"], other["number"]["step"]) == ("selection", 500)
    assert (one["hours"], one["gpu_hours"]) == (pytest.approx(0.1), 0)
    assert one["disk_bytes"] > 50_000
    holder = hold(second.folder, 60)
    try:
        assert second.state == "training"
    finally:
        holder.kill()
        holder.wait()


def test_numbers_of_unlike_contracts_stand_in_tables_of_their_own(results: Path) -> None:
    first, second = named(results)
    lines = comparing.table([comparing.summary(each, first) for each in (first, second)])
    titles = [line for line in lines if line.startswith("FD under contract")]
    assert sorted(title.split(", ")[-1] for title in titles) == ["1,000 samples)", "500 samples)"]
    assert lines[-1] == f"{second.name} differs from {first.name} in objective.alpha.power=4.0, training.steps=750"
    write_claim(second.folder, step=500, distance=9.5)
    lines = comparing.table([comparing.summary(each, first) for each in (first, second)])
    assert len([line for line in lines if line.startswith("FD under contract")]) == 1


def test_two_runs_side_by_side(results: Path) -> None:
    first, second = named(results)
    write_claim(second.folder, step=500, distance=9.5, network_sha256="e" * 64)
    write_evaluation(second.folder, 750, distance=5.0, uint8="round")  # under a contract that the other has none of
    compared = comparing.compare(first, second)
    assert compared["differences"] == {"objective.alpha.power": [3.0, 4.0], "training.steps": [1000, 750]}
    [table] = compared["tables"]
    assert table["of"] == "selection"
    assert [(row["step"], *row["distance"]) for row in table["rows"]] == [
        (0, 9.0, 9.0), (250, 9.0, 7.0), (500, 9.0, 9.0), (750, 9.0, None), (1000, 9.0, None),
    ]  # fmt: skip
    [apart] = compared["apart"]
    assert (apart["of"], apart["differing"]) == ("claim", ["network_sha256"])
    lines = comparing.comparison(compared)
    assert lines[-1] == "claim: their contracts differ in network_sha256, so their numbers share no table"
    assert not any("9.5" in line for line in lines)


def test_what_is_printed_as_json_is_what_is_computed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = named(results)
    both = [str(part) for part in ("--results", results)]
    assert run_script(runs.main, [*both, "--json"]) == 0
    held = sorted((first, second), key=lambda each: each.name)
    assert json.loads(capsys.readouterr().out) == [comparing.summary(each, held[0]) for each in held]
    assert run_script(runs.main, [*both, "--json", "--compare", first.name, second.name]) == 0
    assert json.loads(capsys.readouterr().out) == comparing.compare(first, second)
    assert run_script(runs.main, [*both, "--compare", first.name, second.name]) == 0
    assert "objective.alpha.power" in capsys.readouterr().out


def test_a_run_that_cannot_be_read_is_left_out_and_said(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = named(results)
    (second.folder / "config.json").write_text("{}")
    assert [each.name for each in comparing.runs_of(results)] == [first.name]
    assert f"{second.folder} is left out: " in caplog.text
