"""The messages of the code, as text: every `Fault` that it can raise."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from tests.docs.pages import ROOT

# What a remedy begins with.
VERBS = {
    "add",
    "ask",
    "bring",
    "call",
    "choose",
    "copy",
    "correct",
    "decode",
    "describe",
    "do",
    "download",
    "draw",
    "encode",
    "end",
    "evaluate",
    "free",
    "give",
    "grant",
    "install",
    "leave",
    "look",
    "lower",
    "make",
    "move",
    "name",
    "put",
    "raise",
    "remove",
    "replace",
    "report",
    "restore",
    "run",
    "set",
    "start",
    "submit",
    "take",
    "train",
    "use",
    "wait",
    "write",
}


@dataclass(frozen=True)
class Message:
    """`text`: with … for what is filled in."""

    place: str
    text: str

    @property
    def remedy(self) -> str:
        """The first clause that tells what to do; empty when there is none."""
        for clause in re.split(r"[;:.,(]\s+|\n\s*|\bor\b |\band\b |\bthen\b ", self.text)[1:]:
            first = re.match(r"`?([A-Za-z]+)\b", clause.strip())
            if first and first[1].lower() in VERBS:
                return clause.strip()
        return ""


def messages() -> list[Message]:
    """Of `Fault(...)` everywhere in the package and its scripts."""
    found = []
    for path in sorted([*(ROOT / "drifting_core").rglob("*.py"), *(ROOT / "workflow_scripts").glob("*.py")]):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Fault":
                place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                found.append(Message(place, _text(node.args[0], constants)))
    return found


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_text(value, constants) for value in node.values)
        case ast.BinOp():
            return _text(node.left, constants) + _text(node.right, constants)
        case ast.FormattedValue():
            return _text(node.value, constants)
        case ast.Name():
            return constants.get(node.id, "…")
        case ast.Attribute():
            return constants.get(node.attr, "…")
    return "…"
