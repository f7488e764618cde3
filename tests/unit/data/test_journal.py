"""The journal: what was whole is there, what was not is made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_core.data.journal import Journal, read_records
from drifting_core.faults import Fault

WORK = {"configuration": "c", "shard": 1}


def write(path: Path, count: int, work: dict[str, object] | None = None) -> None:
    with Journal(path, work or WORK) as journal:
        for number in range(len(journal), count):
            journal.append({"number": number}, np.full((3, number), number, np.float16))


def read(path: Path) -> list[int]:
    with Journal(path, WORK) as journal:
        found = list(journal.records())
        for number, record in enumerate(found):
            assert np.array_equal(record.array("float16", (3, number)), np.full((3, number), number))
        return [record.description["number"] for record in found]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    write(tmp_path / "j", 5)
    assert read(tmp_path / "j") == [0, 1, 2, 3, 4]


def test_appending_after_reading_goes_to_the_end(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", WORK) as journal:
        for number in range(4):
            journal.append({"number": number}, np.full((3, number), number, np.float16))
            assert len(list(journal.records())) == number + 1
    assert read(tmp_path / "j") == [0, 1, 2, 3]


def test_another_process_reads_what_is_whole_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "j", 3)
    torn = (tmp_path / "j").read_bytes()[:-1]  # the last record is being written
    (tmp_path / "j").write_bytes(torn)
    assert [record.description["number"] for record in read_records(tmp_path / "j", WORK)] == [0, 1]
    assert list(read_records(tmp_path / "j", WORK | {"shard": 2})) == []
    assert (tmp_path / "j").read_bytes() == torn


def test_two_readings_may_go_on_at_a_time(tmp_path: Path) -> None:
    write(tmp_path / "j", 4)
    with Journal(tmp_path / "j", WORK) as journal:
        pairs = zip(journal.records(), journal.records(), strict=True)
        assert [(a.description["number"], b.description["number"]) for a, b in pairs] == [(n, n) for n in range(4)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_at_any_byte_loses_no_whole_record(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "j"
    ends = []
    with Journal(path, WORK) as journal:
        for number in range(4):
            journal.append({"number": number}, np.full((3, number), number, np.float16))
            ends.append(path.stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    assert len(read(path)) == sum(end <= cut for end in ends)
    write(path, 4)
    assert read(path) == [0, 1, 2, 3]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_ends_the_journal_before_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flip") / "j"
    write(path, 4)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = read(path)
    assert found == list(range(len(found)))
    assert len(found) < 4
    write(path, 4)
    assert read(path) == [0, 1, 2, 3]


def test_other_work_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "j", 3, {"configuration": "other"})
    assert read(tmp_path / "j") == []
    assert "belongs to other work" in caplog.text


def test_a_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_FSIZE makes a real write fail (with SIGXFSZ ignored, as Python does)."""
    import resource

    with Journal(tmp_path / "j", WORK) as journal:
        journal.append({"number": 0}, np.full((3, 0), 0, np.float16))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "j").stat().st_size + 1000, limits[1]))
        try:
            with pytest.raises(Fault, match=r"20000 bytes cannot be written: .*1 finished pieces are kept"):
                journal.append({"number": 1}, np.zeros(10_000, np.float16))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.append({"number": 1}, np.full((3, 1), 1, np.float16))
    assert read(tmp_path / "j") == [0, 1]
