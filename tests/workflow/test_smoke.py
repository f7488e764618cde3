"""The smoke drill's check, on a finished site: it knows what is promised, and finds what is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drifting_core.config import load_file
from drifting_core.workflow import promises
from tests.workflow.conftest import ROOT, Site, Walk

pytestmark = pytest.mark.workflow


def test_everything_promised_is_found_and_the_bundle_verified(walk: Walk) -> None:
    done = walk.site.run("smoke.py", "--configfile", "config.yaml")
    assert done.returncode == 0, done.stderr
    promised = list(promises.promises(load_file(walk.site.folder / "config.yaml")))
    assert f"{len(promised)} of {len(promised)} promised artifacts are there and whole" in done.stdout
    assert "bundle whole" in done.stdout
    names = {each.path.name for each in promised}
    assert names >= {
        "latent_summary.json", "RUN.md", "env_snapshot.json", "codebase_fingerprint.json", "env_fingerprint.json",
        "COMMITTED.json", "mae_summary.json", "metrics.jsonl", "metrics.json", "recommendation.json", "CLAIM.md",
    }  # fmt: skip


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut(path: Path) -> None:
    path.write_text(path.read_text() + '{"step": 6')


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("broken", "breaks"), [
    ("runs/*/env_fingerprint.json", Path.unlink), ("runs/*/latent_summary.json", half), ("runs/*/metrics.jsonl", cut),
    ("encoders/*/state/step_00000030/state.safetensors", flip), ("runs/*/exports/step_0/model.safetensors", Path.unlink),
    ("bundles/*/CLAIM.md", lambda path: path.write_text("")), ("runs/*/claim/*/samples/latents.safetensors", flip),
    ("reference/*/manifest.json", half),
])  # fmt: skip
def test_what_is_missing_or_broken_is_named(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, breaks: Callable[[Path], object]
) -> None:
    site = Site(tmp_path / "site")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    monkeypatch.chdir(site.folder)
    [path] = Path("results").glob(broken)
    breaks(path)
    lines, wrong = promises.page(load_file(Path("config.yaml")))
    assert len(wrong) >= 1
    assert str(path) in "\n".join(wrong)
    assert f"{len(lines) - 2 - len(wrong)} of {len(lines) - 2} promised" in lines[-1]


def test_the_drill_keeps_to_its_own_root_and_to_few_jobs() -> None:
    config = load_file(ROOT / "config/smoke.yaml")
    assert config.results == "results_smoke"
    assert all(each.path.parts[0] == config.results for each in promises.promises(config))
    assert all(Path(place).parts[0] == config.results for place in config.data.archives.model_dump().values() if place)
    assert len([each for each in promises.promises(config) if each.what == "evaluation"]) == 1
