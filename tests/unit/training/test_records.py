"""What a training leaves for readers: true, repeatable where it says so, and a page whose links and command hold."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drifting_core import artifacts, config
from drifting_core.artifacts import provenance
from drifting_core.artifacts.identity import operations
from drifting_core.data.latents import LatentStore
from drifting_core.training import records
from drifting_core.training.run_page import write_page
from tests.unit.evaluation.samples import MADE, training_line, write_metrics
from tests.unit.training.samples import CONTRACT

# --- environment and code -------------------------------------------------------------------------------------------


def test_two_machines_of_equal_software_have_one_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    here = records.fingerprint()
    assert here.packages["torch"].startswith(torch.__version__.split("+")[0])
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr("platform.release", lambda: "6.0")
    monkeypatch.setattr("platform.platform", lambda: "Linux-6.0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert records.fingerprint() == here
    monkeypatch.setattr(torch.version, "cuda", "99.9")
    assert records.fingerprint().digest != here.digest


def test_another_version_of_a_package_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    here = records.fingerprint()

    class Other:
        name, version = "numpy", "0.1"

    monkeypatch.setattr("importlib.metadata.distributions", lambda: [Other])
    other = records.fingerprint()
    assert other.packages == {"numpy": "0.1"}
    assert other.digest != here.digest


def test_the_surroundings_are_written_and_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    records.write_surroundings(tmp_path)
    snapshot = artifacts.EnvironmentSnapshot.model_validate_json((tmp_path / "env_snapshot.json").read_text())
    assert (snapshot.slurm_job, snapshot.cuda) == ("17", torch.version.cuda)
    assert len(snapshot.gpus) == torch.cuda.device_count()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"env_snapshot.json", "env_fingerprint.json", "codebase_fingerprint.json"}
    records.write_surroundings(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_changed_byte_of_the_code_is_another_codebase(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("drifting_core", "workflow_scripts", "rules"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "Snakefile", tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    copied = provenance.codebase()
    assert (copied.commit, copied.changes) == (None, None), "works without git"
    assert {"Snakefile", "rules/common.smk", "drifting_core/jobs/job.py"} <= copied.sources.keys()
    assert "workflow_scripts/plan.py" in copied.sources
    assert not any("__pycache__" in name for name in copied.sources)
    (tmp_path / "drifting_core/__pycache__").mkdir()
    (tmp_path / "drifting_core/__pycache__/jobs.cpython-311.pyc").write_bytes(b"compiled")
    assert provenance.codebase() == copied
    rule = tmp_path / "rules/common.smk"
    rule.write_text(rule.read_text() + "#")
    changed = provenance.codebase()
    assert changed.digest != copied.digest
    assert [name for name in copied.sources if copied.sources[name] != changed.sources[name]] == ["rules/common.smk"]
    (tmp_path / "Snakefile").unlink()
    assert all(name.startswith("drifting_core/") for name in provenance.codebase().sources), "an installed package"


def test_a_git_checkout_names_its_commit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drifting_core").mkdir()
    (tmp_path / "drifting_core/one.py").write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    found = provenance.codebase()
    assert re.fullmatch("[0-9a-f]{40}", found.commit or "")
    assert found.changes is False
    (tmp_path / "drifting_core/one.py").write_text("2")
    assert provenance.codebase().changes is True


# --- latents and encoder --------------------------------------------------------------------------------------------


def test_the_latents_in_short_are_those_of_the_store(tmp_path: Path, store: LatentStore, monkeypatch: Any) -> None:
    records.write_latent_summary(tmp_path, store)
    found = artifacts.LatentSummary.model_validate_json((tmp_path / "latent_summary.json").read_text())
    rows = torch.arange(60)
    whole = store.gather(rows, torch.zeros_like(rows)).double()
    assert (found.rows, found.classes, found.shape, found.subset_rows) == (60, 10, [4, 16, 16], 60)
    assert found.channel_mean == pytest.approx(whole.mean(dim=(0, 2, 3)).tolist())
    assert found.channel_std == pytest.approx(whole.std(dim=(0, 2, 3)).tolist())
    assert (found.contract, found.manifest_sha256) == (CONTRACT, artifacts.sha256_file(store.path))
    monkeypatch.setattr(records, "SUBSET", 7)
    records.write_latent_summary(tmp_path, store)
    some = artifacts.LatentSummary.model_validate_json((tmp_path / "latent_summary.json").read_text())
    spread = whole[[0, 8, 17, 25, 34, 42, 51]]
    assert some.subset_rows == 7
    assert some.channel_mean == pytest.approx(spread.mean(dim=(0, 2, 3)).tolist())


def test_the_encoder_in_short(tmp_path: Path, store: LatentStore, small: config.Configuration) -> None:
    from drifting_core.models.mae import LatentEncoder
    from drifting_core.training.mae import encoder_architecture

    lines = [{"step": step, "loss": 1.0 / step, "time": {"seconds": 3.0}, "seconds": 3.0} for step in (4, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 9')
    records.write_encoder_summary(tmp_path, small.encoder, small.encoder.training, store, 8)
    found = artifacts.EncoderSummary.model_validate_json((tmp_path / "mae_summary.json").read_text())
    encoder = LatentEncoder(**encoder_architecture(small.encoder, 4))
    assert found.parameters["encoder"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert found.parameters.keys() == {"encoder", "decoder", "classifier"}
    assert found.last_metrics == {"step": 8, "loss": 0.125}, "times would differ when the job is repeated"
    assert found.recipe["batch"] == 6
    assert found.augmentation["source"] == "none"


# --- the page -------------------------------------------------------------------------------------------------------


def page(run: Path, small: config.Configuration, store: LatentStore) -> str:
    sections = {name: getattr(small, name) for name in ("generator", "objective", "training")}
    write_page(
        run, "A generator.", sections, configuration="c" * 64, horizon=small.training.steps,
        made_from={"latents": store.path}, contract=store.contract,
    )  # fmt: skip
    return (run / "RUN.md").read_text()


def test_the_page_says_what_stands_and_every_link_leads_somewhere(
    tmp_path: Path, small: config.Configuration, store: LatentStore
) -> None:
    run = tmp_path / "results/runs/demo-00000000"
    run.mkdir(parents=True)
    begun = page(run, small, store)
    assert "Steps logged or exported: 0 of 1,000." in begun
    assert "Not evaluated when this page was written" in begun
    records.write_surroundings(run)
    (run / "metrics.jsonl").write_text(json.dumps(training_line(240)) + "\n")
    for step in (0, 250):
        (run / f"exports/step_{step}").mkdir(parents=True)
        (run / f"exports/step_{step}/metadata.json").write_text("{}")
    write_metrics(run / "eval/step_0/metrics.json", 0, 1.5, 1, 20.0)
    text = page(run, small, store)
    assert "Steps logged or exported: 250 of 1,000." in text
    assert "[0](exports/step_0/metadata.json), [250](exports/step_250/metadata.json)" in text
    assert "| loss | 500 | constant by construction" in text
    assert "| force norm at 0.2 | 240 |" in text, "the mean of the groups"
    assert "utilisation" not in text, "not measured"
    assert "| time.seconds | 1 |" in text
    assert "FD and DS of 500 images, network classifier; 1 evaluation(s)" in text
    assert "classes_per_step 4" in text
    assert f"SHA-256 `{artifacts.sha256_file(store.path)[:16]}`" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 8
    assert all((run / link).exists() for link in links)
    lines = text.splitlines()
    for above, below in itertools.pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count(" | ") == below.count(" | "), "a table's rows have equal cells"


def test_an_evaluation_that_is_being_made_stops_no_training(
    tmp_path: Path, small: config.Configuration, store: LatentStore
) -> None:
    run = tmp_path / "results/runs/demo-00000000"
    write_metrics(run / "eval/step_0/metrics.json", 0, 1.5, 1, 20.0).write_text("{")
    assert "Not read: " in page(run, small, store)


@pytest.mark.parametrize(
    ("steps", "overrides"), [(1000, ""), (2000, " --config 'training={steps: 2000, milestone_every: 250}'")]
)
def test_the_command_that_continues_is_one_that_snakemake_takes(
    tmp_path: Path, demo_values: dict[str, Any], store: LatentStore, monkeypatch: Any, steps: int, overrides: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    recorded = config.load(demo_values)
    run = Path("results/runs") / recorded.key("run")
    artifacts.RunRecord(**MADE, values=recorded.model_dump(mode="json")).write(run / "config.json")
    training = recorded.training.model_copy(update={"steps": steps})
    text = page(run, recorded.model_copy(update={"training": training}), store)
    command = f"snakemake --profile local results/claim_bundle.done --configfile {run}/config.json{overrides}"
    assert f"```sh\n{command}\n```" in text
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "--profile slurm" in page(run, recorded, store)


def test_the_page_of_an_encoder_finds_the_run_that_needs_it(
    tmp_path: Path, demo_values: dict[str, Any], store: LatentStore, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = config.load(demo_values)
    folder = Path("results/encoders") / recorded.key("encoder")
    folder.mkdir(parents=True)

    def written() -> str:
        write_page(
            folder, "An encoder.", {"encoder": recorded.encoder}, configuration="c" * 64, horizon=840,
            made_from={"latents": store.path}, contract=store.contract,
        )  # fmt: skip
        return (folder / "RUN.md").read_text()

    assert sys.argv[0] in written(), "no run is recorded: the job's own command"
    record = Path("results/runs") / recorded.key("run") / "config.json"
    artifacts.RunRecord(**MADE, values=recorded.model_dump(mode="json")).write(record)
    assert f"{folder}/export/metadata.json --configfile {record}\n" in written()


def test_the_config_json_of_a_run_is_a_configuration_file(tmp_path: Path, demo_values: dict[str, Any]) -> None:
    preset = config.load(demo_values)
    path = tmp_path / "config.json"
    artifacts.RunRecord(**MADE, values=preset.model_dump(mode="json")).write(path)
    again = config.load_file(path)
    assert again == preset
    assert operations(again) == operations(preset)
    longer = config.load({**json.loads(path.read_text()), "training": {"steps": 2000}})
    assert longer.training.steps == 2000
    assert longer.key("run") == preset.key("run")
