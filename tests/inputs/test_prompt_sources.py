"""Files of other programs, several files, saved folders, and Hugging Face data sets."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from prompt_entries import load_file, refuse_file

from sweep.errors import ConfigError
from sweep.inputs import readers
from sweep.inputs.config import PromptsConfig
from sweep.inputs.readers import packed

ROWS = [{"id": "fr", "prompt": "Capital of France?", "reference": "Paris"}, {"id": "jp", "prompt": "Of Japan?"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def excel(rows: list[list[Any]], more: dict[str, list[list[Any]]] | None = None) -> bytes:
    book = openpyxl.Workbook()
    for title, lines in {"Sheet": rows, **(more or {})}.items():
        sheet = book[title] if title in book.sheetnames else book.create_sheet(title)
        for line in lines:
            sheet.append(line)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def arrow(stream: bool) -> bytes:
    table = pyarrow.Table.from_pylist([row | {"embedding": [0.5]} for row in ROWS])
    sink = pyarrow.BufferOutputStream()
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


TABLE = [["id", "prompt", "reference"], *[[row["id"], row["prompt"], row.get("reference")] for row in ROWS]]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("p.ndjson", lambda: JSONL),
        ("p.jsonl.gz", lambda: gzip.compress(JSONL)),
        ("p.jsonl.zst", lambda: zst(JSONL[:50]) + zst(JSONL[50:])),  # two frames, as pzstd writes
        ("p.jsonl.bz2", lambda: bz2.compress(JSONL)),
        ("p.JSONL.XZ", lambda: lzma.compress(JSONL)),
        ("p.json.gz", lambda: gzip.compress(json.dumps(ROWS).encode())),
        ("p.xlsx", lambda: excel([*TABLE, [], [None, None, None]], {"Empty": []})),
        ("p.arrow", lambda: arrow(stream=False)),
        ("p.arrow", lambda: arrow(stream=True)),
    ],
)
def test_files_of_other_programs_hold_the_same_prompts(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    (tmp_path / name).write_bytes(make())
    assert load_file(tmp_path / name)[0] == load_file(None, items=ROWS)[0]


def test_feather_is_arrow(tmp_path: Path) -> None:
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), str(tmp_path / "p.feather"))
    assert load_file(tmp_path / "p.feather")[0] == load_file(None, items=ROWS)[0]


def test_excel_sheets_and_values(tmp_path: Path) -> None:
    path = tmp_path / "p.xlsx"
    rows = [["prompt", "reference"], ["8+4?", 12], ["Day?", datetime.datetime(2026, 11, 29)], ["List?", '["a", "b"]']]
    path.write_bytes(excel(rows, {"Notes": [["draft"]]}))
    assert "p.xlsx: has several sheets (Sheet, Notes). Set prompts.split" in refuse_file(path)
    assert [p.references for p in load_file(path, split="Sheet")[0]] == [("12",), ("2026-11-29",), ("a", "b")]
    assert "has no sheet 'Shet'. Did you mean 'Sheet'?" in refuse_file(path, split="Shet")
    path.write_bytes(excel([["prompt"], ["a", "b"]]))
    assert "p.xlsx:2: has 2 cells; expected 1" in refuse_file(path)
    path.write_bytes(excel([["prompt", None, "x"], ["a", "b", "c"]]))
    assert "p.xlsx:1: columns must have different names" in refuse_file(path)


def test_excel_formulas_need_a_stored_result(tmp_path: Path) -> None:
    path = tmp_path / "p.xlsx"
    path.write_bytes(excel([["prompt", "reference", "note"], ["a", "b", "=1+1"], [], ["c", '=A2&"x"', None]]))
    assert "p.xlsx:4: the formula in B4 has no stored result. Open and save the workbook" in refuse_file(path)
    path.write_bytes(excel([["prompt"], ["a"], ['=A2&"x"']]))
    assert "p.xlsx:3: the formula in A3 has no stored result" in refuse_file(path)
    path.write_bytes(excel([["prompt", "reference", "note"], ["a", "b", "=1+1"]]))
    assert load_file(path)[0][0].references == ("b",)
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:  # as Excel stores an empty text
        for member in old.namelist():
            sheet = member == "xl/worksheets/sheet1.xml"
            cell, text = b'<c r="B2" t="inlineStr"><is><t>b</t></is></c>', old.read(member)
            assert not sheet or cell in text
            new.writestr(member, text.replace(cell, b'<c r="B2" t="str"><f>""</f><v></v></c>'))
    path.write_bytes(made.getvalue())
    assert load_file(path)[0][0].references == ()


def test_completions_in_tables_are_texts_unless_they_are_chats(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    chat = '"[{""role"": ""assistant"", ""content"": ""A""}]"'
    path.write_text(f'prompt,completion\nList?,"[1, 2, 3]"\nObject?,"{{""a"": 1}}"\nName?,{chat}\n')
    assert [p.references for p in load_file(path)[0]] == [("[1, 2, 3]",), ('{"a": 1}',), ("A",)]


def test_sizes_of_archives_and_workbooks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_BYTES", 2**30 // 2**10)
    monkeypatch.setattr(packed, "BUFFER", 2**10)
    text = b'{"prompt": "' + b"x" * 2**10 + b'"}\n'
    for suffix, compress in {"gz": gzip.compress, "zst": zst, "bz2": bz2.compress, "xz": lzma.compress}.items():
        for name in ("p.jsonl", "p.txt", "p.csv"):
            path = tmp_path / f"{name}.{suffix}"
            path.write_bytes(compress(b"prompt\n" + text * 2**10 if name == "p.csv" else text * 2**10))
            if name == "p.jsonl":
                assert len(load_file(path, limit=10)[0]) == 10
            message = f"{path.name}: is larger than 0.000977 GiB without compression. Set prompts.limit."
            assert refuse_file(path) == message
    path = tmp_path / "p.xlsx"
    path.write_bytes(excel([["prompt"], *[[None]] * 8, ["a"]]))
    assert [p.text for p in load_file(path)[0]] == ["a"]
    monkeypatch.setattr(readers.excel, "MAX_EMPTY", 7)
    assert refuse_file(path) == "p.xlsx:9: has more than 7 empty rows. Remove them."


def test_declared_dimensions_of_a_sheet_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = zipfile.ZipFile(io.BytesIO(excel([["prompt"], ["a"]]))), tmp_path / "p.xlsx"
    with zipfile.ZipFile(path, "w") as book:
        for name in source.namelist():
            book.writestr(name, source.read(name).replace(b'ref="A1:A2"', b'ref="A1:C2000"'))
    monkeypatch.setattr(readers.excel, "MAX_EMPTY", 7)
    assert [p.text for p in load_file(path)[0]] == ["a"]


def test_shards_by_pattern_are_read_in_order(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"train-0000{i}-of-00002.parquet")
    assert [p.id for p in load_file(tmp_path / "train-*.parquet")[0]] == ["fr", "jp"]
    assert "no file matches" in refuse_file(tmp_path / "test-*.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), tmp_path / "train-9.parquet")
    assert "train-9.parquet:[0]: has neither 'prompt' nor messages" in refuse_file(tmp_path / "train-*.parquet")


def test_saved_folders_are_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS, split="test")
    rows.save_to_disk(tmp_path / "one")
    assert load_file(tmp_path / "one")[0] == load_file(None, items=ROWS)[0]
    assert load_file(tmp_path / "one", split="test")[0] == load_file(None, items=ROWS)[0]
    assert "holds the split 'test', not 'train'" in refuse_file(tmp_path / "one", split="train")
    datasets.DatasetDict(train=rows.select([1]), test=rows).save_to_disk(tmp_path / "two")
    assert "has several splits (train, test). Set prompts.split" in refuse_file(tmp_path / "two")
    assert [p.id for p in load_file(tmp_path / "two", split="train")[0]] == ["jp"]
    assert [p.id for p in load_file(None, dataset=str(tmp_path / "two"), split="train")[0]] == ["jp"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of Parquet files with two configurations, laid out as on the hub."""
    folder = tmp_path_factory.mktemp("gsm8k")
    lines = ["---", "configs:"]
    for config in ("main", "socratic"):
        (folder / config).mkdir()
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, count in (("train", 4), ("test", 2)):
            rows = [
                {"question": f"{config} {split} {i}+1?", "answer": f"It is {i + 1}. #### {i + 1}", "image": b"x"}
                for i in range(count)
            ]
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet"
            )
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets-cache")


def test_data_sets_are_read_by_configuration_and_split(repository: Path) -> None:
    keys = {"prompt_key": "question", "reference_key": "answer", "dataset": str(repository)}
    loaded, summary = load_file(None, dataset_config="main", split="test", **keys)
    assert [p.text for p in loaded] == ["main test 0+1?", "main test 1+1?"]
    assert summary == f"{repository} (main, test): 2 prompts, 2 with references, not used: image"
    assert [p.text for p in load_file(None, dataset_config="socratic", split="train[1:3]", **keys)[0]] == [
        "socratic train 1+1?",
        "socratic train 2+1?",
    ]
    assert len(load_file(None, dataset_config="main", split="train", limit=3, **keys)[0]) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split": "test"}, "prompts.dataset_config: "),
        ({"dataset_config": "maim", "split": "test"}, "prompts.dataset_config: "),
        ({"dataset_config": "main"}, "has several splits (train, test). Set prompts.split to one of them."),
        ({"dataset_config": "main", "split": "tset"}, "prompts.split: "),
        ({"dataset_config": "main", "split": "test", "revision": "v1"}, "prompts.revision: a local folder has no rev"),
        (
            {"dataset_config": "main", "split": "test"},
            ":[0]: has neither 'prompt' nor messages (keys: question, answer, ",
        ),
    ],
)
def test_mistakes_in_the_name_of_a_data_set_are_named(repository: Path, config: dict[str, Any], message: str) -> None:
    found = refuse_file(None, dataset=str(repository), **config)
    assert message in found and found.count("\n") < 3 and len(found) < 1000


def test_revision_of_a_data_set_is_pinned(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's answer to a request for a data set's commit is used for reading, and said."""
    asked: list[Any] = []
    load_dataset = datasets.load_dataset

    def info(self: Any, name: str, **options: Any) -> Any:
        asked.append((name, options["revision"]))
        return type("Info", (), {"sha": "e53f048856ff4f594e959d75785d2c2d37b678ee"})

    def from_repository(name: str, *rest: Any, revision: str, **options: Any) -> Any:
        asked.append((name, revision))
        return load_dataset(str(repository), *rest, **options)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", from_repository)
    keys = {"prompt_key": "question", "dataset_config": "main", "split": "test"}
    _, summary = load_file(None, dataset="openai/gsm8k", revision="main", **keys)
    assert asked == [("openai/gsm8k", "main"), ("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee")]
    assert summary.startswith("openai/gsm8k (main, test, revision e53f048856ff): 2 prompts")


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "prompts.dataset needs the package datasets: pip install '.[datasets]'" in refuse_file(
        None, dataset=str(tmp_path)
    )
    (tmp_path / "p.xlsx").write_bytes(b"")
    assert "Excel files need the package openpyxl: pip install '.[excel]'" in refuse_file(tmp_path / "p.xlsx")


def test_only_one_source_is_configured() -> None:
    for config, message in (
        ({"path": "a.jsonl", "dataset": "b/c"}, "prompts.dataset cannot be used with prompts.path"),
        ({"items": ["a"], "revision": "x"}, "prompts.revision needs prompts.dataset"),
        ({"items": ["a"], "split": "x"}, "prompts.split needs prompts.dataset or prompts.path"),
    ):
        with pytest.raises(ConfigError, match=message):
            PromptsConfig(**config)
