"""Tests of the archive, also when its folder is removed during a sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from point_records import RECORD
from sweep.errors import JournalError
from sweep.storage.archive import METADATA, Archive

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


@pytest.mark.parametrize("damage", ["checksum", "not Parquet", "a folder"])
def test_an_unreadable_file_counts_as_missing_and_is_logged_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    archive, path = Archive(tmp_path), tmp_path / "a.parquet"
    assert archive.get("a") is None and not caplog.messages
    archive.add("a", RECORD, [{"prompt": "Hi"}])
    assert archive.get("a") is not None
    if damage == "checksum":
        table = pq.read_table(path)
        metadata = table.schema.metadata | {METADATA: table.schema.metadata[METADATA] + b" "}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    else:
        path.unlink()
        path.mkdir() if damage == "a folder" else path.write_text("no Parquet\nat all")
    assert archive.get("a") is None and not caplog.messages  # it may be on its way from another machine
    assert [*archive, *archive] == []
    [message] = caplog.messages
    assert f"{path} cannot be read, its point has to be scored again: " in message and "\n" not in message
