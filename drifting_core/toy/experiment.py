"""The authors' two-dimensional experiment: a small network learns a swiss roll and a checkerboard by drifting.

This is Algorithm 1 at its smallest. Each step draws fresh noise and fresh data, asks the field where the samples should
move (Algorithm 2, `drift/field.py`, with the samples as their own negatives), and moves them there by one Adam step on
mean |x - stopgrad(x + V)|^2. There is no encoder, no class and no guidance. Settings and data are those of the authors'
notebook. Every number is a function of (seed, purpose, step), on one thread down to the last bit.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from drifting_core.data import draws
from drifting_core.drift.field import drift_field, mean_shift
from drifting_core.jobs.job import Progress

DataSet = Literal["swiss_roll", "checkerboard"]
Force = Literal["drift", "attraction_only"]


@dataclass(frozen=True)
class Setting:
    """One run. The defaults are the authors'."""

    data_set: DataSet = "swiss_roll"
    force: Force = "drift"
    seed: int = 42
    steps: int = 2000
    batch: int = 2048  # generated samples, and data, per step
    temperature: float = 0.05
    learning_rate: float = 1e-3
    keep: tuple[int, ...] = (0, 100, 500, 1000, 2000)  # steps whose samples are kept for the picture


@dataclass
class Course:
    """What one run went through."""

    setting: Setting
    losses: list[float]  # mean of V^2 over the (batch, 2) numbers of each step
    samples: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # after so many steps, from always the same noise
    spread: float = math.nan  # of the last samples, as a share of the data's
    energy_distance: float = math.nan  # from the last samples to as many fresh data

    @property
    def smoothed(self) -> list[float]:
        """The losses as the authors plot them: an exponential moving average, 0.96 old and 0.04 new."""
        averages = [self.losses[0]]
        for loss in self.losses[1:]:
            averages.append(0.96 * averages[-1] + 0.04 * loss)
        return averages


# --- data -----------------------------------------------------------------------------------------------------------


def data(data_set: DataSet, count: int, seed: int, *purpose: int | str) -> Tensor:
    """(count, 2) float32 points; `purpose` names the draw."""
    key = draws.key(seed, "toy", data_set, *purpose)
    noise = draws.normal(key, (count, 2))
    # The stream goes on behind the counters of the noise.
    points = (_swiss_roll if data_set == "swiss_roll" else _checkerboard)(draws.uniform(key, (count, 5), start=2 * count))
    return points.float() + (0.03 if data_set == "swiss_roll" else 0.05) * noise


def _swiss_roll(uniforms: Tensor) -> Tensor:
    """t = pi/2 + 4 pi u, (t cos t, t sin t), scaled into [-1, 1].

    The notebook divides by the batch's largest coordinate; this divides by its limit 9 pi / 2, reached at the end of the
    roll, so that a point does not depend on the others of its batch (with 2048 points the two differ by 0.1%).
    """
    t = math.pi / 2 + 4 * math.pi * uniforms[:, 0]
    return torch.stack([t * t.cos(), t * t.sin()], dim=1) / (4.5 * math.pi)


def _checkerboard(uniforms: Tensor) -> Tensor:
    """8 of the 4 x 4 squares of [-1, 1]^2: column and row are both even or both odd."""
    odd, column, row = (uniforms[:, :3] < 0.5).double().unbind(dim=1)
    corner = torch.stack([2 * column + odd, 2 * row + odd], dim=1)
    return (corner + uniforms[:, 3:] - 2) / 2


# --- network --------------------------------------------------------------------------------------------------------

_NOISE = 32
_WIDTHS = (_NOISE, 256, 256, 256, 2)


def network(seed: int) -> nn.Sequential:
    """Noise (N, 32) to points (N, 2): SiLU between linear layers, weights of torch's default law.

    That law, kaiming_uniform with a = sqrt(5), is uniform in +-1 / sqrt(fan in) for weights and biases alike.
    """
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(_WIDTHS)):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for name, values in linear.named_parameters():
            uniforms = draws.uniform(draws.key(seed, "toy", "network", number, name), values.shape)
            values.data.copy_((2 * uniforms - 1) / math.sqrt(fan_in))
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def noise(setting: Setting, *purpose: int | str) -> Tensor:
    return draws.normal(draws.key(setting.seed, "toy", "noise", *purpose), (setting.batch, _NOISE))


# --- training -------------------------------------------------------------------------------------------------------


def train(setting: Setting, advance: Callable[[], None] = lambda: None) -> Course:
    """One run; `advance` is called after every step."""
    generator = network(setting.seed)
    optimiser = torch.optim.Adam(generator.parameters(), lr=setting.learning_rate)
    course = Course(setting, losses=[])
    shown = noise(setting, "shown")
    for step in range(setting.steps + 1):
        if step in setting.keep or step == setting.steps:
            with torch.no_grad():
                course.samples[step] = generator(shown).numpy()
        if step == setting.steps:
            break
        samples = generator(noise(setting, "step", step))
        positives = data(setting.data_set, setting.batch, setting.seed, "step", step)
        goal = samples.detach() + force(setting, samples.detach(), positives)
        loss = mse_loss(samples, goal)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        course.losses.append(loss.item())
        advance()
    last = torch.from_numpy(course.samples[setting.steps])
    fresh = data(setting.data_set, setting.batch, setting.seed, "fresh")
    course.spread = spread(last) / spread(fresh)
    course.energy_distance = energy_distance(last, fresh)
    return course


def force(setting: Setting, samples: Tensor, positives: Tensor) -> Tensor:
    """Where the samples should move, (N, 2): V with themselves as negatives, or V+ alone."""
    if setting.force == "attraction_only":
        return mean_shift(samples, positives, setting.temperature)
    return drift_field(samples, positives, samples, setting.temperature, mask_self=True)


def spread(points: Tensor) -> float:
    """Root-mean-square distance of (N, 2) points to their mean."""
    return (points - points.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over pairs of unlike points: 0 on average for two sets of one distribution."""
    between = torch.cdist(x, y).mean()
    within = sum(torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return (2 * between - within).item()


# --- several runs ---------------------------------------------------------------------------------------------------


def train_all(settings: Sequence[Setting], processes: int) -> list[Course]:
    """The runs side by side, one thread each, which is worth more than several threads in turn; in order of `settings`."""
    progress, said = Progress("toy", sum(setting.steps for setting in settings)), 0
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with ProcessPoolExecutor(min(processes, len(settings)), context, initializer=_begin, initargs=(done,)) as pool:
        waiting = futures = [pool.submit(_train_counted, setting) for setting in settings]
        try:
            while waiting:
                for future in wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    future.result()  # raises what the run raised, at once
                waiting = [future for future in futures if not future.done()]
                if done.value > said:
                    progress.advance(done.value - said)
                    said = done.value
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]


_done: Any = None  # of a worker process: the steps of all of them, a shared counter


def _begin(done: Any) -> None:
    global _done
    _done = done
    torch.set_num_threads(1)


def _train_counted(setting: Setting) -> Course:
    parent = os.getppid()

    def advance() -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody is left to hand the numbers to
        with _done.get_lock():
            _done.value += 1

    return train(setting, advance)
