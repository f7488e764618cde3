"""Links of all pages lead somewhere; files, keys and configurations that they show are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from drifting_core import config
from tests.docs.pages import ROOT, anchors, links, name, names_of_tests, pages, spans, split

# Where pages lead outside. Nothing is fetched: a new address is looked at by hand, and listed here.
OUTSIDE = {
    "https://arxiv.org/abs/2602.04770",
    "https://image-net.org/download-images",
}
PAGES = pages()
IDS = [name(page) for page in PAGES]

# Files of the runbook, which docs/imagenet.md goes through.
RUNBOOKS = {"disk_cleanup_checkpoints.py", "docs/golden_artifacts.md"}

# Folders of the repository; a code span that begins with one of them names a file of it.
_FOLDERS = r"(?:config|docs|drifting_core|envs|profiles|report|rules|tests|workflow_scripts)"

_FILE = r"\.(?:json|jsonl|py|md|done|npz|h5|yaml|png|html|tar|log|safetensors)$"
PRESENT = [path.as_posix() for folder in _FOLDERS[3:-1].split("|") for path in (ROOT / folder).rglob("*")]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for line, target in links(page):
        where = f"{name(page)}:{line}: {target}"
        if re.match(r"[a-z]+:", target):
            assert target in OUTSIDE, f"{where}: list it in {Path(__file__).name} when you have looked at it"
            continue
        file, _, anchor = target.partition("#")
        leads = (page.parent / file).resolve() if file else page
        assert leads.exists(), where
        assert leads.is_relative_to(ROOT), f"{where}: outside the repository"
        if anchor:
            assert anchor in anchors(leads), f"{where}: no such heading; there are {sorted(anchors(leads))}"


def test_addresses_outside_are_well_formed_and_used() -> None:
    used = {target for page in PAGES for _, target in links(page)}
    for address in OUTSIDE:
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[\w./#%?=&~+-]*)?", address), address
        assert address in used, f"{address}: no page leads there any more"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_are_there(page: Path) -> None:
    """Those of the repository; one that is named without its folder must be somewhere."""
    for line, span in spans(split(page)[1]):
        where = f"{name(page)}:{line}: `{span}`"
        if re.fullmatch(rf"{_FOLDERS}/[\w./{{}},*-]+", span) and span not in RUNBOOKS:
            for path in _spelled_out(span):
                below = [ROOT, ROOT / "drifting_core"]  # the page may be about a room of the package
                assert any(any(root.glob(path.rstrip("/"))) for root in below) or path.endswith(".sif"), where
        elif re.fullmatch(rf"{_FOLDERS}/[\w./-]+\.py::\w+", span):
            file, test = span.split("::")
            assert test in names_of_tests(file.removeprefix("tests/")), where
        elif re.fullmatch(r"(?:[\w-]+/)*\w+\.(?:py|smk)", span) and span not in RUNBOOKS:
            assert any(path.endswith(f"/{span}") for path in PRESENT), where


def _spelled_out(path: str) -> list[str]:
    """a/{b,c}.d -> a/b.d and a/c.d."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if not braces:
        return [path]
    return [each for word in braces[1].split(",") for each in _spelled_out(path.replace(braces[0], word, 1))]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_keys_that_are_named_exist(page: Path) -> None:
    """A code span such as `training.steps`, or `encoder.training.{...}`, is a key of the configuration."""
    sections = set(config.Configuration.model_fields)
    for line, span in spans(split(page)[1]):
        keys = re.match(r"((?:\w+\.)+\w+)(?::|$)", span)
        if keys and keys[1].split(".")[0] in sections and not re.search(_FILE, keys[1]):
            assert _is_key(keys[1]), f"{name(page)}:{line}: `{span}` is no key of the configuration"


def _is_key(dotted: str) -> bool:
    models = [config.Configuration]
    for part in dotted.split("."):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:
            return False
        models = [model for field in fields for model in _models(field.annotation)]
    return True


def _models(annotation: object) -> list[type[config.Configuration]]:
    """Every section in a field's type."""
    inside = getattr(annotation, "__args__", ())
    own = [annotation] if hasattr(annotation, "model_fields") else []
    return [*own, *(model for each in inside for model in _models(each))]  # type: ignore[list-item]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_yaml_that_is_shown_is_a_configuration(page: Path) -> None:
    """Put into the demo's."""
    for block in split(page)[0]:
        if re.match(r"\w+:( |$)", block.lines[0]) and block.lines[0].split(":")[0] in config.Configuration.model_fields:
            [(section, values)] = yaml.safe_load("\n".join(block.lines)).items()
            change = f"{section}={json.dumps(values)}"
            config.load_file(ROOT / "config/demo.yaml", [change])
