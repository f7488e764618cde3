"""Resumable training state: whole or absent (docs/decisions/02 and 04).

`state/step_N/` holds `state.safetensors` (of a sharded training a `state_R.safetensors` of each further rank as well) and
the marker `COMMITTED.json` with their hashes. It is written as a hidden folder and renamed when whole, so a killed
writer leaves nothing that a reader would take. The last two states are kept; a damaged newest one falls back to the one
before. There is no RNG state: every draw is a function of (seed, step, index).

Steps are not held up: what is committed is copied to host memory at once, and a thread takes it to disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from drifting_core.artifacts import STATE_MARKER, STATES_KEPT, FileRecord, StateMarker, sync_folder
from drifting_core.artifacts.provenance import code_version
from drifting_core.faults import Fault
from drifting_core.training.parallel import ALONE, Ranks, own_part

log = logging.getLogger(__name__)

TENSORS = "state.safetensors"


class StateFolder:
    """The states of one training, all made under the same configuration and, by their hashes, from the same `inputs`."""

    def __init__(
        self,
        folder: Path,
        configuration: str,
        ranks: Ranks = ALONE,
        *,
        inputs: Mapping[str, str] | None = None,
        exports: Path | None = None,
    ) -> None:
        """`inputs`: what the training began from and the configuration does not decide: the weights of a warm start.

        `exports`: its folder of `step_N/metadata.json`, if it leaves milestones there. With one of them and no state, the
        training has lost its state, and is not one that may begin.
        """
        self.folder, self.configuration, self.ranks = folder, configuration, ranks
        self.inputs, self.exports = dict(inputs or {}), exports
        self.seconds = 0.0  # that the last state took to disk
        self._held: dict[str, Tensor] = {}  # host copies; made once, filled by every commit
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".step_*"):  # the lease is ours: whoever wrote these is dead
                shutil.rmtree(stale)

    # --- writing -----------------------------------------------------------------------------------------------------

    def commit(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Take the state after `step` updates; it is on disk when `wait` returns. Earlier states but the last two go.

        Sharded tensors are taken from every rank, others from the first. Waits for the commit before. Every rank calls.
        Raises Fault when that one could not be written.
        """
        self.wait()
        if self._path(step).exists():
            return
        held = self._copied(tensors)
        self._writing = self._writer.submit(self._write, step, held)

    def check(self) -> None:
        """Raises Fault when the state that is being written cannot be."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when what was committed is on disk. Raises Fault when it cannot be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part in host memory, pinned where it comes from a GPU: then the copies run at the bus's speed."""
        taken = {}
        for name, tensor in tensors.items():
            if self.ranks.rank > 0 and not isinstance(tensor, DTensor):
                continue
            own = own_part(tensor.detach())
            if name not in self._held:
                self._held[name] = torch.empty(own.shape, dtype=own.dtype, pin_memory=own.is_cuda)
            taken[name] = self._held[name].copy_(own, non_blocking=True)
        if any(tensor.is_pinned() for tensor in taken.values()):
            torch.cuda.synchronize()
        return taken

    def _write(self, step: int, held: dict[str, Tensor]) -> None:
        """In the writing thread. A rank that fails tells the others, so that none waits for it."""
        began = time.perf_counter()
        scratch = self.folder / f".{self._path(step).name}"
        problem = None
        try:
            if self.ranks.rank == 0:
                scratch.mkdir()
        except OSError as error:
            problem = str(error)
        self._agree(step, problem)
        name = TENSORS if self.ranks.rank == 0 else f"state_{self.ranks.rank:04d}.safetensors"
        records = {}
        try:
            if held or self.ranks.rank == 0:
                safetensors.torch.save_file(held, scratch / name)
                with (scratch / name).open("rb") as file:
                    os.fsync(file.fileno())
                records[name] = FileRecord.of(scratch / name)
        except (OSError, SafetensorError) as error:
            problem = str(error)
        self._agree(step, problem)
        files = {name: record for each in self.ranks.everyones(records, writing=True) for name, record in each.items()}
        try:
            if self.ranks.rank == 0:
                self._publish(step, scratch, files)
        except OSError as error:
            problem = str(error)
        self._agree(step, problem)
        self.seconds = time.perf_counter() - began

    def _agree(self, step: int, problem: str | None) -> None:
        problems = [each for each in self.ranks.everyones(problem, writing=True) if each]
        if not problems:
            return
        shutil.rmtree(self.folder / f".{self._path(step).name}", ignore_errors=True)
        kept, size = self._steps(), sum(tensor.nbytes for tensor in self._held.values()) / 1e6
        stays = f"that of step {kept[-1]} stays" if kept else "there is none before it"
        raise Fault(
            f"{self.folder}: the state of step {step} could not be written: {problems[0]}; {stays}. A state takes "
            f"{size:,.0f} MB per rank, and {STATES_KEPT + 1} of them for a moment: make room and call the same command again"
        )

    def _publish(self, step: int, scratch: Path, files: dict[str, FileRecord]) -> None:
        StateMarker(configuration=self.configuration, code=code_version(), inputs=self.inputs, files=files, step=step).write(
            scratch / STATE_MARKER
        )
        os.replace(scratch, self._path(step))
        sync_folder(self.folder)
        for old in self._steps()[:-STATES_KEPT]:
            shutil.rmtree(self._path(old))

    # --- reading -----------------------------------------------------------------------------------------------------

    def resume(self, until: int) -> tuple[int, Stored] | None:
        """The newest whole state of at most `until` steps, or None to begin. A damaged one is put aside, loudly.

        Raises Fault for the state of another configuration or of another beginning, when the training is already past
        `until` (an earlier step cannot be made again from a later one), and when there are exports but no state to
        continue from. The first rank looks, all get its answer.
        """
        found: int | Fault | None = None
        if self.ranks.rank == 0:
            try:
                found = self._newest(until)
            except Fault as fault:
                found = fault
        found = self.ranks.everyones(found)[0]
        if isinstance(found, Fault):
            raise found
        return None if found is None else (found, Stored(self._path(found)))

    def _newest(self, until: int) -> int | None:
        steps = self._steps()
        for step in sorted((s for s in steps if s <= until), reverse=True):
            try:
                marker = StateMarker.read(self._path(step) / STATE_MARKER)
                marker.verify(self._path(step))
            except Fault as fault:
                log.warning("state of step %d is damaged, falling back to the one before: %s", step, fault)
                self._put_aside(self._path(step))
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
            return step
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

    def _put_aside(self, damaged: Path) -> None:
        number = len(list(self.folder.glob(f"damaged_*{damaged.name}")))
        damaged.rename(self.folder / f"damaged_{f'{number}_' if number else ''}{damaged.name}")

    def record(self, step: int) -> dict[str, FileRecord]:
        """The files of a committed state, relative to the training's folder."""
        marker = StateMarker.read(self._path(step) / STATE_MARKER)
        return {f"{self.folder.name}/{self._path(step).name}/{name}": record for name, record in marker.files.items()}

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def _exported(self) -> list[int]:
        files = self.exports.glob("step_*/metadata.json") if self.exports else ()
        return sorted(int(path.parent.name.removeprefix("step_")) for path in files)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"


class Stored(Mapping[str, Tensor]):
    """The tensors of a state's folder, read when they are asked for; those of a sharded state are whole again."""

    def __init__(self, folder: Path) -> None:
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("state*.safetensors"))]
        self._names: dict[str, list[int]] = {}
        for place, file in enumerate(self._files):
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                self._names.setdefault(name, []).append(place)

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._files[place].get_tensor(name) for place in self._names[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
