"""How to add a metric, a feature space, a preset and a rule: each is really added, code to a copy of this project.

docs/contributing.md tells the same in words. An edit here names the file, the line it stands behind, and what is added.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import transformers
import yaml

from drifting_core.artifacts import EvaluationContract, Metrics, SpaceKind
from drifting_core.config import load_file
from drifting_core.costs import estimates
from drifting_core.evaluation.networks import vision_transformers
from drifting_core.evaluation.seeds import NUMBERS
from drifting_core.evaluation.tables import COLUMNS
from tests.workflow.conftest import ROOT, TARGET, Site, Walk

pytestmark = pytest.mark.workflow


class Edit(NamedTuple):
    """`added` is put behind the only place where `behind` stands in a file; behind "" is its end."""

    file: str
    behind: str
    added: str


def extended(folder: Path, edits: Iterable[Edit]) -> Path:
    """A copy of the code with these edits."""
    for name in ("drifting_core", "rules", "config", "workflow_scripts", "report"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", folder / "Snakefile")
    for file, behind, added in edits:
        path = folder / file
        before, found, after = path.read_text().rpartition(behind) if behind else (path.read_text(), "", "")
        assert found == behind, f"{file}: {behind!r} is not there any more"
        assert not behind or behind not in before, f"{file}: {behind!r} is there more than once"
        path.write_text(before + found + added + after)
    return folder


def run(code: Path, *command: str, cwd: Path) -> str:
    """What a Python command prints that imports the copied code; the tests' own modules come from here."""
    environment = {**os.environ, "PYTHONPATH": f"{code}:{ROOT}"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


METRIC = (
    Edit("drifting_core/evaluation/statistics.py", "", '''

def feature_norm(features: Array) -> float:
    """Mean length of the features (N, D)."""
    return float(np.linalg.norm(features, axis=1).mean())
'''),
    Edit("drifting_core/artifacts/evaluation.py", "    sample_std: float\n", "    feature_norm: float | None = None\n"),
    Edit("drifting_core/evaluation/measuring.py", '        "within_class_diversity": diversity.ratio,\n',
         '        "feature_norm": statistics.feature_norm(seen.features),\n'),
    Edit("drifting_core/evaluation/tables.py", '"within_class_diversity", "sample_std",', ' "feature_norm",'),
)  # fmt: skip
MEASURE = """
import json, pathlib
import numpy as np
from drifting_core.artifacts import Metrics
from drifting_core.evaluation import rechecking, tables
from tests.unit.data.samples import write_archives
from tests.unit.evaluation import whole
here = pathlib.Path.cwd()
parts = whole.write_parts(here, write_archives(here))
path = whole.write_evaluation(here / "eval/metrics.json", parts)
seen = rechecking.read_features(here / "eval/features.h5").features
print(json.dumps({
    "expected": float(np.sqrt((seen.astype(float) ** 2).sum(1)).mean()),
    "written": Metrics.read(path).feature_norm,
    "again": rechecking.recompute(path, reference=parts.reference)["feature_norm"],
    "in the table": tables.make_table("claim", [path]).rows[0]["feature_norm"],
    "contract": Metrics.read(path).contract.model_dump(),
}))
"""


def test_a_metric(tmp_path: Path) -> None:
    """Function, field, entry, column: then it is measured, kept, tabulated and recomputed by verify_bundle --deep."""
    (tmp_path / "site").mkdir()
    found = json.loads(run(extended(tmp_path / "code", METRIC), "-c", MEASURE, cwd=tmp_path / "site"))
    assert found["written"] == found["again"] == found["in the table"] == pytest.approx(found["expected"], rel=1e-5)
    # It enters no contract: numbers made before and after it may stand in one table.
    assert set(found["contract"]) == set(EvaluationContract.model_fields)


def test_a_metric_that_is_in_no_table_is_noticed() -> None:
    numbers = {name for name, field in Metrics.model_fields.items() if field.annotation in (float, float | None)}
    assert numbers <= set(COLUMNS), "a field of Metrics without a column in evaluation/tables.py"
    assert set(NUMBERS) <= set(COLUMNS)


SPACE = (
    Edit("drifting_core/artifacts/networks.py", 'SpaceKind = Literal["dinov2", "clip"', ', "registers"'),
    Edit("drifting_core/evaluation/networks/vision_transformers.py", "_KINDS: dict[SpaceKind, _Kind] = {\n",
         '    "registers": _Kind("Dinov2WithRegistersModel", ("dinov2_with_registers",), (0.485, 0.456, 0.406), '
         "(0.229, 0.224, 0.225)),\n"),
    Edit("drifting_core/artifacts/evaluation.py", '{"dinov2": "DINOv2", "clip": "CLIP"', ', "registers": "DINOv2-R"'),
    Edit("drifting_core/costs/estimates.py", '_SPACE_WIDTHS = {"dinov2": 1024, "clip": 768', ', "registers": 1024'),
)  # fmt: skip
LOOK = """
import pathlib, torch
from drifting_core.evaluation.networks.vision_transformers import VisionTransformer
network = VisionTransformer("registers", pathlib.Path("weights"))
print(tuple(network(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).features.shape), network.dimensions)
"""


def preset(folder: Path, **changes: Any) -> Path:
    """A preset is a whole file: that of the smoke drill with changes, dotted."""
    values = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_feature_space(tmp_path: Path) -> None:
    """A name in the configuration, its model, its name in tables, its width: then the claim is measured in it, too."""
    how = transformers.Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=56, image_size=280
    )
    transformers.Dinov2WithRegistersModel(how).save_pretrained(tmp_path / "weights", safe_serialization=True)
    code = extended(tmp_path / "code", SPACE)
    assert run(code, "-c", LOOK, cwd=tmp_path) == "(3, 16) 16\n"
    chosen = preset(tmp_path, name="spacious", **{"evaluation.spaces": [{"kind": "registers", "weights": "weights"}]})
    planned = run(
        code, "-m", "snakemake", "-n", "results_smoke/claim_bundle.done", "--snakefile", str(code / "Snakefile"),
        "--configfile", str(chosen), cwd=tmp_path,
    )  # fmt: skip
    assert "claim/seed_1000/spaces/registers/metrics.json" in planned
    assert "tables/claim_registers.json" in planned


def test_a_feature_space_that_is_named_in_one_place_only_is_noticed() -> None:
    for places in (vision_transformers._KINDS, EvaluationContract.further_spaces, estimates._SPACE_WIDTHS):
        assert set(places) == set(get_args(SpaceKind))


def test_a_preset(tmp_path: Path) -> None:
    """A whole file with a name of its own. It shares with others whatever its sections agree on."""
    ours, smoke = (
        load_file(preset(tmp_path, name="eager", **{"training.learning_rate": 1e-3})),
        load_file(ROOT / "config/smoke.yaml"),
    )
    assert ours.key("run").startswith("eager-")
    assert ours.key("run") != smoke.key("run")
    for stage in ("data", "tokenizer", "encoder", "network", "reference"):
        assert ours.key(stage) == smoke.key(stage)


RULES = f"""
include: "{ROOT}/Snakefile"


rule distances:
    input:
        lambda wildcards: LAYOUT.table(wildcards.run, "alpha_sweep"),
    output:
        f"{{RESULTS}}/runs/{{{{run}}}}/distances.txt",
    shell:
        "grep -h '\\"distance\\":' {{input}} > {{output}}"
"""


def test_a_rule(walk: Walk, tmp_path: Path) -> None:
    """In a Snakefile of one's own that includes ours; inside this project it is a file in rules/ and a thin script."""
    site = Site(tmp_path / "site")
    shutil.copytree(walk.site.folder, site.folder, symlinks=True)
    (site.folder / "Snakefile").write_text(RULES)
    [wanted] = [f"{path.relative_to(site.folder)}/distances.txt" for path in site.folder.glob("results/runs/tiny-*")]

    def snakemake(*arguments: str) -> str:
        profile = ("--profile", str(ROOT / "profiles/local"))
        return run(ROOT, "-m", "snakemake", *arguments, *profile, "--configfile", "config.yaml", cwd=site.folder)

    snakemake(wanted)
    assert len((site.folder / wanted).read_text().splitlines()) == 2  # the two alphas
    assert site.planned(TARGET) == []
    # Its jobs find our scripts, wherever the Snakefile lies that includes ours.
    snakemake(TARGET, "--forcerun", "claim_bundle")
