"""Imported networks in the workflow: what takes the place of training, at the size of the golden weights."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from drifting_core import config as settings
from drifting_core.artifacts import Export, Fetched, records
from drifting_core.sources import published
from tests.workflow.conftest import ROOT, TARGET, Site, Walk
from tests.workflow.test_walk import verify

pytestmark = pytest.mark.workflow
GOLDEN = ROOT / "tests/data/golden"
# The published generator of tests/data/golden, in the words of the configuration.
GENERATOR: dict[str, Any] = {
    "generator.source": str(GOLDEN / "generator"), "generator.patch_size": 2, "generator.hidden_size": 64,
    "generator.depth": 2, "generator.num_heads": 4, "generator.cond_dim": 48, "generator.in_context_tokens": 4,
    "evaluation.selection.last_k": 1,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "encoder.source": str(GOLDEN / "mae"), "encoder.base_width": 32, "encoder.blocks": [2, 2, 2, 2],
    "encoder.input_patch_size": 1, "encoder.norm_groups": 32,
}  # fmt: skip
TRAINS = {"train_encoder", "export_encoder", "train_generator", "encode_latents", "combine_latents", "verify_latents"}


@pytest.fixture(scope="module")
def site(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A copy of the folder in which the tiny run has left its data, tokenizer, reference and exports."""
    copy = Site(tmp_path_factory.mktemp("released").resolve() / "site")
    shutil.copytree(walk.site.folder, copy.folder, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def released(site: Site) -> tuple[Site, str]:
    """The claim of the published generator."""
    changes = {"generator.source": "released:latent_L_sota", "tokenizer": at_their_scale(site)}
    preset = site.configure("released.yaml", name="released", **(GENERATOR | changes))
    plant(site, published.download("latent_L_sota"), GOLDEN / "generator")
    done = site.snakemake(TARGET, config="released.yaml")
    assert done.returncode == 0, done.stdout
    assert not [rule for rule in TRAINS if f"rule {rule}:" in done.stdout], done.stdout
    return site, settings.load_file(preset).key("run")


def at_their_scale(site: Site) -> dict[str, Any]:
    """The tiny run's tokenizer as one that latents of published weights could be of, which the import checks."""
    [trained] = (site.folder / "results/tokenizer").glob("*/vae")
    shutil.copytree(trained, site.folder / "vae")
    described = json.loads((trained / "config.json").read_text())
    (site.folder / "vae/config.json").write_text(json.dumps(described | {"scaling_factor": published.SCALING_FACTOR}))
    return {"source": "folder", "folder": "vae", "factor": 2, "channels": 4}


def plant(site: Site, wanted: published.Download, network: Path) -> None:
    """Lay a small published network where `fetch` would have brought the one that is wanted."""
    place = site.folder / "results/sources" / wanted.key
    (place / wanted.folder).mkdir(parents=True)
    shutil.copy(network / published.METADATA, place / wanted.folder)
    parameters = lzma.decompress((network / f"{published.PARAMETERS}.xz").read_bytes())
    (place / wanted.folder / published.PARAMETERS).write_bytes(parameters)
    Fetched(
        configuration="0" * 64, code="0.1.0", repository=wanted.repository, revision=wanted.revision, folder=wanted.folder,
        files=records(place, [f"{wanted.folder}/{name}" for name in wanted.files]),
    ).write(place / "manifest.json")  # fmt: skip


def test_a_published_generator_is_brought_to_its_claim(released: tuple[Site, str]) -> None:
    site, run = released
    bundle = site.folder / "results/bundles" / run
    assert verify(bundle).returncode == 0
    export = Export.read(site.folder / f"results/runs/{run}/exports/step_60/metadata.json")
    assert export.imported is not None
    assert (export.step, export.imported.step) == (60, 456)
    claim = (bundle / "CLAIM.md").read_text()
    assert "was not trained here" in claim
    assert "called step 456" in claim
    assert "Last-K is that export alone" in claim
    assert "Over training" not in claim
    assert "learning rate" not in claim
    # The numbers of the paper and of the release, in one table with ours, and why they cannot be compared.
    rows = claim[claim.index("### Beside published numbers") :].split("\n\n")[1].splitlines()[2:]
    assert rows[0].startswith("| this claim | ")
    assert "[FD " in rows[0]
    assert rows[1].startswith("| reported in the paper | 1 | 50,000 | FID 1.54 | IS 258.9 | not comparable: ")
    assert rows[1].endswith("ours is seen through another network (classifier) |")
    assert rows[2].startswith("| reported for these weights | 1 | 50,000 | FID 1.53 | IS 260.1 | not comparable: ")
    artifacts = {path.relative_to(bundle / "artifacts").parts[0] for path in (bundle / "artifacts").rglob("*.json")}
    assert "encoders" not in artifacts
    values = json.loads((bundle / "configuration.json").read_text())
    assert settings.load(values).key("run") == run


def test_nothing_is_imported_twice(released: tuple[Site, str]) -> None:
    site, _ = released
    done = site.snakemake(TARGET, "-n", config="released.yaml")
    assert "Nothing to be done" in done.stdout


def test_an_imported_run_is_known_from_another_configuration(released: tuple[Site, str]) -> None:
    """The rule that made an export is found again, whatever is active: it is not trained over."""
    site, run = released
    name = f"results/runs/{run}/eval/step_60/alpha_2.5/seed_7/n_50/metrics.json"
    assert site.planned(name) == [
        ("sample", f"results/runs/{run}/samples/step_60/alpha_2.5/seed_7/n_50/manifest.json"),
        ("evaluate", name),
    ]


def test_a_published_encoder_takes_the_place_of_its_training(site: Site) -> None:
    preset = site.configure("encoder.yaml", name="encoder", **ENCODER)
    loaded = settings.load_file(preset)
    canary = f"results/runs/{loaded.key('run')}/canary"  # one step with that encoder
    done = site.snakemake(f"{canary}/exports/step_1/metadata.json", config="encoder.yaml")
    assert done.returncode == 0, done.stdout
    assert "rule import_encoder:" in done.stdout
    assert "rule train_encoder:" not in done.stdout
    encoder = Export.read(site.folder / f"results/encoders/{loaded.key('encoder')}/export/metadata.json")
    assert encoder.imported is not None
    assert encoder.imported.step == 123
    # 7 entries of each of 9 maps, without the standard deviations that no 2 x 2 map has; norm_x and global
    last = json.loads((site.folder / canary / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["features"]) == {"global", "norm", "conv1", "layer1", "layer2", "layer3", "layer4"}


def test_an_export_of_our_own_is_a_source(site: Site) -> None:
    own = settings.load_file(site.folder / "config.yaml")
    folder = f"results/runs/{own.key('run')}/exports/step_60"
    preset = site.configure("own.yaml", name="own", **{"generator.source": folder, "training.steps": 30})
    output = f"results/runs/{settings.load_file(preset).key('run')}/exports/step_30/metadata.json"
    done = site.snakemake(output, config="own.yaml")
    assert done.returncode == 0, done.stdout
    ours, theirs = (Export.read(site.folder / path) for path in (output, f"{folder}/metadata.json"))
    assert ours.files == theirs.files
    assert ours.imported is not None
    assert ours.imported.step == 60


@pytest.mark.parametrize("preset", ["released_l2", "released_b2", "released_ablation"])
def test_the_plan_of_released_weights_trains_nothing(tmp_path: Path, preset: str) -> None:
    site = Site(tmp_path)
    config = str(ROOT / f"config/{preset}.yaml")
    planned = [rule for rule, _ in site.planned(TARGET, config=config)]
    assert not TRAINS & set(planned)
    assert not [rule for rule in planned if "train" in rule]
    assert planned.count("import_generator") == 1
    assert planned.count("fetch") == 2  # weights and tokenizer
    assert {"sample_claim", "evaluate_claim", "audit_neighbours", "make_bundle_imported"} <= set(planned)


def test_without_internet_the_fetch_says_what_to_do_and_loses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """HF_ENDPOINT points where nothing listens; every other job is offline by HF_HUB_OFFLINE."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    site = Site(tmp_path)
    done = site.snakemake(
        "results/sources/latent_L_sota-1a5afa9f/manifest.json", config=str(ROOT / "config/released_l2.yaml")
    )
    assert done.returncode != 0
    assert "hf download Goodeat/drifting models/gen/jax/latent_L_sota/metadata.json" in done.stdout
    assert "--local-dir results/sources/latent_L_sota-1a5afa9f" in done.stdout
    assert "Traceback" not in done.stdout
