"""`--help` of each script: what it is for, what each argument means, and an example."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from tests.docs.scripts import SCRIPTS, documentation, examples, parser_of


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_purpose_arguments_and_an_example(script: Path) -> None:
    parser = parser_of(script.name)
    text = parser.format_help() if parser.description else documentation(script.name)  # run_workflow.py prints its own
    purpose = documentation(script.name).split("\n\n")[0].split("\n")[0]
    assert purpose[0].isupper(), purpose
    assert purpose in text
    assert "Example" in text
    assert examples(script.name), "the example is no command"
    unsaid = [action.dest for action in parser._actions if not action.help or len(action.help.split()) < 2]
    assert not unsaid, f"arguments without a help text of some words: {unsaid}"
    # Where a default matters it is said.
    for action in parser._actions:
        if action.default not in (None, False, argparse.SUPPRESS) and not isinstance(action.default, (list, tuple)):
            assert re.search(r"default", str(action.help)), action.dest
    assert max(map(len, documentation(script.name).splitlines())) <= 125
