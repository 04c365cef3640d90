"""Tests of the journal on real files: answers are read back exactly as they were appended."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_files import HEADER, answer, identity, path_of, texts, three_answers

from sweep.engines.base import Completion, Generation
from sweep.storage.journal import Journal, Recovered
from sweep.storage.journal_format import JournalEntry
from sweep.storage.journal_writer import OPEN_FILES


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def root(journal: Journal) -> Path:
    """The folder of a journal with three answers of a point."""
    return three_answers(journal)


floats = st.floats(allow_nan=True, allow_infinity=True)
# Fragile characters that random text rarely contains: surrogates, alone or in pairs, and line separators.
delicate = st.text(st.sampled_from('a"\\\n\r\x00\x85é\u2028😀\ud83d\ude00'), max_size=20)
anything = st.text(max_size=20) | delicate
completions = st.builds(
    Completion,
    text=anything,
    token_ids=st.lists(st.integers(0, 300_000), max_size=5).map(tuple),
    finish_reason=st.sampled_from(["stop", "length"]),
    logprobs=st.lists(st.dictionaries(st.integers(0, 300_000), floats, max_size=3), max_size=3).map(tuple),
)
generations = st.builds(Generation, st.just("key"), st.lists(completions, max_size=3).map(tuple)) | st.builds(
    Generation, st.just("key"), st.just(()), st.lists(floats, min_size=1, max_size=5).map(tuple)
)


@settings(deadline=None)
@given(anything, anything, generations)
def test_answers_come_back_exactly(kind: str, prompt: str, generation: Generation) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        writer = journal.writer(HEADER)
        writer.append(identity(0), kind, prompt, generation)
        writer.close()
        recovered = journal.read(identity(0).fingerprint)
    entry = JournalEntry(generation.completions, generation.scored, HEADER)
    assert repr(recovered) == repr(Recovered({(kind, prompt): entry}))  # repr, because NaN is not equal to itself


def test_forced_answer_is_stored_as_scores(journal: Journal) -> None:
    writer = journal.writer(HEADER)
    writer.append(identity(0), "own", "a", Generation("key", answer().completions, (-0.5, float("-inf"))))
    entry = journal.read(identity(0).fingerprint).entries["own", "a"]
    assert (entry.completions, entry.scored) == ((), (-0.5, float("-inf")))


def test_unwritten_fingerprint_is_empty(journal: Journal) -> None:
    assert journal.read(identity(0).fingerprint) == Recovered()
    assert journal.headers(identity(0).fingerprint) == []


def test_identity_file_matches_the_fingerprint(root: Path) -> None:
    described = path_of(root, 0).parent / "identity.json"
    assert sha256(described.read_bytes()).hexdigest() == identity(0).fingerprint
    assert {path.name for path in described.parent.iterdir()} == {described.name, path_of(root, 0).name}


def test_first_of_two_writers_counts_with_its_header(tmp_path: Path, journal: Journal) -> None:
    for sweep in ("first", "second"):
        writer = journal.writer(HEADER | {"sweep": sweep})
        for prompt in ("shared", sweep):
            writer.append(identity(0), "answer", prompt, answer(sweep))
        writer.close()
    names = sorted(path for path in (tmp_path / "journal").glob("*/*/*.jsonl"))
    first = "first" if b'"sweep":"first"' in names[0].read_bytes() else "second"
    recovered = journal.read(identity(0).fingerprint)
    assert texts(recovered) == {
        ("answer", "shared"): first,
        ("answer", "first"): "first",
        ("answer", "second"): "second",
    }
    assert all(entry.header["sweep"] == entry.completions[0].text for entry in recovered.entries.values())
    assert sorted(header["sweep"] for header in journal.headers(identity(0).fingerprint)) == ["first", "second"]


def test_more_points_than_files_may_be_open(journal: Journal) -> None:
    before, writer, points = len(os.listdir("/proc/self/fd")), journal.writer(HEADER), 2 * OPEN_FILES + 1
    for prompt in "ab":
        for n in range(points):
            writer.append(identity(n), "answer", prompt, answer(f"{n} {prompt}"))
            assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
    for n in range(points):
        found = journal.read(identity(n).fingerprint)
        assert texts(found) == {("answer", prompt): f"{n} {prompt}" for prompt in "ab"}
        assert (found.problems, found.torn) == ([], 0)


def test_files_follow_the_umask(journal: Journal, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        journal.writer(HEADER).append(identity(0), "answer", "a", answer())
    finally:
        os.umask(before)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (tmp_path / "journal").rglob("*")}
    assert modes == {True: 0o750, False: 0o640}
