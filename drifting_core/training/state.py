"""Resumable training state: whole or absent (architecture.md, decisions 2 and 4).

`state/step_N/` holds `state.safetensors` and the marker `COMMITTED.json` with its hash. It is written as a hidden folder
and renamed when whole, so a killed writer leaves nothing that a reader would take. The last two states are kept; a
damaged newest one falls back to the one before. There is no RNG state: every draw is a function of (seed, step, index).
"""

from __future__ import annotations

import logging
import os
import shutil
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
    """The states of one training, all made under the same configuration.

    `exports`: its folder of `step_N/metadata.json`, if it leaves milestones there. With one of them and no state, the
    training has lost its state, and is not one that may begin.
    """

    def __init__(self, folder: Path, configuration: str, exports: Path | None = None) -> None:
        self.folder, self.configuration, self.exports = folder, configuration, exports
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

        Raises Fault for the state of another configuration, when the training is already past `until` (an earlier step
        cannot be made again from a later one), and when there are exports but no state to continue from.
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
            return step, safetensors.torch.load_file(self._path(step) / TENSORS)
        if steps and min(steps) > until:
            raise Fault(
                f"{self.folder}: the training is past step {until} (states: {steps}), so step {until} cannot be made again; "
                f"nothing was changed. Restore the export of step {until} from a copy, go on without it, or move "
                f"{self.folder.parent} away to train from the beginning"
            )
        if exported := [step for step in self._exported() if step != until]:
            raise Fault(
                f"{self.folder}: no whole state is left, but {self.exports} holds steps {exported}, which training from the "
                f"beginning would write over; nothing was changed. Restore the state from a copy, ask for no step beyond "
                f"{exported[-1]} (training.steps), or move {self.folder.parent} away to train from the beginning"
            )
        return None

    def record(self, step: int) -> dict[str, FileRecord]:
        """The files of a committed state, relative to the training's folder."""
        name = f"{self.folder.name}/step_{step:08d}/{TENSORS}"
        return {name: FileRecord.of(self.folder.parent / name)}

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def _exported(self) -> list[int]:
        files = self.exports.glob("step_*/metadata.json") if self.exports else ()
        return sorted(int(path.parent.name.removeprefix("step_")) for path in files)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"
