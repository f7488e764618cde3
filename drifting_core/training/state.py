"""Resumable training state: whole or absent (architecture.md, decisions 2 and 4).

`state/step_N/` holds `state.safetensors` and the marker `COMMITTED.json` with its hash. It is written as a hidden folder
and renamed when whole, so a killed writer leaves nothing that a reader would take. The last two states are kept; a
damaged newest one falls back to the one before. There is no RNG state: every draw is a function of (seed, step, index).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from drifting_core.artifacts import FileRecord, StateMarker, sync_folder
from drifting_core.faults import Fault
from drifting_core.provenance import code_version

log = logging.getLogger(__name__)

TENSORS = "state.safetensors"
MARKER = "COMMITTED.json"
KEPT = 2


class StateFolder:
    """The states of one training, all made under the same configuration and, by their hashes, from the same `inputs`."""

    def __init__(self, folder: Path, configuration: str, inputs: Mapping[str, str] | None = None) -> None:
        """`inputs`: what the training began from and the configuration does not decide: the weights of a warm start."""
        self.folder, self.configuration, self.inputs = folder, configuration, dict(inputs or {})
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step_*"):  # the lease is ours: whoever wrote these is dead
            shutil.rmtree(stale)

    def commit(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write the state after `step` updates; earlier states but the last two go."""
        final = self.folder / f"step_{step:08d}"
        if final.exists():
            return
        scratch = self.folder / f".{final.name}.{os.getpid()}"
        scratch.mkdir()
        payload = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(payload, scratch / TENSORS)
        with (scratch / TENSORS).open("rb") as file:
            os.fsync(file.fileno())
        marker = StateMarker(
            configuration=self.configuration,
            code=code_version(),
            inputs=self.inputs,
            files={TENSORS: FileRecord.of(scratch / TENSORS)},
            step=step,
        )
        marker.write(scratch / MARKER)
        os.replace(scratch, final)
        sync_folder(self.folder)
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(self._path(old))

    def resume(self, until: int) -> tuple[int, dict[str, Tensor]] | None:
        """The newest whole state of at most `until` steps, or None to begin. A damaged one is put aside, loudly.

        Raises Fault for the state of another configuration, and when the training is already past `until`: an earlier step
        cannot be made again from a later one.
        """
        steps = self._steps()
        for step in sorted((s for s in steps if s <= until), reverse=True):
            try:
                marker = StateMarker.read(self._path(step) / MARKER)
                marker.verify(self._path(step))
            except Fault as fault:
                log.warning("state of step %d is damaged, falling back to the one before: %s", step, fault)
                self._path(step).rename(self.folder / f"damaged_{self._path(step).name}")
                continue
            if marker.configuration != self.configuration:
                raise Fault(
                    f"{self._path(step)}: made under configuration {marker.configuration[:8]}, this one is "
                    f"{self.configuration[:8]}; move the folder away to train from the beginning"
                )
            if marker.inputs != self.inputs:
                raise Fault(
                    f"{self._path(step)}: began from {marker.inputs or 'the seed'}, this training begins from "
                    f"{self.inputs or 'the seed'}; move the folder away to train from the beginning"
                )
            return step, safetensors.torch.load_file(self._path(step) / TENSORS)
        if steps and min(steps) > until:
            raise Fault(
                f"{self.folder}: holds steps {steps}, so step {until} cannot be made again; restore its export, or "
                "remove the folder to train from the beginning"
            )
        return None

    def record(self, step: int) -> dict[str, FileRecord]:
        """The files of a committed state, relative to the training's folder."""
        name = f"{self.folder.name}/step_{step:08d}/{TENSORS}"
        return {name: FileRecord.of(self.folder.parent / name)}

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"
