"""State files that are something else: skipped, or refused by name, without a traceback and without end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import point_records
from sweep.app.sweep_folder import FOLDER_ID, folder_id, require_regular_file
from sweep.core.records import PointRecord
from sweep.core.values import Summary
from sweep.errors import ConfigError, JournalError, LockError
from sweep.launch import manifest as manifests
from sweep.launch.shard_state import read_state
from sweep.storage.archive import DIGEST, METADATA, Archive, _digest
from sweep.storage.journal import Journal
from sweep.storage.journal_format import as_bytes, line_of, salt_of
from sweep.storage.lock import Holder, SweepLock
from sweep.storage.publish_log import PublishLog
from sweep.util import state_files
from sweep.util.digests import folder_digest

RECORD = replace(
    point_records.RECORD,
    parameters={"a": [1]},
    axes=(("transform.factor", 2.0),),
    summaries={"quality/chrf": Summary(0.5, 0.25, 0.75, 2)},
    metrics={"cost/requests": 3.0},
)
DEEP = "[" * 100_000 + "]" * 100_000
ODD = ["null", "true", "1", '"text"', "[]", "{}", "[1]", '{"a": 1}', "NaN", "", "{", "\x00", DEEP]


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Fail a test that waits."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits for something")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


KINDS = ["pipe", "socket", "folder", "device", "link to a pipe", "broken link"]


def make(kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                here = os.open(path.parent, os.O_DIRECTORY)
                server.bind(f"/proc/self/fd/{here}/{path.name}")  # whose own length is limited
                os.close(here)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "link to a pipe":
            if not path.with_name("pipe").exists():
                os.mkfifo(path.with_name("pipe"))
            path.symlink_to(path.with_name("pipe"))
        case "broken link":
            path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_non_regular_files_are_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    make(kind, path)
    with pytest.raises(FileNotFoundError if kind == "broken link" else state_files.NotAFile):
        state_files.read(path)
    with pytest.raises(state_files.NotAFile):
        state_files.open_to_append(path)
    with pytest.raises(ConfigError, match=r"^sweep\.dir: .*file: there is .* where a file should be; remove it\.$"):
        require_regular_file(path)


def test_a_link_to_a_file_is_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert state_files.read(tmp_path / "link") == b"kept"
    with pytest.raises(state_files.NotAFile, match="there is a link where a file should be"):
        state_files.open_to_append(tmp_path / "link")
    with state_files.open_to_append(tmp_path / "own") as file:
        file.write(b" and more")
    assert (tmp_path / "own").read_text() == "kept and more"


@pytest.mark.parametrize("kind", KINDS)
def test_non_regular_state_files_are_skipped_or_refused(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(kind, tmp_path / "published.jsonl")
    publish_log = PublishLog(tmp_path, "here")
    assert publish_log.entries == {} and f"{tmp_path / 'published.jsonl'} is not used: " in caplog.text
    with pytest.raises(OSError, match="where a file should be"):
        publish_log.add("a", RECORD, "run")

    archive = Archive(tmp_path / "points")
    make(kind, tmp_path / "points" / "k.parquet")
    assert archive.get("k") is None and list(archive) == []
    with pytest.raises(JournalError, match=r"k\.parquet is damaged and was moved to k\.damaged: "):
        archive.read(["k"])

    make(kind, tmp_path / "lease" / "00000001.json")
    with pytest.raises(LockError, match="where a file should be") if kind != "broken link" else _nothing():
        SweepLock(tmp_path / "lease").expect_free()

    make(kind, tmp_path / "root" / FOLDER_ID)
    with pytest.raises(ConfigError, match=r"^sweep\.dir: .*\.id is not a regular file\. Remove it, or restore"):
        folder_id(tmp_path / "root")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    digest = folder_digest(tmp_path / "model", ["*.json"], tmp_path / "fresh.json")
    make(kind, tmp_path / "cache" / "digests.json")
    assert folder_digest(tmp_path / "model", ["*.json"], tmp_path / "cache" / "digests.json") == digest

    make(kind, tmp_path / "plan" / "manifest.json")
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read: "):
        manifests.read(tmp_path / "plan")
    make(kind, tmp_path / "plan" / "state.json")
    assert read_state(tmp_path / "plan" / "state.json") is None

    make(kind, tmp_path / "journal" / "ab" / "abc" / "w.jsonl")
    assert Journal(tmp_path / "journal").read("abc").entries == {}


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("text", ODD)
def test_json_of_another_type_is_skipped_or_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "published.jsonl").write_text(text + "\n")
    assert PublishLog(tmp_path, "here").entries == {}

    (tmp_path / "lease").mkdir()
    claim = tmp_path / "lease" / "00000001.json"
    claim.write_text(text)
    os.utime(claim, (0, 0))  # nobody has renewed it for long
    SweepLock(tmp_path / "lease").expect_free()

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    digest = folder_digest(tmp_path / "model", ["*.json"], tmp_path / "fresh.json")
    (tmp_path / "digests.json").write_text(text)
    assert folder_digest(tmp_path / "model", ["*.json"], tmp_path / "digests.json") == digest

    (tmp_path / "manifest.json").write_text(text)
    message = r"manifest\.json (is damaged|was written by another version).*Make a new plan\.$"
    with pytest.raises(ConfigError, match=message):
        manifests.read(tmp_path)
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path / "state.json") == (manifests_state() if text == "{}" else None)

    described = text.encode()
    table = pa.table({"prompt": ["Hi"]}).replace_schema_metadata({METADATA: described, DIGEST: _digest(described)})
    (tmp_path / "points").mkdir()
    pq.write_table(table, tmp_path / "points" / "k.parquet")
    assert Archive(tmp_path / "points").get("k") is None


def manifests_state() -> Any:
    from sweep.launch.shard_state import ShardState

    return ShardState()


@pytest.mark.parametrize("value", [None, True, "1", [1], {"a": 1}, 1.5])
@pytest.mark.parametrize("field", list(asdict(RECORD)))
def test_a_record_with_a_field_of_another_type_is_scored_again(tmp_path: Path, field: str, value: Any) -> None:
    archive = Archive(tmp_path)
    archive.add("k", RECORD, [{"prompt": "Hi", "generation": "Ho"}])
    assert archive.get("k") == replace(archive.get("k"), record=RECORD)  # type: ignore[type-var]
    described = json.dumps(asdict(RECORD) | {field: value}).encode()
    table = pa.table({"prompt": ["Hi"]}).replace_schema_metadata({METADATA: described, DIGEST: _digest(described)})
    pq.write_table(table, tmp_path / "k.parquet")
    hint = PointRecord.__dataclass_fields__[field].type
    allowed = {
        "str": isinstance(value, str),
        "float": value == 1.5,
        "str | None": value is None or isinstance(value, str),
        "Mapping[str, Any]": isinstance(value, dict),
        "Mapping[str, float]": value == {"a": 1},
    }.get(str(hint), False)
    found = archive.get("k")
    assert (found is not None) is allowed


@pytest.mark.parametrize("field", list(asdict(Holder.here())))
def test_a_claim_with_a_field_of_another_type_is_not_a_claim(tmp_path: Path, field: str) -> None:
    claim = tmp_path / "00000001.json"
    claim.write_text(json.dumps(asdict(Holder.here()) | {field: [1]}))
    os.utime(claim, (0, 0))
    SweepLock(tmp_path).expect_free()


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}])
@pytest.mark.parametrize("field", ["place", "key", "ended", "run_id", "name", "failed"])
def test_publish_log_line_with_a_field_of_another_type_is_skipped(tmp_path: Path, field: str, value: Any) -> None:
    publish_log = PublishLog(tmp_path, "here")
    publish_log.add("a", RECORD, "run-a")
    line = json.loads((tmp_path / "published.jsonl").read_text())
    with (tmp_path / "published.jsonl").open("a") as file:
        file.write(json.dumps(line | {"run_id": "other"} | {field: value}) + "\n")
    kept = "other" if (field, value) == ("failed", True) else "run-a"
    assert PublishLog(tmp_path, "here").entries["a"].run_id == kept


@pytest.mark.parametrize(
    "change",
    [
        {"kind": ["answer"]},
        {"prompt": 1},
        {"completions": [{"text": 1, "token_ids": [1], "finish_reason": "stop"}]},
        {"completions": [{"text": "", "token_ids": ["1"], "finish_reason": "stop"}]},
        {"completions": [{"text": "", "token_ids": [True], "finish_reason": "stop"}]},
        {"completions": [{"text": "", "token_ids": [1], "finish_reason": None}]},
        {"completions": 5},
        {"scored": [[1]]},
    ],
)
def test_an_answer_of_another_type_is_generated_again(tmp_path: Path, change: dict[str, Any]) -> None:
    written = journal(tmp_path, {"writer": "w"})
    good = {"kind": "answer", "prompt": "a", "completions": [{"text": "", "token_ids": [1], "finish_reason": "stop"}]}
    written(good)
    written(good | {"prompt": "b"} | change)
    found = Journal(tmp_path).read("f" * 64)
    assert list(found.entries) == [("answer", "a")] and len(found.problems) == 1
    assert "line 3: not a valid record" in found.problems[0]


@pytest.mark.parametrize("header", [None, 5, [], "text", {"engine": 5}])
def test_a_header_of_another_type_is_not_a_header(tmp_path: Path, header: Any) -> None:
    journal(tmp_path, header)({"kind": "answer", "prompt": "a"})
    found = Journal(tmp_path).read("f" * 64)
    assert found.entries == {} and "no valid header" in found.problems[0]


def journal(root: Path, header: Any) -> Callable[[dict[str, Any]], None]:
    """Begin a file of answers with valid checksums, and return what adds one."""
    fingerprint = "f" * 64
    file = root / "ff" / fingerprint / "w.jsonl"
    file.parent.mkdir(parents=True)
    first = as_bytes({"format": 1, "writer": "w", "header": header})
    file.write_bytes(line_of(salt_of(fingerprint), first))

    def add(record: dict[str, Any]) -> None:
        with file.open("ab") as out:
            out.write(line_of(salt_of(fingerprint, first), as_bytes(record)))

    return add


def test_invalid_cached_digest_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    memory = tmp_path / "digests.json"
    digest = folder_digest(tmp_path / "model", ["*.json"], memory)
    [key] = json.loads(memory.read_text())
    for odd in (5, None, "text", ["a"], {}):
        memory.write_text(json.dumps({key: odd}))
        assert folder_digest(tmp_path / "model", ["*.json"], memory) == digest


def test_claim_with_the_highest_number_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "99999999.json").write_text(json.dumps(asdict(replace(Holder.here(), released_at="2026-01-01"))))
    with pytest.raises(LockError, match=r"99999999\.json has the highest possible number\. Remove it"):
        SweepLock(tmp_path).acquire()


def test_folder_id_may_contain_any_bytes(tmp_path: Path) -> None:
    (tmp_path / FOLDER_ID).write_bytes(b"\xff" * 10_000)
    assert folder_id(tmp_path) == "\ufffd" * 256
