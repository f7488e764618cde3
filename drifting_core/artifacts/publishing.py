"""Files get their final name when they are whole: publish(), hashes, and the base of every JSON artifact. Light."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from drifting_core.faults import Fault

Sha256 = str
STUB = "DRIFTING_STUB"  # set for the jobs of stub mode (configuration key stub)


def sha256_file(path: Path) -> Sha256:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; what was written there gets the final name when the block ends well.

    The scratch file is flushed to disk before the rename and the folder after it. When the block raises, the scratch
    file is removed and an older `path` stays as it was. The caller holds the folder's lease, so scratch files of
    earlier, killed writers are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.tmp.*"):
        stale.unlink()
    scratch = _scratch_of(path)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())  # some writers make files that a group could not read
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_text(path: Path, text: str) -> None:
    with publish(path) as scratch:
        scratch.write_text(text)


class FileRecord(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(bytes=path.stat().st_size, sha256=sha256_file(path))


class Artifact(BaseModel):
    """Base of every JSON artifact.

    `configuration` is the hash of the identity that the stage was given, `inputs` maps each artifact that was read to its
    hash, `files` maps the files that this artifact stands for (paths relative to its folder) to size and hash. `stub` says
    that nothing was computed: what stub mode writes has it, and only stub mode reads that. (False is not written.)
    """

    model_config = ConfigDict(extra="forbid")
    must_exist: ClassVar[str] = "run the workflow to make it"

    configuration: Sha256
    code: str
    inputs: dict[str, Sha256] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    stub: bool = Field(default_factory=lambda: STUB in os.environ)

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = written(self)
        if not self.stub:
            values.pop("stub", None)
        return values

    def write(self, path: Path) -> None:
        publish_text(path, json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises Fault when the file is missing, no JSON, a stub, or not what this kind of artifact promises."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise Fault(f"{path}: missing; {cls.must_exist}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise Fault(f"{path}: not a {cls.__name__}: {where}: {first['msg']}; remove it to make it again") from None
        if found.stub and STUB not in os.environ:
            raise Fault(f"{path}: a stub, which holds nothing that was computed; give what a run without stub: true made")
        return found

    def verify(self, folder: Path) -> None:
        """Re-hash every listed file below `folder`. Raises Fault naming the first that differs."""
        for name, record in self.files.items():
            check_file(folder / name, record)


_RESTORE = "restore it from a copy, or remove the manifest to make both again"


def check_file(path: Path, record: FileRecord) -> None:
    """Raises Fault unless `path` has the recorded size and hash."""
    if not path.is_file():
        raise Fault(f"{path}: missing, but its manifest lists it; remove the manifest to make both again")
    size = path.stat().st_size
    if size != record.bytes:
        raise Fault(f"{path}: {size} bytes, its manifest says {record.bytes}; it was cut or changed: {_RESTORE}")
    found = sha256_file(path)
    if found != record.sha256:
        raise Fault(f"{path}: SHA-256 {found[:16]}…, its manifest says {record.sha256[:16]}…; it was changed: {_RESTORE}")


def records(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    return {name: FileRecord.of(folder / name) for name in names}


def hashes(paths: Mapping[str, Path]) -> dict[str, Sha256]:
    """Hashes of the artifacts that a job reads, by the role they play in it."""
    return {role: sha256_file(path) for role, path in paths.items()}
