"""Tests of the publish log: files of several processes, and torn lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from point_records import RECORD
from sweep.storage import publish_log as ledgers
from sweep.storage.publish_log import PublishLog


def test_added_entries_are_read_by_the_next_run(tmp_path: Path) -> None:
    publish_log = PublishLog(tmp_path / "new", "here")
    for key in ("a", "b"):
        publish_log.add(key, RECORD, f"run-{key}")
    assert [json.loads(line)["key"] for line in (tmp_path / "new" / "published.jsonl").read_text().splitlines()] == [
        "a",
        "b",
    ]
    later = PublishLog(tmp_path / "new", "here")
    assert {key: entry.run_id for key, entry in later.entries.items()} == {"a": "run-a", "b": "run-b"}
    assert later.has("a", RECORD) and not PublishLog(tmp_path / "new", "elsewhere").entries


def test_incomplete_line_does_not_corrupt_the_next(tmp_path: Path) -> None:
    (tmp_path / "published.jsonl").write_text('{"place": "he')
    PublishLog(tmp_path, "here").add("a", RECORD, "run-a")
    assert list(PublishLog(tmp_path, "here").entries) == ["a"]


def test_adding_an_entry_does_not_read_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_log = PublishLog(tmp_path, "here")
    publish_log.add("a", RECORD, "run-a")
    monkeypatch.setattr(ledgers.Path, "read_bytes", lambda _: pytest.fail("the whole file was read"))
    publish_log.add("b", RECORD, "run-b")
    assert list(PublishLog(tmp_path, "here").entries) == ["a", "b"]
