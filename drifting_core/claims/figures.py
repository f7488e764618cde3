"""Pictures of a claim: PNG bytes, made from tables and from the grids beside the metrics."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from drifting_core.artifacts import MetricsTable

_DPI = 110
_LEAST_TILE = 48  # pixels that a sample is shown at, at least
_COLOURS = ("#1b4f72", "#b9770e")

Pixels = NDArray[np.uint8]


def curve(table: MetricsTable) -> bytes:
    """Distance (with its standard error) and within-class diversity against training steps."""
    return _two_panels(table, "step", "training step")


def sweep(table: MetricsTable) -> bytes:
    """Distance (with its standard error) and within-class diversity against guidance strength."""
    return _two_panels(table, "alpha", "guidance strength alpha")


def _two_panels(table: MetricsTable, column: str, label: str) -> bytes:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _line(left, table, column, "distance", "distance_error", _COLOURS[0])
    left.set(
        xlabel=label,
        ylabel=f"{table.distance_name} (lower is better)",
        ylim=(0, 1.15 * max(row["distance"] + row["distance_error"] for row in table.rows)),
    )
    _line(right, table, column, "within_class_diversity", None, _COLOURS[1])
    right.axhline(1.0, color="0.6", linewidth=1, linestyle=":")
    right.annotate("real images", (0.99, 1.0), xycoords=("axes fraction", "data"), va="bottom", ha="right", color="0.4")
    right.set(
        xlabel=label,
        ylabel="within-class diversity",
        ylim=(0, 1.15 * max(1.0, *(row["within_class_diversity"] for row in table.rows))),
    )
    return png(figure)


def _line(axes: Axes, table: MetricsTable, column: str, value: str, error: str | None, colour: str) -> None:
    """One line per selection seed; a guidance or step that differs within the table is what `column` says."""
    for number, seed in enumerate(sorted({row["seed"] for row in table.rows})):
        rows = sorted((row for row in table.rows if row["seed"] == seed), key=lambda row: row[column])
        axes.errorbar(
            [row[column] for row in rows],
            [row[value] for row in rows],
            yerr=[row[error] for row in rows] if error else None,
            color=colour,
            alpha=1.0 if number == 0 else 0.5,
            marker="o",
            markersize=4,
            capsize=3,
        )
    axes.spines[["top", "right"]].set_visible(False)


def read_picture(path: Path) -> Pixels:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def labelled_rows(picture: Pixels, labels: Sequence[str], title: str = "") -> bytes:
    """A picture of len(labels) rows of square tiles, enlarged without smoothing, with a label at each row."""
    tile = picture.shape[0] // len(labels)
    scale = max(1, -(-_LEAST_TILE // tile))
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = large.shape[:2]
    margin = 0.35 + 0.085 * max(len(label) for label in labels)  # inches
    top = 0.3 if title else 0.05
    size = (width / _DPI + margin + 0.05, height / _DPI + top + 0.05)
    figure = Figure(figsize=size)
    axes = figure.add_axes((margin / size[0], 0.05 / size[1], width / _DPI / size[0], height / _DPI / size[1]))
    axes.imshow(large, interpolation="nearest", aspect="auto")
    axes.set_yticks([(row + 0.5) * height / len(labels) for row in range(len(labels))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return png(figure)


def first_column(grid: Pixels, rows: int) -> Pixels:
    """The first sample of each of a grid's rows, side by side: (tile, rows * tile, 3)."""
    tile = grid.shape[0] // rows
    return np.concatenate([grid[row * tile : (row + 1) * tile, :tile] for row in range(rows)], axis=1)


def stacked(rows: Sequence[Pixels]) -> Pixels:
    """Rows of equal size under each other."""
    return np.concatenate(rows, axis=0)


def png(figure: Figure) -> bytes:
    held = io.BytesIO()
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    figure.savefig(held, format="png", dpi=_DPI, metadata={"Software": None})
    return held.getvalue()
