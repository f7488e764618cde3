"""Encoding jobs that are killed, that run out of disk, that meet damaged files: made to happen, not simulated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drifting_core.artifacts import LatentShard
from drifting_core.data import encoding
from drifting_core.data.hdf5 import publish_hdf5
from drifting_core.faults import Fault
from tests.unit.data.samples import Halves, encode, section

PROGRAM = """
import sys, time
from pathlib import Path
from drifting_core.data import encoding
from tests.unit.data.samples import HASH, Halves, section

class Slow(Halves):
    def encode_moments(self, images):
        time.sleep(0.03)
        return super().encode_moments(images)

packed, folder = map(Path, sys.argv[1:])
data = section(packed, latents={"shards_train": 1, "chunk_rows": 4, "compute_batch": 4})
print("ready", flush=True)
encoding.encode_shard(
    data, "train", 0, packed / "index.json", Slow(), folder / "tokenizer.json", folder / "shard_0.json", HASH
)
"""


def start(packed: Path, folder: Path, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    command = [*wrapper, sys.executable, "-c", PROGRAM, str(packed), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_five_kills_lose_a_chunk_each_at_most_and_change_no_byte(packed: Path, tmp_path: Path) -> None:
    """13 chunks of 4 images; after each SIGKILL the journal holds at least what was finished when it came."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(packed, whole).wait() == 0
    seed = int(os.environ.get("KILL_SEED", str(time.time_ns() % 10**6)))
    print(f"KILL_SEED={seed}")
    moments, sizes = random.Random(seed), []
    for _ in range(5):
        job = start(packed, killed)
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, 0.25))
        job.send_signal(signal.SIGKILL)
        assert job.wait() in (-signal.SIGKILL, 0)
        journal = killed / ".shard_0.journal"
        sizes.append(journal.stat().st_size if journal.exists() else 0)
    assert start(packed, killed).wait() == 0
    print("journal after each kill:", sizes)
    for name in ("shard_0.h5", "shard_0.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == ["shard_0.h5", "shard_0.json", "tokenizer.json"]


def test_a_job_that_goes_on_encodes_only_what_is_missing(packed: Path, tmp_path: Path) -> None:
    class Stops(Halves):
        def encode_moments(self, images):  # type: ignore[no-untyped-def]
            if len(self.batches) == 6:
                raise KeyboardInterrupt
            return super().encode_moments(images)

    data = section(packed, latents={"shards_train": 1, "chunk_rows": 8, "compute_batch": 16})
    with pytest.raises(KeyboardInterrupt):
        encode(data, packed, tmp_path, tokenizer=Stops())
    rest: list[int] = []
    encode(data, packed, tmp_path, tokenizer=Halves(batches=rest))
    assert len(rest) == 1  # 50 images, 7 chunks, 6 of them there
    again: list[int] = []
    (tmp_path / "shard_0.json").unlink()
    encode(data, packed, tmp_path, tokenizer=Halves(batches=again))
    assert len(again) == 7, "the journal of a published shard is gone"


def test_a_journal_of_other_work_is_not_used(packed: Path, tmp_path: Path) -> None:
    data = section(packed, latents={"shards_train": 1})
    encode(data, packed, tmp_path / "a")
    (tmp_path / "b").mkdir()
    with encoding.Journal(tmp_path / "b/.shard_0.journal", {"configuration": "another"}) as journal:
        journal.append({"rows": [0]}, encoding.np.zeros(3))
    encode(data, packed, tmp_path / "b")
    assert (tmp_path / "a/shard_0.h5").read_bytes() == (tmp_path / "b/shard_0.h5").read_bytes()


# --- full disks -----------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_while_encoding_keeps_what_is_finished(packed: Path, small_disk: Path) -> None:
    """50 images of 8 kB do not fit into 200 kB; with room the job goes on where it was."""
    data = section(packed, latents={"shards_train": 1, "chunk_rows": 4, "compute_batch": 4})
    with pytest.raises(
        Fault, match=r"shard_0.journal: \d+ bytes cannot be written: .*No space left.* free space and call again"
    ):
        encode(data, packed, small_disk)
    assert not (small_disk / "shard_0.json").exists()
    assert not (small_disk / "shard_0.h5").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    rest: list[int] = []
    encode(data, packed, small_disk, tokenizer=Halves(batches=rest))
    assert 0 < len(rest) < 26
    assert LatentShard.read(small_disk / "shard_0.json").rows == 50


def test_a_disk_that_is_too_small_for_the_hdf5_file_is_a_message_not_a_crash(small_disk: Path) -> None:
    """libhdf5 would end the process with a segmentation fault; an older file stays as it was."""
    path = small_disk / "shard_0.h5"
    path.write_bytes(b"older")
    with (
        pytest.raises(Fault, match=r"shard_0.h5: cannot be written: .*No space left on device; free space"),
        publish_hdf5(path) as writer,
    ):
        data = writer.file.create_dataset("latents", (100, 1000), "f8", chunks=(1, 1000), fletcher32=True)
        for row in range(100):
            data[row] = row
            writer.check()
    assert path.read_bytes() == b"older"
    assert [file.name for file in small_disk.iterdir()] == ["shard_0.h5"]


def test_without_checks_on_the_way_the_end_still_notices(small_disk: Path) -> None:
    with pytest.raises(Fault, match="No space left"), publish_hdf5(small_disk / "x.h5") as writer:
        writer.file.create_dataset("latents", data=[[0.5] * 1000] * 100, chunks=(10, 1000), fletcher32=True)
    assert not list(small_disk.iterdir())
