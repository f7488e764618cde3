"""Pictures of a claim: PNG bytes, made from tables and from the grids beside the metrics."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from drifting_core.artifacts import MetricsTable, TrainingCurve

_DPI = 110
_LEAST_TILE = 48  # pixels that a sample is shown at, at least
_MOST_STEPS = 8  # columns of a picture over training
_COLOURS = ("#1b4f72", "#b9770e", "#1e8449")

Pixels = NDArray[np.uint8]


def curve(table: MetricsTable) -> bytes:
    """Distance (with its standard error) and within-class diversity against training steps."""
    return _two_panels(table, "step", "training step")


def sweep(table: MetricsTable) -> bytes:
    """Distance (with its standard error) and within-class diversity against guidance strength."""
    return _two_panels(table, "alpha", "guidance strength alpha")


def progress(table: MetricsTable, training: TrainingCurve) -> bytes:
    """What is evaluated over the milestones, which says how far a training is; below, what it logs, which does not."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
    above, below = parts
    above.suptitle("measures of progress: evaluations at the milestones", fontsize=10)
    distance, diversity, spread = above.subplots(1, 3)
    _distance(distance, table, "step")
    _diversity(diversity, table, "step")
    _line(spread, table, "step", "sample_std", None, _COLOURS[2])
    spread.set(ylabel="sample spread (pixel std)", ylim=(0, 1.15 * max(row["sample_std"] for row in table.rows)))
    below.suptitle("no measures of progress: the training's own numbers", fontsize=10)
    loss, force = below.subplots(1, 2)
    steps = [row["step"] for row in training.rows]
    loss.plot(steps, [row["loss"] for row in training.rows], color=_COLOURS[0], linewidth=1)
    loss.set(ylabel="loss", ylim=(0, 1.15 * max(row["loss"] for row in training.rows)))
    for temperature, colour in zip(training.rows[0]["force_norm"], itertools.cycle(_COLOURS)):
        norms = [row["force_norm"][temperature] for row in training.rows]
        force.plot(steps, norms, color=colour, linewidth=1, label=f"temperature {temperature}")
    force.set(ylabel="force norm", yscale="log")
    force.legend(fontsize=8, frameon=False)
    for axes in (distance, diversity, spread, loss, force):
        axes.set_xlabel("training step")
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _two_panels(table: MetricsTable, column: str, label: str) -> bytes:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _distance(left, table, column)
    _diversity(right, table, column)
    left.set_xlabel(label)
    right.set_xlabel(label)
    return png(figure)


def _distance(axes: Axes, table: MetricsTable, column: str) -> None:
    _line(axes, table, column, "distance", "distance_error", _COLOURS[0])
    largest = max(row["distance"] + row["distance_error"] for row in table.rows)
    axes.set(ylabel=f"{table.distance_name} (lower is better)", ylim=(0, 1.15 * largest))


def _diversity(axes: Axes, table: MetricsTable, column: str) -> None:
    _line(axes, table, column, "within_class_diversity", None, _COLOURS[1])
    axes.axhline(1.0, color="0.6", linewidth=1, linestyle=":")
    axes.annotate("real images", (0.99, 1.0), xycoords=("axes fraction", "data"), va="bottom", ha="right", color="0.4")
    largest = max(1.0, *(row["within_class_diversity"] for row in table.rows))
    axes.set(ylabel="within-class diversity", ylim=(0, 1.15 * largest))


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


def labelled_rows(picture: Pixels, labels: Sequence[str], columns: Sequence[str] = ()) -> bytes:
    """A picture of len(labels) rows of square tiles, enlarged without smoothing, labelled at rows and, if so, columns."""
    tile = picture.shape[0] // len(labels)
    scale = max(1, -(-_LEAST_TILE // tile))
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = large.shape[:2]
    margin = 0.35 + 0.085 * max(len(label) for label in labels)  # inches
    top = 0.3 if columns else 0.05
    size = (width / _DPI + margin + 0.05, height / _DPI + top + 0.05)
    figure = Figure(figsize=size)
    axes = figure.add_axes((margin / size[0], 0.05 / size[1], width / _DPI / size[0], height / _DPI / size[1]))
    axes.imshow(large, interpolation="nearest", aspect="auto")
    axes.set_yticks([(row + 0.5) * height / len(labels) for row in range(len(labels))], labels)
    axes.set_xticks([(column + 0.5) * width / len(columns) for column in range(len(columns))], columns)
    axes.tick_params(axis="x", labeltop=True, labelbottom=False, labelsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png(figure)


def over_steps(grids: Mapping[int, Pixels], names: Sequence[str]) -> bytes:
    """The first sample of each class (a row of the grids, of these names) over training steps: equal noise, a column each.

    At most eight steps, evenly chosen, the first and the last among them.
    """
    chosen = evenly_chosen(sorted(grids), _MOST_STEPS)
    tile = grids[chosen[0]].shape[0] // len(names)
    picture = np.concatenate([grids[step][:, :tile] for step in chosen], axis=1)
    return labelled_rows(picture, names, [f"{step:,}" for step in chosen])


def evenly_chosen(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of `steps`: the first, the last, and evenly spaced ones between them."""
    count = min(len(steps), most)
    return [steps[round(place * (len(steps) - 1) / max(1, count - 1))] for place in range(count)]


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
