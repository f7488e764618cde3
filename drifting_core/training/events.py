"""The lines of metrics.jsonl as TensorBoard events too, for `tensorboard --logdir results/runs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drifting_core.faults import Fault
from drifting_core.training.loop import MetricsFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


def metrics_of(folder: Path, tensorboard: bool) -> MetricsFile:
    """What a training in `folder` writes its numbers to. Raises Fault when `tensorboard` is wanted and not installed."""
    return MetricsEvents(folder / METRICS, folder / EVENTS) if tensorboard else MetricsFile(folder / METRICS)


class MetricsEvents(MetricsFile):
    """metrics.jsonl, and each of its numbers as a scalar; nested keys become tags: features/conv1/scale.

    Every attempt at a training writes an events file of its own, which tells TensorBoard to forget what earlier ones wrote
    after the step that this one continues from. What metrics.jsonl holds from before the option was set is not repeated.
    """

    def __init__(self, path: Path, events: Path) -> None:
        """`events`: the folder of the events. Raises Fault when TensorBoard is not installed."""
        super().__init__(path)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Fault(
                f"tensorboard: true, but TensorBoard cannot be imported ({error}); install it with "
                "`pip install --constraint envs/constraints.txt --editable '.[tensorboard]'`, or set the option to false"
            ) from None
        self._writer_class, self._events = SummaryWriter, events
        self._writer: SummaryWriter | None = None

    def truncate(self, step: int) -> None:
        super().truncate(step)
        self._writer = self._writer_class(str(self._events), purge_step=step + 1)

    def append(self, values: dict[str, Any]) -> None:
        super().append(values)
        if self._writer is None:
            raise ValueError("append: call truncate first, with the step that the training continues from")
        for tag, value in _scalars({name: value for name, value in values.items() if name != "step"}):
            self._writer.add_scalar(tag, value, values["step"])
        self._writer.flush()  # a killed training leaves what metrics.jsonl has


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested mapping by their tags; what was not measured (null) is none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value
