"""Tests of damaged journal files: damaged data is never read as an answer, and other answers are kept."""

from __future__ import annotations

import os
import random
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_files import HEADER, answer, identity, path_of, texts, three_answers

from sweep.engines.base import Completion, Generation
from sweep.storage import journal_writer as writer_module
from sweep.storage.journal import Journal
from sweep.storage.journal_format import JournalEntry


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def root(journal: Journal) -> Path:
    """The folder of a journal with three answers of a point."""
    return three_answers(journal)


def test_incomplete_last_line_is_ignored(root: Path, journal: Journal) -> None:
    path, fingerprint = path_of(root, 0), identity(0).fingerprint
    data = path.read_bytes()
    for cut in (1, 2, 40):
        path.write_bytes(data[:-cut])
        found = journal.read(fingerprint)
        assert (sorted(texts(found)), found.problems, found.torn) == ([("answer", "a"), ("answer", "b")], [], 1)


def test_corrupt_line_is_reported_and_others_are_read(root: Path, journal: Journal) -> None:
    path = path_of(root, 0)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"1000", b"1001")
    path.write_bytes(b"".join(lines))
    found = journal.read(identity(0).fingerprint)
    assert sorted(texts(found)) == [("answer", "a"), ("answer", "c")]
    assert found.problems == [f"{path}, line 3: the checksum does not match."]


def test_a_file_that_was_moved_to_another_point_is_not_accepted(root: Path, journal: Journal) -> None:
    journal.writer(HEADER).append(identity(1), "answer", "a", answer("right"))
    shutil.copy(path_of(root, 0), path_of(root, 1).parent / "0.jsonl")
    found = journal.read(identity(1).fingerprint)
    assert texts(found) == {("answer", "a"): "right"}
    assert len(found.problems) == 1
    assert "0.jsonl, line 1: no valid header" in found.problems[0]


def test_newer_format_is_not_accepted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(writer_module, "FORMAT", 2)
        journal.writer(HEADER).append(identity(0), "answer", "a", answer())
    found = journal.read(identity(0).fingerprint)
    assert (found.entries, journal.headers(identity(0).fingerprint)) == ({}, [])
    assert len(found.problems) == 1
    assert "line 1: unknown journal format 2, expected 1" in found.problems[0]


def test_non_regular_files_are_reported(root: Path, journal: Journal) -> None:
    folder = path_of(root, 0).parent
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    found = journal.read(identity(0).fingerprint)
    assert len(found.entries) == 3
    assert [problem.rpartition("/")[2] for problem in found.problems] == [
        "folder.jsonl: not a regular file.",
        "pipe.jsonl: not a regular file.",
    ]


POINTS, PROMPTS = 3, 4


@cache
def written() -> tuple[dict[tuple[int, str], bytes], set[str]]:
    """Return real files by point and name, and all written entries with their keys, as text."""
    files, truth = {}, set()
    chance = random.Random(0)
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        for sweep in ("first", "second"):
            header = HEADER | {"sweep": sweep}
            writer = journal.writer(header)
            for point in range(POINTS):
                for n in range(PROMPTS):
                    steps = tuple({chance.randrange(9): -chance.random()} for _ in range(2))
                    completion = Completion(f"{sweep} {point} {n} \ud800 é", (n, point), "stop", steps)
                    forced = n == 3
                    generation = Generation("key", (completion,), (-chance.random(),) if forced else ())
                    kind, prompt = ("own" if forced else "answer"), str(n % 3)
                    writer.append(identity(point), kind, prompt, generation)
                    entry = JournalEntry(() if forced else (completion,), generation.scored, header)
                    truth.add(repr((point, kind, prompt, entry)))
            writer.close()
            for point in range(POINTS):
                for path in sorted(Path(folder).glob(f"*/{identity(point).fingerprint}/*.jsonl")):
                    files[point, path.name] = path.read_bytes()
    return files, truth


def accepted(files: dict[tuple[int, str], bytes]) -> tuple[set[str], int]:
    """Write files. Return what is read from them and the number of problems."""
    with TemporaryDirectory() as folder:
        for (point, name), data in files.items():
            fingerprint = identity(point).fingerprint
            path = Path(folder) / fingerprint[:2] / fingerprint / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        journal, found, problems = Journal(Path(folder)), set(), 0
        for point in range(POINTS):
            recovered = journal.read(identity(point).fingerprint)
            found |= {repr((point, *key, entry)) for key, entry in recovered.entries.items()}
            problems += len(recovered.problems)
            journal.headers(identity(point).fingerprint)
    return found, problems


def damage(data: bytes, others: list[bytes], draw: st.DataObject) -> bytes:
    """Return a damaged version of a file's content."""
    lines = data.splitlines(keepends=True)
    place = st.integers(0, max(len(data) - 1, 0))
    match draw.draw(st.sampled_from(["cut", "flip", "shuffle", "repeat", "drop", "join", "mix", "insert", "hole"])):
        case "cut":
            return data[: draw.draw(place)]
        case "flip" if data:
            flipped = bytearray(data)
            for at in draw.draw(st.lists(place, min_size=1, max_size=3)):
                flipped[at] ^= 1 << draw.draw(st.integers(0, 7))
            return bytes(flipped)
        case "shuffle":
            return b"".join(draw.draw(st.permutations(lines)))
        case "repeat" if lines:
            return b"".join(lines + draw.draw(st.lists(st.sampled_from(lines), max_size=5)))
        case "drop" if lines:
            return b"".join(draw.draw(st.lists(st.sampled_from(lines), unique=True)))
        case "join":
            return data + draw.draw(st.sampled_from(others))
        case "mix":
            return b"".join(draw.draw(st.permutations(lines + draw.draw(st.sampled_from(others)).splitlines(True))))
        case "insert":
            at = draw.draw(place)
            return data[:at] + draw.draw(st.binary(max_size=20)) + data[at:]
        case "hole":  # as after a power failure on some file systems
            at, end = sorted([draw.draw(place), draw.draw(place)])
            return data[:at] + bytes(end - at) + data[end:]
    return data


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_never_yield_wrong_answers_or_exceptions(draw: st.DataObject) -> None:
    files, truth = written()
    damaged = dict(files)
    for key in draw.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=4)):
        damaged[key] = damage(damaged[key], list(files.values()), draw)
    if draw.draw(st.booleans()):  # files are swapped, also between points
        keys = sorted(damaged)
        damaged = dict(zip(keys, (damaged[key] for key in draw.draw(st.permutations(keys))), strict=True))
    found, _ = accepted(damaged)
    assert found <= truth


def test_a_file_cut_at_any_byte_loses_its_end_only() -> None:
    (key, data), truth = sorted(written()[0].items())[0], written()[1]
    for cut in range(len(data) + 1):
        found, problems = accepted({key: data[:cut]})
        assert found <= truth
        assert len(found) == max(data[:cut].count(b"\n") - 1, 0)
        assert problems == 0


def test_flipped_bit_loses_only_its_lines() -> None:
    (key, data), truth = sorted(written()[0].items())[0], written()[1]
    header_ends = data.index(b"\n")
    for at in range(0, len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        found, _ = accepted({key: bytes(flipped)})
        assert found <= truth
        assert len(found) >= PROMPTS - 2 or at <= header_ends
