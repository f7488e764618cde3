"""Pruning: what goes and what stays, nothing without --yes, and a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drifting_core import artifacts
from drifting_core.faults import Fault
from drifting_core.housekeeping import pruned, pruning
from drifting_core.housekeeping.disk_use import measure
from drifting_core.housekeeping.keeping import KeepList, Known
from drifting_core.jobs.job import run as run_script
from drifting_core.jobs.leases import writer_lease
from tests.unit.evaluation.samples import MADE
from tests.unit.jobs.test_leases import hold
from tests.unit.runs.samples import configured, write, write_claim, write_evaluation, write_run, write_state
from workflow_scripts import prune


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished run with a bundle and what may pile up beside what it needs."""
    results = tmp_path / "results"
    config = configured(results)
    run = write_run(config)
    for step in (333, 444):  # no milestones; a bundle cites the first
        write(run / f"exports/step_{step}/metadata.json", 100)
        write(run / f"exports/step_{step}/model.safetensors")
        write_evaluation(run, step)
    write_evaluation(run, 500, alpha=3.0)  # in no table
    write(run / "samples/step_250/alpha_3/seed_1/n_500/latents.safetensors")  # not evaluated yet
    write(run / "samples/step_250/alpha_3/seed_1/n_500/manifest.json", 100)
    write_claim(run)
    write_state(run, 900)
    for name in ("damaged_step_00000800", "not_finite_00000700"):
        write(run / f"state/{name}/report.json")
    write(run / "canary/passed.json", 100)
    write(run / "canary/samples/latents.safetensors")
    write(run / "canary/samples/manifest.json", 100)
    write(run / "canary/eval/features.h5")
    images = run / "samples/step_500/alpha_1.5/seed_1/n_500/export"
    write(images / "png.done", 100)
    write(images / "png/n01/000001.png")
    write(run / f".metrics.jsonl.tmp.{os.uname().nodename}.{dead_process()}")
    write(run / f".metrics.jsonl.tmp.{os.uname().nodename}.{os.getpid()}")
    write(run / ".metrics.jsonl.tmp.elsewhere.1")
    write(results / "data" / config.key("data") / "latents/train/.shard_0.journal")
    write(results / "data" / config.key("data") / "latents/train/shard_0.json", 100)
    write(results / "data" / config.key("data") / "latents/train/.shard_1.journal")
    write(results / "encoders/old-00000000/export/model.safetensors")
    cited = (run / "exports/step_333/metadata.json").relative_to(results).as_posix()
    artifacts.Bundle(**MADE, inputs={cited: "0" * 64}, run=run.name, configuration_values={}).write(
        results / "bundles" / run.name / "manifest.json"
    )
    return results


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def found(results: Path, file: Path | None = None) -> list[pruning.Candidate]:
    return pruning.candidates(results, Known(results), KeepList(results, file))


def going(results: Path, *kinds: str) -> set[str]:
    """Of the default kinds, or these: the last path of each piece, below its run, or below the results."""
    pieces = pruned.chosen(found(results), kinds or pruning.DEFAULT)
    return {"/".join(piece.paths[-1].relative_to(results).parts[2:]) for piece in pieces}


def kept(results: Path, place: str, kind: str) -> str:
    [reason] = [each.kept for each in found(results) if each.kind == kind and each.paths[-1].as_posix().endswith(place)]
    assert reason
    return reason


def listing(folder: Path) -> dict[Path, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_what_goes_and_nothing_else(results: Path) -> None:
    sets = [f"samples/step_{step}/alpha_1.5/seed_1/n_500/latents.safetensors" for step in (0, 250, 333, 500, 750, 1000)]
    scratch = {path.name for path in results.glob("runs/*/.metrics*.tmp.*")}
    scratch = {name for name in scratch if not name.endswith((f".{os.getpid()}", ".elsewhere.1"))}
    assert len(scratch) == 1
    assert going(results) == scratch | {
        "state/step_00000900", "state/step_00000950", "state/damaged_step_00000800", "state/not_finite_00000700",
        "canary/samples/latents.safetensors", "canary/eval/features.h5", "exports/step_444", *sets,
        "samples/step_500/alpha_3/seed_1/n_500/latents.safetensors", "eval/step_500/alpha_3/seed_1/n_500/features.h5",
        "eval/step_333/alpha_1.5/seed_1/n_500/features.h5", "eval/step_444/alpha_1.5/seed_1/n_500/features.h5",
        "samples/step_500/alpha_1.5/seed_1/n_500/export/png", "latents/train/.shard_0.journal",
    }  # fmt: skip


def test_what_stays_says_why(results: Path) -> None:
    for place, kind, reason in (
        ("state/step_00001000", "states", "the newest state"),
        ("exports/step_250", "exports", "a milestone"),
        ("exports/step_333", "exports", "the bundle demo-"),
        ("step_250/alpha_3/seed_1/n_500/latents.safetensors", "samples", "not evaluated yet"),
        ("samples/step_444/alpha_1.5/seed_1/n_500/latents.safetensors", "samples", "could not be made again"),
        ("claim/seed_1000/samples/latents.safetensors", "samples", "the claim's"),
        ("claim/seed_1000/features.h5", "features", "the claim's"),
        ("eval/step_250/alpha_1.5/seed_1/n_500/features.h5", "features", "the run's tables"),
        (f".{os.getpid()}", "scratch", f"process {os.getpid()}"),
        (".elsewhere.1", "scratch", "written on elsewhere"),
    ):
        assert reason in kept(results, place, kind), place
    assert pruned.orphans(Known(results))[1].startswith(f"  {results}/encoders/old-00000000: 1 file")


def test_an_unfinished_training_keeps_two_states_and_the_damaged_newest_keeps_all(results: Path) -> None:
    [run] = (results / "runs").iterdir()
    write_state(run, 1050)  # towards a longer horizon
    assert {"state/step_00000900", "state/step_00000950"} <= going(results, "states")
    assert "damage falls back" in kept(results, "state/step_00001000", "states")
    (run / "state/step_00001050/state.safetensors").write_bytes(b"cut")
    assert "the newest state is damaged" in kept(results, "state/step_00000900", "states")


def test_it_frees_what_it_says_and_says_what_went(results: Path) -> None:
    before, pieces = measure([results]), pruned.chosen(found(results), pruning.DEFAULT)
    said = measure(pruned.paths_of(found(results), pruning.DEFAULT))
    assert pruned.prune(results, pieces) == said
    record = results / pruned.RECORD
    assert before.bytes - measure([results]).bytes == said.bytes - measure([record]).bytes
    assert going(results) == set()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert sum(line["bytes"] for line in lines if line["state"] == "gone") == said.bytes
    [line] = [line for line in lines if line["state"] == "gone" and "samples/step_0/" in line["paths"][0]]
    manifest = next(results.glob("runs/*/samples/step_0/**/pruned.json"))
    assert line["manifest_sha256"] == artifacts.sha256_file(manifest)
    assert line["again"] == f"snakemake --profile local {manifest.with_name('manifest.json')}"


def test_links_and_holes_are_measured_as_they_are(tmp_path: Path) -> None:
    first = write(tmp_path / "a/first", 100_000)
    os.link(first, tmp_path / "a/second")
    with (tmp_path / "a/hole").open("wb") as file:
        file.truncate(10**9)
    assert measure([tmp_path / "a/first"]).bytes == 0  # its other name stays
    whole = measure([tmp_path / "a", first])
    assert (whole.files, whole.bytes) == (3, first.stat().st_blocks * 512)


def script(*arguments: object) -> int:
    return run_script(prune.main, [str(argument) for argument in arguments])


def test_nothing_is_touched_without_yes(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(results)
    assert script("--results", results) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert script("--results", results, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(found(results))
    assert listing(results) == before


def test_only_the_kinds_and_runs_that_are_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [run] = (results / "runs").iterdir()
    other = write_run(configured(results, **{"objective.alpha": {"power": 4.0}}))
    assert script("--results", results, "--run", other.name, "--only", "states,canary", "--yes") == 0
    assert not (other / "state/step_00000950").exists()
    assert (run / "state/step_00000950").exists()
    assert (other / "samples/step_0/alpha_1.5/seed_1/n_500/latents.safetensors").exists()
    assert script("--results", results, "--only", "state") == 1
    assert script("--results", results, "--run", "nobody") == 1
    assert script("--results", results / "none") == 1
    said = capsys.readouterr().err
    assert f"{results / 'none'}: no such folder" in said
    assert "--only state: no such kind; give some of: states" in said
    assert f"has nothing named nobody; name one of: {min(run.name, other.name)}" in said


def test_a_keep_list_protects_and_is_checked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = results / "golden.yaml"
    keep.write_text(
        "keep:\n- {path: runs/*/samples/step_500/**, reason: figure 3}\n- {path: runs/*/state, reason: a friend}\n"
    )
    assert not [path for path in going(results) if path.startswith(("state", "samples/step_500"))]
    assert kept(results, "step_500/alpha_3/seed_1/n_500/latents.safetensors", "samples") == "golden.yaml: figure 3"
    keep.write_text("keep:\n- {path: runs/demo, reason: mine}\n")
    before = listing(results)
    assert script("--results", results) == 0
    assert script("--results", results, "--yes") == 1
    said = capsys.readouterr().err
    assert "runs/demo matches nothing below" in said
    assert "runs/demo keeps nothing; nothing was removed" in said
    assert listing(results) == before
    for text, message in (
        ("keep:\n- {path: a, reasons: b}", "keep.0.reason: Field required"),
        ("keep:\n- {path: a, reason: b, until: c}", "keep.0.until: Extra inputs"),
        ("keep: [", "cannot be read as YAML"),
        ("keep:\n- {path: /etc, reason: b}", "give a path or pattern below"),
    ):
        keep.write_text(text)
        with pytest.raises(Fault, match=message):
            KeepList(results)


def test_a_folder_in_use_is_left_alone(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    pieces = pruned.chosen(found(results), pruning.DEFAULT)
    [run] = (results / "runs").iterdir()
    samples = run / "samples/step_0/alpha_1.5/seed_1/n_500"
    holders = [hold(run, 60), hold(samples, 60)]
    try:
        assert f"process {holders[0].pid}" in kept(results, "exports/step_444", "exports")
        assert f"process {holders[1].pid}" in kept(results, "step_0/alpha_1.5/seed_1/n_500/latents.safetensors", "samples")
        assert "canary/eval/features.h5" not in going(results)
        assert "eval/step_333/alpha_1.5/seed_1/n_500/features.h5" in going(results)  # nobody's
        pruned.prune(results, pieces)  # found before the jobs began
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
    assert (run / "state/step_00000900").exists()
    assert (samples / "latents.safetensors").exists()
    assert not (run / "eval/step_333/alpha_1.5/seed_1/n_500/features.h5").exists()
    assert f"{samples / 'manifest.json'} stays: " in caplog.text


def test_a_run_that_cannot_be_read_is_left_alone(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    [run] = (results / "runs").iterdir()
    run.rename(run.with_name("renamed-00000000"))
    assert {path for path in going(results) if path.startswith(("state", "samples", "eval"))} == set()
    assert "is left alone" in caplog.text


def killed_at(results: Path, operation: int) -> None:
    """Prune in a process that dies of SIGKILL at its `operation`-th removal; of a folder its largest file is then gone."""

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def once(path: Path, *arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                if path.is_dir():
                    os.unlink(max(path.rglob("*"), key=lambda each: each.stat().st_size * each.is_file()))  # noqa: PTH108
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, *arguments, **options)

        return once

    left = [operation]
    child = os.fork()
    if child == 0:
        shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
        Path.replace = counted(Path.replace)  # type: ignore[method-assign, assignment]
        Path.unlink = counted(Path.unlink)  # type: ignore[method-assign, assignment]
        pruned.prune(results, pruned.chosen(found(results), pruning.DEFAULT))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_moment_leaves_nothing_that_lies_and_the_next_call_finishes(results: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(results, whole)
    pruned.prune(whole, pruned.chosen(found(whole), pruning.DEFAULT))
    for operation in range(1, 30, 3):
        copy = tmp_path / f"killed_{operation}"
        shutil.copytree(results, copy)
        killed_at(copy, operation)
        for manifest in copy.rglob("manifest.json"):
            assert "samples" not in manifest.parts or (manifest.parent / "latents.safetensors").is_file()
        for marker in copy.rglob("COMMITTED.json"):
            artifacts.StateMarker.read(marker).verify(marker.parent)
        for metadata in copy.rglob("metadata.json"):
            assert (metadata.parent / "model.safetensors").is_file()
        last = json.loads((copy / pruned.RECORD).read_text().splitlines()[-1])
        assert last["state"] == "going"  # what was being removed is said
        pruned.prune(copy, pruned.chosen(found(copy), pruning.DEFAULT))
        assert contents(copy) == contents(whole), operation


def contents(results: Path) -> set[str]:
    paths = (path for path in results.rglob("*") if path.is_file() and path.name not in (pruned.RECORD, ".lease"))
    return {path.relative_to(results).as_posix() for path in paths}


def test_the_lease_is_taken_while_something_goes(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(going: pruning.Candidate) -> None:
        code = "import sys; from pathlib import Path; from drifting_core.jobs.leases import writer_lease\n"
        code += "with writer_lease(Path(sys.argv[1])): pass"
        done = subprocess.run([sys.executable, "-c", code, going.leases[0]], capture_output=True, text=True)
        assert f"process {os.getpid()}" in done.stderr

    monkeypatch.setattr(pruned, "_remove", refused)
    pruned.prune(results, pruned.chosen(found(results), ("exports",)))
    with writer_lease(next((results / "runs").iterdir())):
        pass
