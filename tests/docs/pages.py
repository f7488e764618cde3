"""What the project's pages hold that can be wrong: commands, Python, links, names of files."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Words that a command begins with. A line or code span that begins with none of them is no command.
PROGRAMS = {
    "apptainer", "apt-get", "bash", "cd", "conda", "export", "git", "hf", "make", "mkdir", "module", "pip", "pre-commit",
    "python", "python3", "sacctmgr", "sbatch", "scancel", "scontrol", "sinfo", "snakemake", "source", "squeue", "srun",
    "tensorboard", "uv",
}  # fmt: skip
_ASSIGNMENT = r"[A-Z_]+=(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)"


@dataclass(frozen=True)
class Command:
    """A command as it stands in a page, comments removed and continued lines joined."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Block:
    """Lines of code, without their indent: an indented block, or what stands between fences."""

    line: int
    lines: list[str]
    language: str  # of a fence; "" where none is named

    @property
    def is_python(self) -> bool:
        return self.language == "python" or (not self.language and bool(re.match(r"(import|from) \w", self.lines[0])))


def pages() -> list[Path]:
    """Every page of the repository, the generated ones included."""
    found = [ROOT / "README.md", *(path for path in ROOT.glob("*.md") if path.name != "README.md")]
    for folder in ("docs", "envs", "drifting_core", "tests", "config", "profiles", "report"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [*found, ROOT / "results/README.md"]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def split(page: Path) -> tuple[list[Block], str]:
    """Code blocks of a page, and its text with these lines left empty (so that line numbers stay)."""
    blocks: list[Block] = []
    text: list[str] = []
    fence: str | None = None
    indented = False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        opening = re.match(r"\s*```(\w*)\s*$", line)
        if opening:
            fence, indented = (None if fence is not None else opening[1]), False
            if fence is not None:
                blocks.append(Block(number + 1, [], fence))
        elif fence is not None:
            blocks[-1].lines.append(line)
        elif re.match(r" {4,}\S", line) and (indented or not text or not text[-1].strip()):
            if not indented:
                blocks.append(Block(number, [], ""))
            indented = True
            blocks[-1].lines.append(line)
        elif indented and not line.strip():
            blocks[-1].lines.append("")
        else:
            indented = False
            text.append(line)
            continue
        text.append("")
    return [Block(block.line, _dedented(block.lines), block.language) for block in blocks], "\n".join(text)


def _dedented(lines: list[str]) -> list[str]:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[indent:] for line in lines]


def commands(page: Path) -> list[Command]:
    """Every command of a page, in blocks and in code spans."""
    blocks, text = split(page)
    found = []
    for block in blocks:
        if not block.is_python:
            found += [Command(name(page), line, words) for line, words in commands_of(block)]
    for line, span in spans(text):
        bare = re.sub(rf"^(?:{_ASSIGNMENT} )+", "", span)
        first, *rest = bare.split(" ", 1)
        if first in PROGRAMS and rest and (first != "make" or re.fullmatch(r"make [a-z-]+(?: [A-Z]+=\S+)*", bare)):
            found.append(Command(name(page), line, span))
    return found


def commands_of(block: Block) -> list[tuple[int, str]]:
    """Line and text of every command in a block."""
    found: list[tuple[int, str]] = []
    prefix, open_line = "", False  # an assignment stands before the commands below it
    for number, line in enumerate(block.lines, start=block.line):
        bare = re.sub(r"(^|\s)\s*# .*$", "", line).rstrip()
        if not bare:
            continue
        first = bare.split()[0]
        if found and (open_line or (bare.startswith(" ") and first.strip() and first not in PROGRAMS)):
            found[-1] = (found[-1][0], f"{found[-1][1]} {bare.strip().removesuffix(chr(92)).strip()}")
        elif re.fullmatch(_ASSIGNMENT, bare):
            prefix += f"{bare}; "
            continue
        elif first in PROGRAMS or re.match(rf"{_ASSIGNMENT} ", bare):
            found.append((number, prefix + bare.strip().removesuffix(chr(92)).strip()))
        open_line = bare.endswith(chr(92))
    return found


def spans(text: str) -> list[tuple[int, str]]:
    """Line and content of every code span; one that goes over lines is joined."""
    found = []
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        found.append((text.count("\n", 0, span.start()) + 1, " ".join(span[1].split())))
    return found


def links(page: Path) -> list[tuple[int, str]]:
    """Line and target of every link and picture, and of every address in angle brackets."""
    _, text = split(page)
    bare = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda span: "\n" * span[0].count("\n") or "code", text)
    found = re.finditer(r"\]\(([^)\s]+)\)|<(https?:[^>\s]+)>", bare)
    return [(bare.count("\n", 0, link.start()) + 1, link[1] or link[2]) for link in found]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    _, text = split(page)
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        made.add(f"{slug}-{number}" if number else slug)
    return made


@functools.cache
def names_of_tests(file: str) -> set[str]:
    """The tests in a file below tests/."""
    return {
        node.name for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text())) if isinstance(node, ast.FunctionDef)
    }
