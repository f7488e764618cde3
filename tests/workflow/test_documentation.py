"""Every command of the pages and of the scripts' --help does what it says: run, planned, or shown to be sound.

The table of what is done with which command is tests/docs/commands.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import commands, pages, scripts
from tests.docs.pages import ROOT, Command
from tests.workflow.conftest import Walk

pytestmark = pytest.mark.workflow

# What Snakemake and the scripts need of the repository.
CODE = (
    "Snakefile",
    "Makefile",
    "pyproject.toml",
    "rules",
    "config",
    "profiles",
    "workflow_scripts",
    "report",
    "envs",
    "docs",
)


def _documented() -> dict[str, list[Command]]:
    """Every command by its text, with all places where it stands."""
    found: dict[str, list[Command]] = {}
    places = [command for page in pages.pages() for command in pages.commands(page)]
    places += [command for script in scripts.SCRIPTS for command in scripts.examples(script.name)]
    for command in places:
        found.setdefault(command.text, []).append(command)
    return found


DOCUMENTED = _documented()
TREATED = {text: commands.of(places[0]) for text, places in DOCUMENTED.items()}
SHELL = [text for text, treatments in TREATED.items() if treatments and treatments[0].how in ("run", "plan")]


def test_each_command_has_one_treatment_and_each_treatment_a_command() -> None:
    wrong = [f"{DOCUMENTED[text][0]} ({len(found)} treatments)" for text, found in TREATED.items() if len(found) != 1]
    assert not wrong, "each command needs one line in tests/docs/commands.py:\n" + "\n".join(wrong)
    idle = [
        treatment.pattern for treatment in commands.TREATMENTS if not any(treatment in found for found in TREATED.values())
    ]
    assert not idle, f"no command is left for these lines of tests/docs/commands.py: {idle}"


# --- sound, whatever is done with them -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", DOCUMENTED)
def test_a_command_names_what_is_there_and_options_that_are_taken(text: str) -> None:
    where, bare = DOCUMENTED[text][0], commands.here(text, {"run": "R", "data": "D"}).replace("…", "PLACE")
    parsed = subprocess.run(["bash", "-nc", bare], capture_output=True, text=True)
    assert parsed.returncode == 0, f"{where}: {parsed.stderr}"
    for part in re.split(r" && |; ", bare):
        words = shlex.split(part)
        made = {word for option, word in itertools.pairwise(words) if option == "--output"}
        for word in words:
            if re.match(r"(workflow_scripts|config|envs|profiles|tests)/\S+\.\w+$", word) and not word.endswith(".sif"):
                assert word in made or (ROOT / word).exists(), f"{where}: {word} does not exist"
        if "-m" in words and words[0] == "python":
            assert (ROOT / f"{words[words.index('-m') + 1].replace('.', '/')}.py").exists(), where
        script = next((word for word in words if word.startswith("workflow_scripts/")), None)
        if script and len(words) > 2:  # a script that is only named has no arguments to look at
            scripts.parse(Path(script).name, words[words.index(script) + 1 :])
        if words[:1] == ["make"]:
            said = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert said.returncode == 0, f"{where}: {said.stderr}"


def test_tests_that_cover_a_command_exist() -> None:
    for treatment in (*commands.TREATMENTS, *commands.PYTHON.values()):
        assert treatment.how != "covered" or treatment.tests, treatment.pattern
        assert treatment.how != "elsewhere" or treatment.why, treatment.pattern
        for node in treatment.tests:
            file, name = node.split("::")
            assert name in pages.names_of_tests(file), f"{node} covers `{treatment.pattern}`, but is not there"


@pytest.mark.parametrize("text", [text for text, found in TREATED.items() if found and found[0].how == "repeat"])
def test_the_first_line_of_a_log_is_a_command_that_its_script_takes(text: str, walk: Walk) -> None:
    names = {"run": _only(walk.site.folder / "results/runs"), "data": _only(walk.site.folder / "results/data")}
    pattern = re.search(r"results/logs/\S+\.log", commands.here(text, names))
    assert pattern
    logs = list(walk.site.folder.glob(pattern[0]))
    assert logs
    for log in logs:  # more than one, where other tests of this site ran before
        python, script, *arguments = shlex.split(log.read_text().splitlines()[0])
        assert Path(python).name.startswith("python")
        assert f"workflow_scripts/{Path(script).name}" == DOCUMENTED[text][0].page, "the example is of another script"
        scripts.parse(Path(script).name, arguments)


# --- run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A copy of the finished tiny site that looks like a clone in which `make demo` has run."""

    folder: Path
    names: dict[str, str]
    outcomes: dict[str, Future[subprocess.CompletedProcess[str]]]

    def command(self, text: str) -> str:
        """What is run for a documented command: some come to the same."""
        return commands.here(text, self.names) + (" -n" if TREATED[text][0].how == "plan" else "")

    def call(self, command: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env={**os.environ, "PATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(walk: Walk, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The copy, in which the commands of this session's tests are run, two at a time."""
    folder = tmp_path_factory.mktemp("documented").resolve() / "site"
    shutil.copytree(walk.site.folder, folder, symlinks=True)
    for name in CODE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    for profile in ("local", "slurm"):
        (folder / profile).symlink_to(f"profiles/{profile}")
    shutil.copy(walk.site.folder / "config.yaml", folder / "config/demo.yaml")
    (folder / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv/.ready").touch()
    names = {
        key: _only(folder / f"results/{stage}")
        for key, stage in (("run", "runs"), ("encoder", "encoders"), ("data", "data"))
    }
    made = Site(folder, names, {})
    wanted = {
        item.callspec.params["shell"] for item in request.session.items if "shell" in getattr(item, "fixturenames", ())
    }
    with ThreadPoolExecutor(2) as pool:
        for command in dict.fromkeys(made.command(text) for text in SHELL if text in wanted):
            made.outcomes[command] = pool.submit(made.call, command)
        yield made


def _only(folder: Path) -> str:
    [found] = (path.name for path in folder.iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("shell", SHELL)
def test_a_command_does_what_the_page_says(shell: str, site: Site) -> None:
    [treatment] = TREATED[shell]
    done = site.outcomes[site.command(shell)].result()
    assert done.returncode in treatment.codes, f"{DOCUMENTED[shell][0]}\n{done.stdout}"
    assert re.search(treatment.says, done.stdout), f"{DOCUMENTED[shell][0]}\n{done.stdout}"
    if treatment.how == "plan":
        assert "This was a dry-run" in done.stdout or "Nothing to be done" in done.stdout, done.stdout


# --- Python ----------------------------------------------------------------------------------------------------------

PYTHON = {
    f"{pages.name(page)}:{block.line}": "\n".join(block.lines)
    for page in pages.pages()
    for block in pages.split(page)[0]
    if block.is_python
}


@pytest.mark.parametrize("place", PYTHON)
def test_python_that_is_shown_names_what_there_is(place: str) -> None:
    """Modules and names of drifting_core, and the arguments of its functions."""
    for node in ast.walk(ast.parse(PYTHON[place])):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("drifting_core"):
            for alias in node.names:
                assert hasattr(importlib.import_module(str(node.module)), alias.name), f"{place}: {alias.name}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("drifting_core."):
            function = getattr(importlib.import_module("drifting_core"), ast.unparse(node.func).split(".", 1)[1])
            given = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **given)


@pytest.mark.parametrize(
    "place", [place for place, text in PYTHON.items() if not any(word in text for word in commands.PYTHON)]
)
def test_python_that_is_shown_runs(place: str, site: Site) -> None:
    program = commands.here(PYTHON[place], site.names)
    done = subprocess.run([sys.executable, "-c", program], cwd=site.folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
