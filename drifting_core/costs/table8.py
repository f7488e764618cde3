"""Table 8 of the paper, its columns for latents, beside a configuration: what departs, row by row. Light.

Values as the paper prints them and as its release has them (protocol 4.1; differences 7.1). Rows that no configuration
can change (AdamW's betas, the constant schedule, the order of the sizes) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from drifting_core.config import Configuration

COLUMNS = ("ablation default", "B/2", "L/2")


class Row(NamedTuple):
    """One row: what it is called, its value in each column, and where a configuration has it.

    `paper`: what the paper prints where that is not the release's, by column; None where it prints nothing.
    """

    name: str
    release: tuple[Any, Any, Any]
    here: Callable[[Configuration], Any]
    paper: dict[int, Any] = {}  # noqa: RUF012  never changed


class Departure(NamedTuple):
    """A row whose three values are not all the same."""

    row: str
    paper: str
    release: str
    here: str


def _same(value: Any) -> tuple[Any, Any, Any]:
    return value, value, value


def _epochs(config: Configuration) -> int:
    """Of the encoder's pre-training; the paper prints 192 and 1280 for 191.8 and 1278.8."""
    training, images = config.encoder.training, config.data.expected.train_images
    epochs = training.steps * training.batch / images
    return next((printed for printed in (192, 1280) if abs(epochs / printed - 1) < 0.005), round(epochs))


def _sides(config: Configuration) -> tuple[int, ...]:
    """Of the encoder's feature maps."""
    first = config.latent_size // config.encoder.input_patch_size
    return tuple(max(first // 2**stage, 1) for stage in range(len(config.encoder.blocks)))


def _finetune(config: Configuration) -> int:
    return config.encoder.training.finetune_steps + (config.encoder.finetune.steps if config.encoder.finetune else 0)


_FOUR_DECAYS = "best of 0.999, 0.9995, 0.9998, 0.9999"
_ALPHAS = (1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5)

ROWS = (
    Row("generator: patch", _same(2), lambda c: c.generator.patch_size),
    Row("generator: hidden", (768, 768, 1024), lambda c: c.generator.hidden_size),
    Row("generator: depth", (12, 12, 24), lambda c: c.generator.depth),
    Row("in-context tokens", _same(16), lambda c: c.generator.in_context_tokens),
    Row("style tokens", _same(32), lambda c: c.generator.style_tables),
    Row(
        "style codebook", _same("32 of 64"), lambda c: f"{c.generator.style_tables} of {c.generator.style_entries}",
        dict.fromkeys(range(3), "a codebook of 64"),
    ),
    Row("encoder: width", (256, 640, 640), lambda c: c.encoder.base_width),
    Row("encoder: epochs", (192, 1280, 1280), _epochs),
    Row("encoder: classifier fine-tune, steps", (0, 3000, 3000), _finetune),
    Row("encoder: mask ratio", _same(0.5), lambda c: c.encoder.mask_ratio),
    Row("encoder: kind of block", _same("basic"), lambda c: "basic", dict.fromkeys(range(3), "bottleneck")),
    Row("encoder: blocks", _same((3, 4, 6, 3)), lambda c: tuple(c.encoder.blocks)),
    Row("encoder: sizes", _same((32, 16, 8, 4)), _sides),
    Row("learning rate", (2e-4, 4e-4, 4e-4), lambda c: c.training.learning_rate),
    Row("warm-up steps", (5000, 10_000, 10_000), lambda c: c.training.warmup_steps),
    Row("weight decay", (0.01, 0.0, 0.01), lambda c: c.training.weight_decay),
    Row("gradient clip", _same(2.0), lambda c: c.training.clip),
    Row("steps", (30_000, 200_000, 200_000), lambda c: c.training.steps),
    Row("EMA", _same(0.999), lambda c: c.training.ema, {1: _FOUR_DECAYS, 2: _FOUR_DECAYS}),
    Row("N_c, classes per step", (64, 128, 128), lambda c: c.objective.classes_per_step),
    Row("N_pos, real per class", _same(64), lambda c: c.objective.positives_per_class, {1: 128}),
    Row("N_neg, generated per class", _same(64), lambda c: c.objective.generated_per_class),
    Row(
        "B, generated per step", (4096, 8192, 8192),
        lambda c: c.objective.classes_per_step * c.objective.generated_per_class,
    ),
    Row("temperatures", _same((0.02, 0.05, 0.2)), lambda c: tuple(sorted(c.objective.temperatures))),
    Row("alpha: range", _same((1.0, 4.0)), lambda c: (c.objective.alpha.low, c.objective.alpha.high)),
    Row("alpha: power", (3.0, 5.0, 3.0), lambda c: c.objective.alpha.power),
    Row("alpha: probability of 1", (0.0, 0.0, 0.5), lambda c: c.objective.alpha.point_mass),
    Row("N_unc, unconditional per class", (16, 32, 32), lambda c: c.objective.unconditional_per_class),
    Row(
        "guidance search: range", _same((1.0, 3.5)),
        lambda c: (min(c.evaluation.selection.alphas), max(c.evaluation.selection.alphas)),
    ),
    Row(
        "guidance search: values", ((1.0, 1.5, 2.0, 2.5, 3.0, 3.5), _ALPHAS, _ALPHAS),
        lambda c: tuple(c.evaluation.selection.alphas), dict.fromkeys(range(3)),
    ),
    Row("queue: per class", _same(128), lambda c: c.objective.bank.per_class),
    Row("queue: unconditional", _same(1000), lambda c: c.objective.bank.unconditional),
    Row(
        "queue: pushes per step, of all hosts", (1024, 4096, 2048), lambda c: c.objective.bank.pushes_per_step,
        dict.fromkeys(range(3), 64),
    ),
    Row("precision", _same("bfloat16"), lambda c: c.training.precision),
    Row("attention in float32", (True, False, False), lambda c: c.generator.attention_fp32),
    Row("seed", _same(42), lambda c: c.training.seed),
)  # fmt: skip


def departures(config: Configuration, column: int) -> list[Departure]:
    """The rows of a column in which paper, release and configuration are not all the same."""
    found = []
    for row in ROWS:
        release, here = row.release[column], row.here(config)
        paper = row.paper.get(column, release)
        if here != release or (paper is not None and here != paper):
            found.append(Departure(row.name, "-" if paper is None else _shown(paper), _shown(release), _shown(here)))
    return found


def nearest(config: Configuration) -> int:
    """The column from which a configuration departs least."""
    return min(range(len(COLUMNS)), key=lambda column: sum(row.here(config) != row.release[column] for row in ROWS))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
