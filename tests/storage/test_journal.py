"""Tests of the journal on real files: no appended answer is lost, and damaged data is never read as an answer."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_disks import file_system
from sweep.engines.base import Completion, Generation
from sweep.errors import JournalError
from sweep.points.fingerprint import PointFingerprint
from sweep.storage import journal_writer as writer_module
from sweep.storage.journal import Journal, Recovered
from sweep.storage.journal_format import JournalEntry
from sweep.storage.journal_writer import OPEN_FILES

HEADER = {"sweep": "first", "engine": "vllm 0.32.0"}

APPEND = """
import sys
sys.path[:0] = {tests!r}
from test_journal import HEADER, Journal, Path, answer, identity
writer, n = Journal(Path(sys.argv[1])).writer(HEADER | {{"sweep": sys.argv[2]}}), 0
while n < int(sys.argv[3]):
    writer.append(identity(n % 3), "answer", f"{{sys.argv[2]}} {{n}}", answer(f"{{sys.argv[2]}} {{n}}"))
    print(n, flush=True)
    n += 1
writer.close()
"""


def identity(name: object) -> PointFingerprint:
    canonical = f'{{"name":"{name}"}}'
    return PointFingerprint((canonical,), sha256(canonical.encode()).hexdigest(), "")


def answer(text: str = "an answer", tokens: int = 64) -> Generation:
    return Generation("key", (Completion(text, tuple(range(1000, 1000 + tokens)), "length"),))


def path_of(root: Path, name: object) -> Path:
    """Return the only file of a fingerprint."""
    (path,) = root.glob(f"*/{identity(name).fingerprint}/*.jsonl")
    return path


def texts(recovered: Recovered) -> dict[tuple[str, str], str]:
    return {key: entry.completions[0].text for key, entry in recovered.entries.items()}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def root(journal: Journal) -> Path:
    """The folder of a journal with three answers of a point."""
    writer = journal.writer(HEADER)
    for prompt in "abc":
        writer.append(identity(0), "answer", prompt, answer(prompt))
    writer.close()
    return journal._root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with file_system(tmp_path / "disk", "64k") as disk:
        yield disk


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


def test_a_forced_answer_is_its_scores(journal: Journal) -> None:
    writer = journal.writer(HEADER)
    writer.append(identity(0), "own", "a", Generation("key", answer().completions, (-0.5, float("-inf"))))
    entry = journal.read(identity(0).fingerprint).entries["own", "a"]
    assert (entry.completions, entry.scored) == ((), (-0.5, float("-inf")))


def test_what_was_never_written_is_empty(journal: Journal) -> None:
    assert journal.read(identity(0).fingerprint) == Recovered()
    assert journal.headers(identity(0).fingerprint) == []


def test_the_identity_lies_beside_the_answers(root: Path) -> None:
    described = path_of(root, 0).parent / "identity.json"
    assert sha256(described.read_bytes()).hexdigest() == identity(0).fingerprint
    assert {path.name for path in described.parent.iterdir()} == {described.name, path_of(root, 0).name}


def test_of_two_writers_the_first_file_counts_and_each_answer_knows_its_own(tmp_path: Path, journal: Journal) -> None:
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


def test_files_have_the_users_mode(journal: Journal, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        journal.writer(HEADER).append(identity(0), "answer", "a", answer())
    finally:
        os.umask(before)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (tmp_path / "journal").rglob("*")}
    assert modes == {True: 0o750, False: 0o640}


# Damage ---------------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_without_a_word(root: Path, journal: Journal) -> None:
    path, fingerprint = path_of(root, 0), identity(0).fingerprint
    data = path.read_bytes()
    for cut in (1, 2, 40):
        path.write_bytes(data[:-cut])
        found = journal.read(fingerprint)
        assert (sorted(texts(found)), found.problems, found.torn) == ([("answer", "a"), ("answer", "b")], [], 1)


def test_a_corrupt_line_is_reported_and_costs_its_own_answer_only(root: Path, journal: Journal) -> None:
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


def test_a_format_of_the_future_is_not_accepted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(writer_module, "FORMAT", 2)
        journal.writer(HEADER).append(identity(0), "answer", "a", answer())
    found = journal.read(identity(0).fingerprint)
    assert (found.entries, journal.headers(identity(0).fingerprint)) == ({}, [])
    assert len(found.problems) == 1
    assert "line 1: unknown journal format 2, expected 1" in found.problems[0]


def test_what_is_no_file_is_reported(root: Path, journal: Journal) -> None:
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
def test_no_damage_makes_reading_fail_or_a_wrong_answer_right(draw: st.DataObject) -> None:
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


def test_any_flipped_bit_costs_at_most_the_lines_it_touches() -> None:
    (key, data), truth = sorted(written()[0].items())[0], written()[1]
    header_ends = data.index(b"\n")
    for at in range(0, len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        found, _ = accepted({key: bytes(flipped)})
        assert found <= truth
        assert len(found) >= PROMPTS - 2 or at <= header_ends


# Disks and users --------------------------------------------------------------------------------------------------------


def start(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    code = APPEND.format(tests=[str(folder) for folder in Path(__file__).parents[:2]])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_all_that_a_killed_writer_had_appended_is_there(tmp_path: Path, journal: Journal) -> None:
    process = start(tmp_path / "journal", "killed", 10**9)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(100)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    found = [journal.read(identity(point).fingerprint) for point in range(3)]
    known = {key[1]: text for recovered in found for key, text in texts(recovered).items()}
    complete = [line for line in said if line.endswith("\n")]
    assert {f"killed {int(line)}" for line in complete} <= known.keys()
    assert all(prompt == text for prompt, text in known.items())
    assert [problem for recovered in found for problem in recovered.problems] == []


def test_two_processes_can_write_to_the_same_points(tmp_path: Path, journal: Journal) -> None:
    processes = [start(tmp_path / "journal", name, 300) for name in ("one", "two")]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    found = [journal.read(identity(point).fingerprint) for point in range(3)]
    known = [key[1] for recovered in found for key in recovered.entries]
    assert sorted(known) == sorted(f"{name} {n}" for name in ("one", "two") for n in range(300))
    assert all((recovered.problems, recovered.torn) == ([], 0) for recovered in found)


def test_a_full_disk_is_an_error_and_what_was_written_is_kept(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(20_000))
    writer, n = journal.writer(HEADER), 0
    with pytest.raises(JournalError) as caught:
        while n < 1000:
            writer.append(identity(0), "answer", str(n), answer(str(n)))
            n += 1
    assert str(small_disk) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "Earlier answers are kept." in str(caught.value)
    filler.unlink()  # there is room again, but the last line is incomplete
    with pytest.raises(JournalError, match="No space left"):
        writer.append(identity(0), "answer", "late", answer())
    writer.append(identity(1), "answer", "other", answer())
    writer.close()
    found = journal.read(identity(0).fingerprint)
    assert texts(found) == {("answer", str(i)): str(i) for i in range(n)}
    assert found.problems == []
    assert len(journal.read(identity(1).fingerprint).entries) == 1


def test_a_read_only_disk_is_an_error(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    writer = journal.writer(HEADER)
    writer.append(identity(0), "answer", "a", answer("a"))
    writer.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(JournalError, match="Read-only file system"):
        journal.writer(HEADER).append(identity(0), "answer", "b", answer())
    assert texts(journal.read(identity(0).fingerprint)) == {("answer", "a"): "a"}


def test_a_limit_in_the_middle_of_a_line_costs_that_line_only(journal: Journal) -> None:
    """Simulates a full disk where none can be mounted: a part of the line is written, then the write fails."""
    writer, n = journal.writer(HEADER), 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(JournalError, match="File too large") as caught:
            while n < 1000:
                writer.append(identity(0), "answer", str(n), answer(str(n)))
                n += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(JournalError, match="File too large"):
        writer.append(identity(0), "answer", "late", answer())
    writer.close()
    found = journal.read(identity(0).fingerprint)
    assert str(caught.value).count("\n") == 1
    assert (len(found.entries), found.problems, found.torn) == (n, [], 1)


def test_a_folder_that_is_not_ones_own_is_an_error() -> None:
    """Run as nobody if the user is root, who may read everything."""
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        journal.writer(HEADER).append(identity(0), "answer", "a", answer())
        point = path_of(Path(folder) / "journal", 0).parent
        for path in (point.parent, point, Path(folder)):
            path.chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            with pytest.raises(JournalError, match="Permission denied"):
                journal.writer(HEADER).append(identity(0), "answer", "d", answer())
            assert len(journal.read(identity(0).fingerprint).entries) == 1
            os.seteuid(user)
            point.chmod(0o000)
            os.seteuid(user or 65534)
            with pytest.raises(JournalError, match="cannot be read: Permission denied"):
                journal.read(identity(0).fingerprint)
        finally:
            os.seteuid(user)
            for path in (Path(folder), point.parent, point):
                path.chmod(0o755)


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "journal").write_text("")
    for attempt in (
        lambda: journal.writer(HEADER).append(identity(0), "answer", "a", answer()),
        lambda: journal.read(identity(0).fingerprint),
    ):
        with pytest.raises(JournalError, match="there is a file where a folder should be"):
            attempt()


@pytest.mark.parametrize("what", ["journal", "point", "file", "moved"])
@pytest.mark.parametrize("then", ["append", "append elsewhere", "close"])
def test_a_removal_midway_is_noticed(journal: Journal, tmp_path: Path, what: str, then: str) -> None:
    writer = journal.writer(HEADER)
    writer.append(identity(0), "answer", "a", answer())
    path = path_of(tmp_path / "journal", 0)
    match what:
        case "journal":
            shutil.rmtree(tmp_path / "journal")
        case "point":
            shutil.rmtree(path.parent)
        case "file":
            path.unlink()
        case "moved":
            path.parent.rename(path.parent.with_suffix(".old"))
    if then == "append elsewhere" and what != "journal":
        writer.append(identity(1), "answer", "b", answer())  # with which that point can resume
    elif then == "append elsewhere":
        with pytest.raises(JournalError, match="removed or moved"):
            writer.append(identity(1), "answer", "b", answer())
        assert not (tmp_path / "journal").exists()
    elif then == "append":
        with pytest.raises(JournalError, match="it was removed or moved while in use"):
            writer.append(identity(0), "answer", "b", answer())
        writer.close()
        return
    with pytest.raises(JournalError, match="removed or moved"):
        writer.close()
