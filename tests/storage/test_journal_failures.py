"""Tests of journal writers that fail: killed processes, full and read-only disks, permissions, and removed files."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from journal_files import HEADER, answer, identity, path_of, texts

from small_disks import file_system
from sweep.errors import JournalError
from sweep.storage.journal import Journal

APPEND = """
import sys
sys.path[:0] = {tests!r}
from journal_files import HEADER, Journal, Path, answer, identity
writer, n = Journal(Path(sys.argv[1])).writer(HEADER | {{"sweep": sys.argv[2]}}), 0
while n < int(sys.argv[3]):
    writer.append(identity(n % 3), "answer", f"{{sys.argv[2]}} {{n}}", answer(f"{{sys.argv[2]}} {{n}}"))
    print(n, flush=True)
    n += 1
writer.close()
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with file_system(tmp_path / "disk", "64k") as disk:
        yield disk


def start(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    code = APPEND.format(tests=[str(folder) for folder in Path(__file__).parents[:2]])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_answers_of_a_killed_writer_are_kept(tmp_path: Path, journal: Journal) -> None:
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


def test_failed_write_within_a_line_loses_only_that_line(journal: Journal) -> None:
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


def test_folder_without_permission_is_an_error() -> None:
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
def test_journal_removed_while_in_use_is_an_error(journal: Journal, tmp_path: Path, what: str, then: str) -> None:
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
