"""Who imports whom in drifting_core, read from the source: the graph of docs/architecture.md and its rule. Light.

Imports run downwards only: from a room to those of lower levels, and inside a room without a circle. What is imported
inside a function counts as well.
"""

from __future__ import annotations

import ast
import graphlib
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from drifting_core.artifacts import publish

PACKAGE = "drifting_core"
LIGHT = "light modules"
ROOMS = {"claims": 5, "evaluation": 4, "training": 3, "drift": 2, "models": 2, "data": 1, LIGHT: 0}
MARK = "graph"  # name of the picture's text that says which graph it shows


class Edge(NamedTuple):
    """One module imports another; names without the package's."""

    importer: str
    imported: str


def room_of(module: str) -> str:
    """`data.tars` -> `data`; the light modules, and their packages (config, artifacts, doctor), are one room."""
    first = module.split(".")[0]
    return first if first in ROOMS else LIGHT


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


def upwards(found: list[Edge]) -> list[Edge]:
    """Imports that break the rule: of a higher room."""
    return [edge for edge in found if ROOMS[room_of(edge.imported)] > ROOMS[room_of(edge.importer)]]


def circle(found: list[Edge]) -> list[str]:
    """Modules that import each other in a circle, the first that is found; none when there is none."""
    graph: dict[str, set[str]] = {}
    for edge in found:
        graph.setdefault(edge.importer, set()).add(edge.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def table(root: Path) -> str:
    """The graph by rooms, as Markdown."""
    found, known = edges(root), modules(root)
    lines = ["| room | level | modules | imports, by room |", "|---|---|---|---|"]
    for room, level in ROOMS.items():
        counts = {
            other: sum(room_of(edge.importer) == room and room_of(edge.imported) == other for edge in found)
            for other in ROOMS
        }
        listed = ", ".join(f"{other} {count}" for other, count in counts.items() if count)
        lines.append(f"| {room} | {level} | {sum(room_of(name) == room for name in known)} | {listed} |")
    return "\n".join(lines)


def digest(found: list[Edge]) -> str:
    return hashlib.sha256("\n".join(f"{edge.importer} {edge.imported}" for edge in found).encode()).hexdigest()


def shown_in(picture: Path) -> str | None:
    """Digest of the graph that a picture of `draw` shows."""
    from PIL import Image

    with Image.open(picture) as opened:
        return opened.info.get(MARK)


def draw(root: Path, output: Path) -> None:
    """The graph as a picture: a band per level, a dot per module, a line per import, from above to below."""
    from matplotlib import pyplot as plt
    from PIL import Image, PngImagePlugin

    found = edges(root)
    known = {name for edge in found for name in edge}
    places: dict[str, tuple[float, float]] = {}
    figure, axes = plt.subplots(figsize=(16, 10), layout="constrained")
    top = max(ROOMS.values())
    for level in range(top + 1):
        inside = [room for room, at in ROOMS.items() if at == level]
        names = [name for room in inside for name in sorted(known) if room_of(name) == room]
        axes.axhspan(level - 0.42, level + 0.42, color="0.96" if level % 2 else "0.92", zorder=0)
        axes.text(
            -0.01, level, "\n".join(inside), ha="right", va="center", fontsize=11, transform=axes.get_yaxis_transform()
        )
        for number, name in enumerate(names):
            step = (number % 4 - 1.5) * 0.19  # four lines of names, or they would not fit
            places[name] = ((number + 0.5) / len(names), level + step)
    for edge in found:
        (x0, y0), (x1, y1) = places[edge.importer], places[edge.imported]
        colour = "tab:blue" if room_of(edge.importer) != room_of(edge.imported) else "tab:orange"
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.5, alpha=0.35, zorder=1)
    for name, (x, y) in places.items():
        axes.plot([x], [y], "o", color="black", markersize=3, zorder=3)
        shown = name if room_of(name) == LIGHT else name.partition(".")[2] or name
        axes.text(x, y + 0.035, shown, ha="center", va="bottom", fontsize=7, zorder=4)
    axes.set(xlim=(0, 1), ylim=(-0.5, top + 0.5), xticks=[], yticks=[])
    axes.set_title(f"{PACKAGE}: {len(known)} modules, {len(found)} imports (orange: inside a room)", fontsize=11)
    for side in axes.spines.values():
        side.set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    plt.close(figure)
    about = PngImagePlugin.PngInfo()
    about.add_text(MARK, digest(found))
    with Image.open(drawn) as opened, publish(output) as scratch:
        # Few colours: a quarter of the bytes.
        few = opened.convert("RGB").quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(scratch, "PNG", optimize=True, pnginfo=about)
