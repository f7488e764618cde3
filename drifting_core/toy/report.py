"""What `make toy` shows: its runs, the table with a verdict, the picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from drifting_core.artifacts import ToyCheck, ToyExperiment, ToyRun, publish, records
from drifting_core.artifacts.identity import digest
from drifting_core.artifacts.provenance import code_version
from drifting_core.claims.figures import png
from drifting_core.data import draws
from drifting_core.drift.field import drift_field
from drifting_core.faults import Fault
from drifting_core.toy.experiment import Course, DataSet, Force, Setting, data

PICTURE = "toy.png"
TABLE = "toy.json"

SEEDS = (42, 43, 44)
DATA_SETS: tuple[DataSet, ...] = ("swiss_roll", "checkerboard")
PUBLISHED = 1.63e-5  # smoothed swiss-roll loss at step 2000 on the authors' project page; none for the checkerboard


@dataclass(frozen=True)
class Band:
    """Where the median of a number over the seeds must lie."""

    data_set: DataSet
    force: Force
    number: Literal["smoothed_loss", "spread"]
    low: float
    high: float
    compared_with: str


BANDS = (
    Band("swiss_roll", "drift", "smoothed_loss", 0.8e-5, 2.2e-5, f"{PUBLISHED:.2e} on the authors' page"),
    Band("checkerboard", "drift", "smoothed_loss", 2e-5, 7e-5, "4.0e-05 in an independent NumPy run, 1 seed"),
    *(Band(data_set, "drift", "spread", 0.9, 1.1, "1 for the data itself") for data_set in DATA_SETS),
    *(Band(data_set, "attraction_only", "spread", 0.0, 0.1, "collapse is expected") for data_set in DATA_SETS),
)


def settings() -> list[Setting]:
    """Both data sets under three seeds; and without repulsion, under one seed and until nothing moves any more."""
    whole = [Setting(data_set, seed=seed) for seed in SEEDS for data_set in DATA_SETS]
    short = (0, 20, 50, 200, 500)
    return whole + [Setting(data_set, "attraction_only", SEEDS[0], short[-1], keep=short) for data_set in DATA_SETS]


def experiment(courses: Sequence[Course]) -> ToyExperiment:
    runs = [
        ToyRun(
            data_set=course.setting.data_set,
            force=course.setting.force,
            seed=course.setting.seed,
            steps=course.setting.steps,
            smoothed_loss=course.smoothed[-1],
            spread=course.spread,
            energy_distance=course.energy_distance,
        )
        for course in courses
    ]
    return ToyExperiment(
        configuration=digest([asdict(course.setting) for course in courses]),
        code=code_version(),
        runs=runs,
        checks=[_check(band, runs) for band in BANDS],
    )


def _check(band: Band, runs: Sequence[ToyRun]) -> ToyCheck:
    values = [getattr(run, band.number) for run in runs if (run.data_set, run.force) == (band.data_set, band.force)]
    middle = median(values)
    return ToyCheck(**asdict(band), median=middle, inside=band.low <= middle <= band.high)


def write(folder: Path, courses: Sequence[Course]) -> ToyExperiment:
    """Picture first, then the numbers that name it."""
    made = experiment(courses)
    with publish(folder / PICTURE) as scratch:
        scratch.write_bytes(picture(courses))
    made.files = records(folder, [PICTURE])
    made.write(folder / TABLE)
    return made


def require_inside(made: ToyExperiment) -> None:
    """Raises Fault naming every median outside its band."""
    outside = [f"{_name(c)} {c.number.replace('_', ' ')} {c.median:.3g}" for c in made.checks if not c.inside]
    if outside:
        raise Fault(
            f"outside its band: {'; '.join(outside)}; look at the picture: this is not the published method any more"
        )


# --- table ----------------------------------------------------------------------------------------------------------


def _name(what: ToyRun | ToyCheck | Setting) -> str:
    return what.data_set.replace("_", " ") + (", attraction only" if what.force == "attraction_only" else "")


def table(made: ToyExperiment) -> str:
    lines = [f"{'':32}{'seed':>6}{'steps':>7}{'smoothed loss':>15}{'spread':>9}{'energy distance':>17}"]
    for run in made.runs:
        loss, spread, distance = f"{run.smoothed_loss:.2e}", f"{run.spread:.1%}", f"{run.energy_distance:.4f}"
        lines.append(f"{_name(run):32}{run.seed:>6}{run.steps:>7}{loss:>15}{spread:>9}{distance:>17}")
    lines += ["", f"{'median over seeds':32}{'':13}{'found':>9}{'band':>23}   verdict   compare with"]
    for check in made.checks:
        shown = "{:.2e}" if check.number == "smoothed_loss" else "{:.1%}"
        found, band = shown.format(check.median), f"{shown.format(check.low)} to {shown.format(check.high)}"
        name, number = _name(check), check.number.replace("_", " ")
        verdict = "inside " if check.inside else "OUTSIDE"
        lines.append(f"{name:32}{number:13}{found:>9}{band:>23}   {verdict}   {check.compared_with}")
    return "\n".join([*lines, "", *_EXPLANATION])


_EXPLANATION = (
    "smoothed loss    mean of V^2 over the 2048 x 2 numbers of a step, moving average (0.96 old, 0.04 new), last step",
    "spread           root-mean-square distance of 2048 samples to their mean, as a share of the data's",
    "energy distance  of those samples to 2048 fresh data; 0 on average for two sets of one distribution",
    "attraction only  V+ of the paper's equation 8 without V-; its loss is the mean of V+^2",
)


# --- picture --------------------------------------------------------------------------------------------------------

_DATA = "0.8"
_COLOURS = {"swiss_roll": "#1b4f72", "checkerboard": "#b9770e"}
_NO_REPULSION = "#a93226"
_REACH = 1.25


def picture(courses: Sequence[Course]) -> bytes:
    """Samples (in colour) and data (grey) over training, a row per data set and force; below, the losses and a field."""
    rows = [course for course in courses if course.setting.seed == courses[0].setting.seed]
    figure = Figure(figsize=(8.6, 1.78 * len(rows) + 2.7), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.78 * len(rows), 2.7))
    above, below = parts
    panels = above.subplots(len(rows), len(rows[0].samples), squeeze=False)
    for line, course in zip(panels, rows, strict=True):
        _evolution(line, course)
    left, right = below.subplots(1, 2, width_ratios=(2.1, 1))
    _losses(left, courses)
    _field(right)
    return _few_colours(png(figure))


def _few_colours(picture: bytes) -> bytes:
    """The same picture with a palette, a third of the size: some ten thousand small dots compress badly otherwise."""
    held = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as opened:
        palette = opened.convert("RGB").quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette.save(held, "png", optimize=True)
    return held.getvalue()


def _evolution(line: Any, course: Course) -> None:
    setting = course.setting
    colour = _NO_REPULSION if setting.force == "attraction_only" else _COLOURS[setting.data_set]
    behind = data(setting.data_set, setting.batch, setting.seed, "behind")
    for axes, (step, samples) in zip(line, sorted(course.samples.items()), strict=True):
        _points(axes, behind.numpy(), 1.2, _DATA)
        _points(axes, samples, 1.6, colour)
        axes.set_title(f"step {step}", fontsize=8, pad=2)
        _bare(axes)
    line[-1].set_title(f"step {setting.steps}, spread {course.spread:.0%}", fontsize=8, pad=2)
    line[0].set_ylabel(_name(setting).replace(", ", "\n"), fontsize=9)


def _losses(axes: Axes, courses: Sequence[Course]) -> None:
    named = set()
    for course in courses:
        setting = course.setting
        if setting.force == "drift":
            label = None if setting.data_set in named else f"{_name(setting)}, {len(SEEDS)} seeds"
            named.add(setting.data_set)
            axes.plot(range(1, len(course.losses) + 1), course.smoothed, color=_COLOURS[setting.data_set], lw=1, label=label)
    axes.axhline(PUBLISHED, color="0.3", lw=1, ls="--", label=f"published, swiss roll, step 2000: {PUBLISHED:.2e}")
    axes.set_yscale("log")
    axes.set_xlabel("training step", fontsize=9)
    axes.set_ylabel("smoothed loss, mean of V²", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _field(axes: Axes) -> None:
    """The authors' picture of V: 100 points N(0, 0.5^2) against 500 of four modes at (+-0.5, +-0.5), sd 0.1; T = 0.2."""
    x = 0.5 * draws.normal(draws.key(SEEDS[0], "toy", "field", "x"), (100, 2))
    key = draws.key(SEEDS[0], "toy", "field", "data")
    modes = draws.integers(key, 2, (500, 2), start=1000).float() - 0.5
    positives = modes + 0.1 * draws.normal(key, (500, 2))
    v = drift_field(x, positives, x, 0.2, mask_self=True)
    _points(axes, positives.numpy(), 3, _DATA)
    as_long_as_v: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0}
    axes.quiver(*x.numpy().T, *v.numpy().T, color=_COLOURS["swiss_roll"], width=0.006, **as_long_as_v)
    axes.set_title("V at 100 samples, four modes, T = 0.2", fontsize=8, pad=2)
    _bare(axes)


def _points(axes: Axes, points: NDArray[np.float32], size: float, colour: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, linewidths=0)


def _bare(axes: Axes) -> None:
    axes.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set(color="0.85")
