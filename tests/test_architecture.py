"""docs/architecture.md, held: imports run downwards only, light modules are light, generated pages are in step."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from drifting_core import configuration_reference, module_graph

HEAVY = ("torch", "h5py", "diffusers", "scipy", "numpy", "matplotlib", "PIL")


def test_imports_run_downwards_only_and_in_no_circle(root: Path) -> None:
    found = module_graph.edges(root)
    assert len(found) > 400
    assert not module_graph.upwards(found)
    assert not module_graph.circle(found)


def test_an_import_of_a_higher_room_and_a_circle_are_found(tmp_path: Path) -> None:
    """Every way to write an import; one inside a function, too."""
    sources = {
        "data/__init__.py": "",
        "data/tars.py": "def late():\n    from drifting_core.claims import bundle\n",
        "claims/__init__.py": "from drifting_core.claims.bundle import make\n",
        "claims/bundle.py": "import drifting_core.claims.card\nfrom drifting_core.jobs.job import run\n",
        "claims/card.py": "from drifting_core import claims\n",
        "jobs.py": "",
    }
    for name, text in sources.items():
        path = tmp_path / "drifting_core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = module_graph.edges(tmp_path)
    assert {f"{importer} {imported}" for importer, imported in found} == {
        "data.tars claims.bundle", "claims claims.bundle", "claims.bundle claims.card", "claims.card claims",
        "claims.bundle jobs",
    }  # fmt: skip
    assert module_graph.upwards(found) == [module_graph.Edge("data.tars", "claims.bundle")]
    assert set(module_graph.circle(found)) == {"claims", "claims.bundle", "claims.card"}


def test_light_modules_import_nothing_heavy(root: Path) -> None:
    modules = [f"drifting_core.{path.stem}" for path in (root / "drifting_core").glob("*.py") if path.stem != "__init__"]
    packages = [path for name in ("config", "artifacts", "doctor") for path in (root / "drifting_core" / name).glob("*.py")]
    modules += [f"drifting_core.{path.parent.name}.{path.stem}" for path in packages]
    modules += [f"drifting_core.claims.{name}" for name in ("verifying", "reading", "comparing")]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_rule_has_its_thin_script_and_every_script_its_use(root: Path) -> None:
    rules = "".join(path.read_text() for path in (root / "rules").glob("*.smk"))
    by_hand = {
        "run_workflow",
        "submit_controller",
        "status",
        "plan",
        "doctor",
        "show_claim",
        "show_encoders",
        "verify_bundle",
        "write_configuration_reference",
        "make_photos",
        "measure_rates",
        "run_toy",
        "remove_sources",
        "describe_images",
        "write_virtual_dataset",
        "draw_progress",
        "prune",
        "runs",
        "smoke",
    }
    for path in (root / "workflow_scripts").glob("*.py"):
        assert path.stem in by_hand or f"$WORKFLOW_SCRIPTS/{path.name}" in rules, path.name
        assert path.read_text().count("\n") <= 75, f"{path.name} is no thin script"


@pytest.mark.parametrize(
    ("file", "made"),
    [("config/schema.json", configuration_reference.schema), ("docs/configuration.md", configuration_reference.page)],
)
def test_generated_pages_are_in_step(root: Path, file: str, made: object) -> None:
    assert (root / file).read_text() == made(), f"run `make docs`: {file} is not what the models say"  # type: ignore[operator]


def test_the_costs_of_the_road_to_imagenet_are_in_step(root: Path) -> None:
    page = (root / "docs/imagenet.md").read_text()
    made = configuration_reference.imagenet_page(page, root / "config/ablation.yaml")
    assert page == made, "run `make docs`: docs/imagenet.md is not what config/ablation.yaml and config/rates.yaml say"


def test_the_graph_of_imports_is_in_step(root: Path) -> None:
    page = (root / "docs/architecture.md").read_text()
    assert page == configuration_reference.architecture_page(page, root), "run `make docs`: the table of imports is old"
    shown = module_graph.shown_in(root / "docs/pictures/modules.png")
    assert shown == module_graph.digest(module_graph.edges(root)), "run `make docs`: the picture of imports is old"


def test_every_script_shows_its_purpose(root: Path) -> None:
    for path in sorted((root / "workflow_scripts").glob("*.py")):
        documentation = ast.get_docstring(ast.parse(path.read_text()))
        assert documentation, path.name
        assert "xample" in documentation, f"{path.name}: no example"


def test_the_tree_in_the_architecture_exists(root: Path) -> None:
    text = (root / "docs/architecture.md").read_text()
    rooms = text[text.index("## drifting_core: the rooms") : text.index("Imports run downwards only")]
    named = {word.strip(",()") for word in rooms.replace("→", " ").split() if word.strip(",()").endswith(".py")}
    present = {path.name for path in (root / "drifting_core").rglob("*.py") if path.name != "__init__.py"}
    assert named == present


def test_one_handler_says_what_a_start_does(root: Path) -> None:
    """Of several Snakemake keeps the last, without a word."""
    texts = [path.read_text() for path in (root / "Snakefile", *(root / "rules").glob("*.smk"))]
    assert sum(text.count("\nonstart:") for text in texts) == 1
