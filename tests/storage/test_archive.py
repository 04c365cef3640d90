"""Tests of the archive, also when its folder is removed during a sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from point_records import RECORD
from sweep.errors import JournalError
from sweep.storage.archive import Archive

GONE = r"was removed or moved while the sweep was running\. Nothing more is written there\.\nRun the same command again"


def test_removed_archive_folder_is_not_created_again(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    archive = Archive(tmp_path / "sweep" / "points")
    archive.add("a", RECORD, [{"prompt": "Hi"}])
    assert archive.read(["a"])["prompt"].tolist() == ["Hi"]
    shutil.rmtree(tmp_path / "sweep")
    with pytest.raises(JournalError, match=rf"points {GONE}"):
        archive.add("b", RECORD, [{"prompt": "Hi"}])
    with pytest.raises(JournalError, match=rf"a\.parquet {GONE}"):
        archive.read(["a"])
    assert not (tmp_path / "sweep").exists()
