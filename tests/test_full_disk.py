"""A disk that fills up during a sweep: a clear error, nothing lost that was written, and the same command resumes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from scripted_sweeps import Sweeps, finished
from small_disks import file_system


def fill(folder: Path) -> Path:
    """Fill a file system to its last page; return the file that does."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError) as full:
        while True:
            file.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC
    return filler


@pytest.mark.parametrize(
    ("hold_at", "kept"),
    [
        # The next answer needs a new file.
        pytest.param(8, 8, id="journal"),
        # The next answer fits in the last page of its file, and completes a point.
        pytest.param(7, 8, id="archive", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_during_a_sweep(
    command_line: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path, hold_at: int, kept: int
) -> None:
    sweeps = Sweeps(tiny, tmp_path, hold_at)
    with file_system(sweeps.root, "32m"):
        process = sweeps.start_held("tracking.patience=2")
        sweeps.wait_for_published(hold_at // 2 - 1, process)
        filler = fill(sweeps.root)
        sweeps.pause.unlink()
        assert process.wait(120) == 1, sweeps.output
        assert "No space left on device" in sweeps.output and str(sweeps.root) in sweeps.output
        assert "Traceback" not in sweeps.output and "Logging error" not in sweeps.output
        before = sweeps.journaled()
        assert before.total() == kept

        filler.unlink()
        assert command_line(*sweeps.arguments())[0] == 0
        assert set(sweeps.journaled().values()) == {1}  # nothing that was kept was generated again
        assert sweeps.journaled() >= before and sweeps.journaled().total() == 12
        assert sweeps.statuses() == finished(4)
