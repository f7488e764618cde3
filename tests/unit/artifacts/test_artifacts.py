"""A name is a promise: publish(), hashes, and what a reader refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drifting_core.artifacts import Artifact, PackedImages, check_file, publish, records
from drifting_core.faults import Fault


def photos(**fields: object) -> PackedImages:
    return PackedImages(configuration="c", code="1", source="s", train_images=1, val_images=1, **fields)  # type: ignore[arg-type]


def test_a_failed_writer_leaves_the_older_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), publish(target) as scratch:
        scratch.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    code = (
        "import sys, time; from pathlib import Path; from drifting_core.artifacts import publish\n"
        f"with publish(Path({str(target)!r})) as scratch:\n"
        "    scratch.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not target.exists()
    assert len(os.listdir(tmp_path)) == 1
    with publish(target) as scratch:
        scratch.write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    code = (
        "import resource, signal; from pathlib import Path; from drifting_core.artifacts import publish\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"with publish(Path({str(target)!r})) as scratch:\n"
        "    scratch.write_bytes(b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_repeated_artifact_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"1")
    for name in ("a.json", "b.json"):
        photos(files=records(tmp_path, ["data"])).write(tmp_path / name)
        time.sleep(0.01)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_changed_file_is_named(tmp_path: Path, damage: str) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"0123456789")
    artifact = photos(files=records(tmp_path, ["data"]))
    artifact.verify(tmp_path)
    {"flip": lambda: data.write_bytes(b"0123456780"), "cut": lambda: data.write_bytes(b"0"), "remove": data.unlink}[damage]()
    with pytest.raises(Fault, match="data"):
        artifact.verify(tmp_path)


def test_reading_another_kind_or_nothing_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(Fault, match="missing"):
        PackedImages.read(path)
    path.write_text("{}")
    with pytest.raises(Fault, match="not a PackedImages"):
        PackedImages.read(path)
    path.write_text("{")
    with pytest.raises(Fault, match="not a PackedImages"):
        PackedImages.read(path)


def test_every_artifact_records_configuration_code_and_inputs() -> None:
    def descendants(model: type[Artifact]) -> list[type[Artifact]]:
        return [m for child in model.__subclasses__() for m in (child, *descendants(child))]

    models = descendants(Artifact)
    assert len(models) > 15
    kinds = [model.model_fields["kind"].default for model in models]
    assert len(set(kinds)) == len(kinds)
    for model in models:
        assert {"configuration", "code", "inputs", "files"} <= set(model.model_fields)


def test_check_file_says_which_file_is_short(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    record = records(tmp_path, ["x"])["x"]
    (tmp_path / "x").write_bytes(b"12")
    with pytest.raises(Fault, match="2 bytes, its manifest says 4"):
        check_file(tmp_path / "x", record)
