"""The rooms of drifting_core and who imports whom, read from docs/architecture.md and from the source.

The table of rooms in that page is the law: imports run from a room to rooms of lower floors, and inside a room without
a circle. What is imported inside a function counts as well.
"""

from __future__ import annotations

import ast
import graphlib
import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from drifting_core.artifacts import publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGE = "drifting_core"
MARK = "rooms"  # name of the picture's text that says what it shows

_ROW = re.compile(r"\| (?P<floor>\d+) \| `(?P<name>[a-z_/.]+)` \| (?P<light>yes|no) \| (?P<what>.+) \|")


class Room(NamedTuple):
    """A row of the table: a folder below the package, or the one file beside them."""

    name: str  # as the folder is called: evaluation/networks
    floor: int
    light: bool  # no torch, h5py or diffusers when it is imported
    what: str

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").replace("/", ".")


class Edge(NamedTuple):
    """One module imports another; names without the package's."""

    importer: str
    imported: str


def rooms(page: str) -> list[Room]:
    """The rooms of the table in docs/architecture.md, from above to below."""
    found = [row.groupdict() for row in map(_ROW.fullmatch, page.splitlines()) if row]
    return [Room(row["name"].removesuffix("/"), int(row["floor"]), row["light"] == "yes", row["what"]) for row in found]


def room_of(module: str, among: Iterable[Room]) -> Room | None:
    """The room that a module lies in: of evaluation and evaluation/networks the inner one; None if it lies in none."""
    holding = [room for room in among if f"{module}.".startswith(f"{room.module}.")]
    return max(holding, key=lambda room: len(room.module), default=None)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package below `root`, but the package's own front door, which stands above all rooms."""
    package = root / PACKAGE
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def edges(root: Path) -> list[Edge]:
    """All imports between modules, sorted. `from a import b` is an import of a.b where that is a module, else of a."""
    known = modules(root)
    found = set()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
            elif isinstance(node, ast.Import):
                wanted = [(alias.name, alias.name) for alias in node.names]
            else:
                continue
            for ways in wanted:
                inside = [way.removeprefix(f"{PACKAGE}.") for way in ways if way.startswith(f"{PACKAGE}.")]
                imported = next((way for way in inside if way in known), None)
                if imported and imported != name:
                    found.add(Edge(name, imported))
    return sorted(found)


def upwards(found: Iterable[Edge], among: list[Room]) -> list[str]:
    """Imports that break the rule, in words: of a room on the same floor or above."""
    said = []
    for edge in found:
        above, below = room_of(edge.importer, among), room_of(edge.imported, among)
        if above is None or below is None:
            said.append(f"{edge.importer if above is None else edge.imported} lies in no room of docs/architecture.md")
        elif above != below and above.floor <= below.floor:
            said.append(
                f"{edge.importer} on floor {above.floor} imports {edge.imported} on floor {below.floor}: not below it"
            )
    return said


def circle(found: Iterable[Edge]) -> list[str]:
    """Modules that import each other in a circle, the first that is found; none when there is none."""
    graph: dict[str, set[str]] = {}
    for edge in found:
        graph.setdefault(edge.importer, set()).add(edge.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def arrows(found: Iterable[Edge], among: list[Room]) -> set[tuple[Room, Room]]:
    """Which room imports from which."""
    pairs = {(room_of(edge.importer, among), room_of(edge.imported, among)) for edge in found}
    return {(above, below) for above, below in pairs if above and below and above != below}


def needed(drawn: set[tuple[Room, Room]]) -> set[tuple[Room, Room]]:
    """The arrows that no chain of others implies (the transitive reduction; there are no circles)."""
    below: dict[Room, set[Room]] = {}
    for importer, imported in sorted(drawn, key=lambda pair: pair[0].floor):
        below.setdefault(importer, set()).update({imported}, below.get(imported, set()))
    return {
        (importer, imported)
        for importer, imported in drawn
        if not any(imported in below.get(other, set()) for room, other in drawn if room == importer)
    }


# --- the list of modules ----------------------------------------------------------------------------------------------

_HEAD = """# Modules

*Generated by `make docs` from the source; a test keeps it in step.*

Every module of `drifting_core`, by room, from above to below.
[architecture.md](architecture.md) says what the rooms are, and which may import which.
"""


def listing(root: Path, among: list[Room]) -> str:
    """docs/modules.md: each module with the first sentence of its docstring and the rooms that it imports from."""
    known, found = modules(root), edges(root)
    parts = [_HEAD]
    for room in among:
        parts.append(f"\n## {room.name}\n\n{room.what}\n\n| module | what it is | imports from |\n|---|---|---|\n")
        for name, path in known.items():
            if room_of(name, among) == room and path.name != "__init__.py":
                theirs = {edge.imported for edge in found if edge.importer == name}
                lower = [other.name for other in among if other != room and any(room_of(m, among) == other for m in theirs)]
                place = path.relative_to(root).as_posix()
                parts.append(f"| [{path.name}](../{place}) | {first_sentence(path)} | {', '.join(lower)} |\n")
    return "".join(parts)


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0].replace("|", "\\|")


# --- the picture ------------------------------------------------------------------------------------------------------

_LIGHT, _HEAVY, _LINE = "#dcebf7", "#fbe5d0", "#40566b"
_LEFT, _RIGHT = 0.1, 0.9  # where boxes stand, as shares of the width
_HEIGHT, _LANE = 0.64, 0.025  # of a box, in floors; between arrows that pass floors by


class _Box(NamedTuple):
    left: float
    right: float
    floor: int

    @property
    def top(self) -> float:
        return self.floor + _HEIGHT / 2

    @property
    def bottom(self) -> float:
        return self.floor - _HEIGHT / 2


def digest(found: list[Edge], among: list[Room]) -> str:
    """Of what the picture shows."""
    shown = sorted((above.name, below.name) for above, below in arrows(found, among))
    return hashlib.sha256(repr([sorted(among), shown]).encode()).hexdigest()


def shown_in(picture: Path) -> str | None:
    """Digest of what a picture of `draw` shows."""
    from PIL import Image

    with Image.open(picture) as opened:
        return opened.info.get(MARK)


def draw(root: Path, among: list[Room], output: Path) -> None:
    """Rooms as boxes on floors, and the arrows between them that no chain of others implies."""
    from matplotlib.figure import Figure
    from PIL import Image, PngImagePlugin

    found = edges(root)
    every = arrows(found, among)
    figure = Figure(figsize=(8.3, 0.7 * (1 + max(room.floor for room in among))))
    axes: Any = figure.add_axes((0, 0, 1, 1))
    boxes = {room: box for room, box in _places(among)}
    for room, box in boxes.items():
        _draw_box(axes, room, box)
    _draw_arrows(axes, boxes, needed(every))
    for floor in {room.floor for room in among}:
        axes.text(0.012, floor, str(floor), ha="left", va="center", fontsize=9, color="0.55")
    axes.text(
        0.5, -0.62, f"{len(every)} pairs of rooms import; arrows that follow from others are left out. "
        "Blue: light rooms, no torch at import. Orange: the others.", ha="center", va="center", fontsize=8, color="0.35",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(-0.85, max(room.floor for room in among) + 0.5))
    axes.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=200)
    about = PngImagePlugin.PngInfo()
    about.add_text(MARK, digest(found, among))
    with Image.open(drawn) as opened, publish(output) as scratch:
        # Few colours: a quarter of the bytes.
        few = opened.convert("RGB").quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(scratch, "PNG", optimize=True, pnginfo=about)


def _places(among: list[Room]) -> Iterator[tuple[Room, _Box]]:
    """The rooms of a floor share its width."""
    gap = 0.03
    for floor in sorted({room.floor for room in among}):
        beside = [room for room in among if room.floor == floor]
        width = (_RIGHT - _LEFT + gap) / len(beside)
        for number, room in enumerate(beside):
            yield room, _Box(_LEFT + number * width, _LEFT + (number + 1) * width - gap, floor)


def _draw_box(axes: Axes, room: Room, box: _Box) -> None:
    from matplotlib.patches import Rectangle

    size, colour = (box.right - box.left, _HEIGHT), _LIGHT if room.light else _HEAVY
    axes.add_patch(Rectangle((box.left, box.bottom), *size, facecolor=colour, edgecolor=_LINE, linewidth=0.8, zorder=3))
    middle = (box.left + box.right) / 2
    words = textwrap.fill(room.what, int(115 * (box.right - box.left)))
    axes.text(middle, box.top - 0.05, room.name, ha="center", va="top", fontsize=10, weight="bold", zorder=4)
    axes.text(middle, box.bottom + 0.2, words, ha="center", va="center", fontsize=7, linespacing=1.05, zorder=4)


def _side(start: _Box, end: _Box) -> bool:
    """Whether an arrow passes at the left. Raises ValueError where on neither side both boxes are the outermost."""
    if start.left == end.left == _LEFT:
        return True
    if max(abs(start.right - _RIGHT), abs(end.right - _RIGHT)) < 1e-9:
        return False
    raise ValueError(
        f"an arrow from floor {start.floor} to {end.floor} would pass behind a box; order the rows of the table"
    )


def _draw_arrows(axes: Axes, boxes: dict[Room, _Box], drawn: set[tuple[Room, Room]]) -> None:
    """Straight to the floor below; past other floors through a lane beside them, the longest outermost."""
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": _LINE, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    lanes: dict[bool, list[int]] = {True: [], False: []}  # at the left, at the right: the floor down to which each is taken
    for above, below in sorted(drawn, key=lambda pair: (pair[0].floor - pair[1].floor, -pair[0].floor)):
        start, end = boxes[above], boxes[below]
        if above.floor - below.floor == 1:
            low, high = max(start.left, end.left), min(start.right, end.right)
            ends = ((low + high) / 2,) * 2 if low < high else (low, high) if start.left == low else (high, low)
            axes.annotate("", (ends[1], end.top), (ends[0], start.bottom), arrowprops=arrow, zorder=5)
            continue
        at_left = _side(start, end)
        taken = lanes[at_left]
        lane = next((n for n, floor in enumerate(taken) if floor >= above.floor), len(taken))
        taken[lane : lane + 1] = [below.floor]
        side, aim, away = (start.left, end.left, -1) if at_left else (start.right, end.right, 1)
        x, out, back = side + away * (0.02 + _LANE * lane), start.floor - 0.12, end.floor + 0.12
        axes.plot([side, x, x], [out, out, back], color=_LINE, linewidth=1.0, zorder=2)
        axes.annotate("", (aim, back), (x, back), arrowprops=arrow, zorder=2)
