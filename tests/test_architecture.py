"""docs/architecture.md, held: the table of rooms is the code's, and generated pages are in step."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.making import configuration_reference, rooms
from docs.making.rooms import Edge, Room

HEAVY = ("torch", "h5py", "diffusers", "scipy", "numpy", "matplotlib", "PIL")


@pytest.fixture(scope="module")
def table(root: Path) -> list[Room]:
    """The rooms as docs/architecture.md has them."""
    return rooms.rooms((root / "docs/architecture.md").read_text())


def package(folder: Path, sources: dict[str, str]) -> Path:
    """A package of these modules below `folder`."""
    for name, text in sources.items():
        path = folder / "drifting_core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# --- rooms ----------------------------------------------------------------------------------------------------------


def test_every_folder_is_a_room_and_every_room_is_there(root: Path, table: list[Room]) -> None:
    folders = {path.parent for path in (root / "drifting_core").rglob("*.py")} - {root / "drifting_core"}
    beside = {path.name for path in (root / "drifting_core").glob("*.py")} - {"__init__.py"}
    assert {room.name for room in table} == {f.relative_to(root / "drifting_core").as_posix() for f in folders} | beside
    assert len(table) > 15
    assert beside == {"faults.py"}, "everything else has a room"


def test_a_room_says_what_it_is_as_the_table_does(root: Path, table: list[Room]) -> None:
    for room in table:
        path = root / "drifting_core" / room.name
        assert rooms.first_sentence(path if path.is_file() else path / "__init__.py") == room.what
    assert len({room.what for room in table}) == len(table)


def test_imports_run_downwards_only_and_in_no_circle(root: Path, table: list[Room]) -> None:
    found = rooms.edges(root)
    assert len(found) > 400
    assert not rooms.upwards(found, table)
    assert not rooms.circle(found)


def test_an_import_of_a_higher_room_and_a_circle_are_found(tmp_path: Path, table: list[Room]) -> None:
    """Every way to write an import; one inside a function, too."""
    sources = {
        "data/__init__.py": "",
        "data/tars.py": "def late():\n    from drifting_core.claims import bundle\n",
        "claims/__init__.py": "from drifting_core.claims.bundle import make\n",
        "claims/bundle.py": "import drifting_core.claims.card\nfrom drifting_core.jobs.job import run\n",
        "claims/card.py": "from drifting_core import claims\n",
        "jobs/__init__.py": "",
        "jobs/job.py": "",
    }
    found = rooms.edges(package(tmp_path, sources))
    assert {f"{importer} {imported}" for importer, imported in found} == {
        "data.tars claims.bundle", "claims claims.bundle", "claims.bundle claims.card", "claims.card claims",
        "claims.bundle jobs.job",
    }  # fmt: skip
    assert rooms.upwards(found, table) == ["data.tars on floor 8 imports claims.bundle on floor 13: not below it"]
    assert set(rooms.circle(found)) == {"claims", "claims.bundle", "claims.card"}


@pytest.mark.parametrize(
    ("importer", "imported", "refused"),
    [
        ("jobs/job.py", "workflow/layout.py", "jobs.job on floor 5 imports workflow.layout on floor 6: not below it"),
        ("models/mae.py", "drift/loss.py", "models.mae on floor 9 imports drift.loss on floor 9: not below it"),
        (
            "evaluation/networks/loading.py",
            "evaluation/sampler.py",
            "evaluation.networks.loading on floor 10 imports evaluation.sampler on floor 11: not below it",
        ),
        ("plans.py", "jobs/job.py", "plans lies in no room of docs/architecture.md"),
        ("workflow/layout.py", "jobs/job.py", None),
        ("evaluation/sampler.py", "evaluation/networks/loading.py", None),
    ],
)
def test_a_deliberate_import_is_judged(
    tmp_path: Path, table: list[Room], importer: str, imported: str, refused: str | None
) -> None:
    """Of a room above, of one beside, of an inner room, from outside all rooms; and what is allowed."""
    module = imported.removesuffix(".py").replace("/", ".")
    found = rooms.edges(package(tmp_path, {importer: f"import drifting_core.{module}\n", imported: ""}))
    assert rooms.upwards(found, table) == ([refused] if refused else [])


def test_light_rooms_import_nothing_heavy(root: Path, table: list[Room]) -> None:
    light = {room for room in table if room.light}
    modules = [name for name in rooms.modules(root) if rooms.room_of(name, table) in light]
    assert len(modules) > 50
    modules.append("claims.verifying")  # so that anyone can check a bundle
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(f'drifting_core.{{m}}')\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_picture_leaves_out_only_what_follows() -> None:
    a, b, c, d = (Room(name, floor, True, "") for name, floor in (("a", 3), ("b", 2), ("c", 1), ("d", 0)))
    drawn = {(a, b), (b, c), (a, c), (a, d), (c, d)}
    assert rooms.needed(drawn) == {(a, b), (b, c), (c, d)}
    assert rooms.needed({(a, b), (a, c)}) == {(a, b), (a, c)}
    edges = [Edge("a.one", "b.two"), Edge("a.one", "a.three"), Edge("b.two", "d.four")]
    assert rooms.arrows(edges, [a, b, c, d]) == {(a, b), (b, d)}


def test_an_arrow_that_would_pass_behind_a_box_is_refused(tmp_path: Path) -> None:
    """From the left of a floor to the right of another, past a third; in the other order it is drawn."""
    left, right, between = Room("jobs", 2, True, "a"), Room("workflow", 2, True, "b"), Room("planning", 1, True, "c")
    low, beside = Room("config", 0, True, "d"), Room("costs", 0, True, "e")
    package(tmp_path, {"jobs/job.py": "import drifting_core.config.whole\n", "config/whole.py": ""})
    with pytest.raises(ValueError, match="from floor 2 to 0 would pass behind a box; order the rows"):
        rooms.draw(tmp_path, [left, right, between, beside, low], tmp_path / "rooms.png")
    rooms.draw(tmp_path, [left, right, between, low, beside], tmp_path / "rooms.png")
    assert (tmp_path / "rooms.png").is_file()


# --- decisions ------------------------------------------------------------------------------------------------------


def test_decisions_have_a_page_each_with_all_parts_and_tests_that_are_there(root: Path) -> None:
    folder = root / "docs/decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [int(page.name[:2]) for page in pages] == list(range(1, len(pages) + 1))
    assert len(pages) >= 17
    present = {path.name for path in (root / "tests").rglob("*.py")}
    functions = {name for path in (root / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    for page in pages:
        text = page.read_text()
        headings = re.findall(r"^## (.+)$", text, re.M)
        assert headings == ["Context", "Decision", "What it costs", "Where it is tested"], page.name
        named = set(re.findall(r"\b(test_\w+)(\.py)?", text.split("## Where it is tested")[1]))
        assert named, f"{page.name}: no test"
        for name, ending in named:
            assert (f"{name}.py" in present) if ending else (name in functions), f"{page.name}: {name}{ending}"
        assert f"({page.name})" in (folder / "README.md").read_text(), f"{page.name} is not listed"


# --- scripts and generated pages ------------------------------------------------------------------------------------


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


def test_the_list_of_modules_is_in_step(root: Path, table: list[Room]) -> None:
    made = rooms.listing(root, table)
    assert (root / "docs/modules.md").read_text() == made, "run `make docs`: docs/modules.md is not what the source says"
    for name, path in rooms.modules(root).items():
        assert rooms.first_sentence(path), f"{name} does not say what it is"


def test_the_picture_of_the_rooms_is_in_step(root: Path, table: list[Room]) -> None:
    shown = rooms.shown_in(root / "docs/pictures/rooms.png")
    assert shown == rooms.digest(rooms.edges(root), table), "run `make docs`: the picture of the rooms is old"


def test_every_script_shows_its_purpose(root: Path) -> None:
    for path in sorted((root / "workflow_scripts").glob("*.py")):
        documentation = ast.get_docstring(ast.parse(path.read_text()))
        assert documentation, path.name
        assert "xample" in documentation, f"{path.name}: no example"


def test_what_the_architecture_names_is_there(root: Path) -> None:
    """The places of the table "Where to change what", which leave drifting_core/ out."""
    text = (root / "docs/architecture.md").read_text()
    part = text[text.index("## Where to change what") : text.index("## Style")]
    named = re.findall(r"`([\w/]+(?:\.py|\.yaml|/))`", part)
    assert len(named) > 12
    for name in named:
        assert (root / "drifting_core" / name).exists() or (root / name).exists(), name


def test_one_handler_says_what_a_start_does(root: Path) -> None:
    """Of several Snakemake keeps the last, without a word."""
    texts = [path.read_text() for path in (root / "Snakefile", *(root / "rules").glob("*.smk"))]
    assert sum(text.count("\nonstart:") for text in texts) == 1
