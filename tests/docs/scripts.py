"""The programs of workflow_scripts: their argument parsers, without running them."""

from __future__ import annotations

import argparse
import functools
import runpy
from collections.abc import Sequence
from unittest import mock

from tests.docs.pages import ROOT, Block, Command, commands_of

SCRIPTS = sorted((ROOT / "workflow_scripts").glob("*.py"))


class _Shown(Exception):
    """Carries the parser out of the script that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@functools.cache
def _script(name: str) -> dict[str, object]:
    return runpy.run_path(str(ROOT / "workflow_scripts" / name))


@functools.cache
def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that `main` makes. Scripts import what computes after they have parsed, so nothing heavy is loaded."""

    def show(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Shown(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", show):
        try:
            _script(name)["main"](["nothing"])  # type: ignore[operator]
        except _Shown as shown:
            return shown.parser
    raise AssertionError(f"{name}: parses no arguments")


def parse(name: str, arguments: Sequence[str]) -> None:
    """Raises AssertionError with argparse's message when the script would refuse these arguments."""
    parser = parser_of(name)

    def refuse(message: str) -> None:
        raise AssertionError(f"{name} {' '.join(arguments)}: {message}")

    with mock.patch.object(parser, "error", refuse):
        # What run_workflow.py does not know is for Snakemake.
        parser.parse_known_args(arguments) if name == "run_workflow.py" else parser.parse_args(arguments)


def documentation(name: str) -> str:
    return str(_script(name)["__doc__"])


def examples(name: str) -> list[Command]:
    """The commands behind "Example" in a script's documentation."""
    before, word, after = documentation(name).partition("Example")
    line = before.count("\n") + 1
    first, _, rest = after.partition("\n")
    lines = [first.partition(": ")[2], *rest.splitlines()] if word else []
    return [Command(f"workflow_scripts/{name}", number, text) for number, text in commands_of(Block(line, lines, ""))]
