"""Prompt files as tools write them, and files that are none: nothing hangs, grows without bound or is misread."""

from __future__ import annotations

import datetime
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompt_files, prompt_yaml, prompts
from sweep.inputs.config import PromptsConfig
from sweep.inputs.prompts import Prompt
from sweep.inputs.readers import base, tables


def read(folder: Path, name: str, content: str | bytes, **config: Any) -> list[Prompt]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return prompts.load(PromptsConfig(path=str(path), **config))


def refusal(folder: Path, name: str, content: str | bytes, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, name, content, **config)
    return str(caught.value)


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def test_lists_in_cells_are_references(tmp_path: Path) -> None:
    csv = 'prompt,reference\na,"[""Paris"",""Paris.""]"\nb,[ab]\nc,"[12, 12.0]"\nd,\n'
    expected = [("Paris", "Paris."), ("[ab]",), ("12", "12"), ()]
    assert [p.references for p in read(tmp_path, "p.csv", csv)] == expected
    tsv = 'prompt\treference\na\t["Paris","Paris."]\n'.replace('"', '""').replace("\t[", '\t"[').replace("]\n", ']"\n')
    assert read(tmp_path, "p.tsv", tsv)[0].references == ("Paris", "Paris.")
    assert "a list that is not JSON" in refusal(tmp_path, "p.csv", "prompt,reference\na,\"['x', 'y']\"\n")


def test_cells_hold_json_of_chats_and_values(tmp_path: Path) -> None:
    cells = ['[{"role": "user", "content": "Hi {a}"}]', '{"a": "x"}']
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    assert read(tmp_path, "p.csv", f"messages,values\n{quoted}\n")[0].text == "Hi x"
    assert read(tmp_path, "p.csv", f"prompt,values\n{quoted}\n")[0].messages == ({"role": "user", "content": "Hi x"},)
    assert "p.csv:2: 'values' must hold JSON" in refusal(tmp_path, "p.csv", "prompt,values\na,b\n")


def test_long_cells_and_windows_line_ends(tmp_path: Path) -> None:
    assert read(tmp_path, "p.csv", f"\ufeffprompt\r\n{'x' * 200_000}\r\n")[0].text == "x" * 200_000
    assert [p.text for p in read(tmp_path, "p.txt", "\ufeffa\r\nb\r\n")] == ["a", "b"]


@pytest.mark.parametrize(
    "written", ["yes", "no", "on", "true", "12:30", "012", "1_000", "0x1F", "12.50", "1.0", "2024-01-01", "=", "1e3"]
)
def test_yaml_scalars_are_read_as_written(tmp_path: Path, written: str) -> None:
    [prompt] = read(tmp_path, "p.yaml", f"- {{prompt: {written}, reference: [{written}], values: {{on: {written}}}}}\n")
    assert (prompt.text, prompt.references, dict(prompt.values)) == (written, (written,), {"on": written})


def test_yaml_nulls_and_tools_keep_their_types(tmp_path: Path) -> None:
    assert read(tmp_path, "p.yaml", "- {prompt: a, reference: null}\n- {prompt: b, reference: .nan}\n") == prompts.load(
        PromptsConfig(items=["a", "b"])
    )
    text = """
    - tools: [{function: {name: on, strict: true, max: 12, low: 0.5, since: 2024-01-01, time: 12:30}}]
      messages:
        - {role: user, content: 012}
        - {role: assistant, content: null, tool_calls: [{function: {arguments: {n: 3}}}]}
        - {role: tool, tool_call_id: 7, content: yes}
    """
    [prompt] = read(tmp_path, "p.yaml", text)
    function = {"name": "on", "strict": True, "max": 12, "low": 0.5, "since": "2024-01-01", "time": "12:30"}
    assert prompt.tools == ({"function": function},)
    assert prompt.messages == (
        {"role": "user", "content": "012"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"n": 3}}}]},
        {"role": "tool", "content": "yes", "tool_call_id": "7"},
    )


def test_aliases_are_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path, "p.yaml", "- &a {prompt: x, id: 1}\n- {<<: *a, id: 2}\n")[1].text == "x"
    laughs = "- &a0 [x]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "p.yaml: it has more than 10^15 values with aliases expanded" in refusal(tmp_path, "p.yaml", laughs)
    assert "p.yaml:1: this value contains an alias to itself" in refusal(tmp_path, "p.yaml", "- &a [*a]\n")
    monkeypatch.setattr(prompt_yaml, "MAX_NODES", 4)
    assert read(tmp_path, "p.yaml", "- a\n- b\n- c\n")
    assert "it has 5 values with aliases expanded; the limit is 4" in refusal(
        tmp_path, "p.yaml", "- a\n- b\n- c\n- d\n"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n'),
        ("p.jsonl", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n'),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]'),
        ("p.yaml", "- prompt: a\n  prompt: b\n"),
        ("p.csv", "prompt,prompt\na,b\n"),
        ("p.parquet", b""),
    ],
)
def test_duplicate_keys_are_refused(tmp_path: Path, name: str, content: str | bytes) -> None:
    if name == "p.parquet":
        table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        content = file.getvalue()
    found = refusal(tmp_path, name, content)
    assert "duplicate key" in found or "two columns are named 'prompt'" in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"\xff\xfe{\x00", "p.jsonl:1: not UTF-8 text (invalid start byte). It looks like UTF-16"),
        ("p.jsonl", b'{"prompt": "a"}\n\xe9\n', "p.jsonl:2: not UTF-8 text"),
        ("p.json", b'[\n"\xe9"]', "p.json:2: not UTF-8 text"),
        ("p.jsonl", '[\n{"prompt": "a"}\n]\n', "Rename a JSON document of several lines to p.json"),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "Extra data at column 1. Rename a JSON Lines file to p.jsonl"),
        ("p.json", '{"data": []}', "must hold a list of prompts; got a mapping with the keys data"),
        ("p.jsonl", "[" * 100_000, "p.jsonl:1: cannot be read: it is nested too deeply"),
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.yaml", "- " + "[" * 10_000, "nested too deeply"),
        ("p.jsonl", '{"prompt": "a", "reference": Infinity}', "got the number inf"),
        ("p.jsonl", '{"prompt": "a", "id": %s}' % ("9" * 5000), "cannot be read: Exceeds the limit"),
        ("p.jsonl.gz", b"\x1f\x8b", "p.jsonl.gz: is damaged, or not a .gz file"),
        ("p.jsonl.gz", b"{}", "p.jsonl.gz: is damaged, or not a .gz file: Not a gzipped file"),
        ("p.jsonl.zst", b"{}", "p.jsonl.zst: is damaged, or not a .zst file"),
        ("p.jsonl.bz2", b"{}", "p.jsonl.bz2: is damaged, or not a .bz2 file"),
        ("p.jsonl.xz", b"{}", "p.jsonl.xz: is damaged, or not a .xz file"),
        ("p.parquet.gz", b"", "p.parquet.gz: .parquet files are compressed already. Decompress it to p.parquet."),
        ("p.docx", b"", "'p.docx' has an unknown suffix. Use one of .csv, .tsv, .xlsx"),
        ("p.eval", b"PK", "'p.eval' is a log of Inspect AI in its own format. Convert it with `inspect log convert"),
        ("p.xls", b"x", "'p.xls' is a workbook of old Excel. Save it as .xlsx."),
        (
            "p.csv",
            b"prompt;reference\nCaf\xe9;x\n",
            "p.csv:2: not UTF-8 text (invalid continuation byte). Save it as UTF-8.",
        ),
        ("p.csv", "prompt\treference\na\tb\n", "p.csv:1: the columns are separated by tabs. Set prompts.format=tsv."),
        ("p.csv", "prompt|reference\na|b\n", "p.csv:1: the columns are separated by '|'. Save the file with commas."),
        ("p.csv", "sep=;\nprompt;reference\na;b\n", "p.csv:1: 'sep=;' is a line for Excel. Remove it."),
        (
            "p.jsonl",
            '{"messages": []}',
            "messages is empty; expected messages with role and content, or from and value.",
        ),
        ("p.jsonl", '{"conversations": []}', "is empty; expected messages"),
        (
            "p.jsonl",
            json.dumps({"custom_id": "1", "url": "/v1/completions", "body": {"prompt": ["a", "b"]}}),
            "p.jsonl:1: body.prompt (OpenAI batch) is a list. Write a line for each prompt.",
        ),
        (
            "p.jsonl",
            json.dumps({"custom_id": "1", "url": "/v1/responses", "body": {"input": [{"type": "function_call"}]}}),
            "p.jsonl:1: body.input[0] (OpenAI responses) is of type 'function_call'. Only messages are supported.",
        ),
        ("p.xlsx", b"PK", "p.xlsx: not an Excel workbook"),
        ("p.arrow", b"ARROW1", "p.arrow: not Arrow"),
        ("p.parquet", b"PAR1", "p.parquet: not Parquet"),
        ("p.csv", "", "holds no prompt"),
        ("p.parquet", parquet([{"prompt": "a"}])[:-20] + b"PAR1", "p.parquet: not Parquet"),
    ],
)
def test_broken_files_are_refused_with_a_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path, name, content)


def test_limit_stops_reading_early(tmp_path: Path) -> None:
    for name, content in (
        ("p.jsonl", '{"prompt": "a"}\nnot JSON'),
        ("p.csv", "prompt\na\nb,c\n"),
        ("p.txt", b"a\n\xff"),
    ):
        assert [p.text for p in read(tmp_path, name, content, limit=1)] == ["a"]
        assert "not" in (found := refusal(tmp_path, name, content, limit=2)) or "has 2 fields" in found


def test_numbers_of_prompts_and_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_PROMPTS", 2)
    monkeypatch.setattr(prompts, "MAX_PROMPTS", 2)
    three = parquet([{"prompt": text} for text in "abc"])
    assert "has more than 2 prompts. Set prompts.limit." in refusal(tmp_path, "p.txt", "a\nb\nc\n")
    assert "p.parquet: has 3 rows; the limit is 2. Set prompts.limit." in refusal(tmp_path, "p.parquet", three)
    assert len(read(tmp_path, "p.parquet", three, limit=2)) == 2
    monkeypatch.setattr(base, "MAX_LINE", 2**20)
    monkeypatch.setattr(base, "MAX_DOCUMENT", 2**20)
    monkeypatch.setattr(base, "MAX_YAML", 2**20)
    long = "x" * 2**20 + "yz"
    for name in ("p.txt", "p.jsonl", "p.csv"):
        assert f"{name}:1: the line is longer than 1 MiB" in refusal(tmp_path, name, long)
    for name in ("p.json", "p.yaml"):
        assert f"{name}: is larger than 1 MiB. Write it as JSON Lines" in refusal(tmp_path, name, long)


def test_parquet_reads_only_needed_columns(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "embedding": [0.5] * 4, "refrence": None, "score": i} for i in range(200)]
    content = parquet(rows, row_group_size=50)
    read_rows = read(tmp_path, "p.parquet", content)
    assert [p.text for p in read_rows] == [str(i) for i in range(200)]
    assert read_rows[0].reading.unused == ("refrence", "embedding", "score")
    assert "unknown key 'refrence'" in refusal(tmp_path, "p.parquet", parquet([{"prompt": "a", "refrence": "b"}]))
    assert "neither 'prompt' nor messages (keys: a, b)" in refusal(tmp_path, "p.parquet", parquet([{"a": 1, "b": 2}]))


def test_advice_names_a_text_column_in_parquet(tmp_path: Path) -> None:
    found = refusal(tmp_path, "p.parquet", parquet([{"input": 1, "goal": "x"}]))
    assert found.endswith("(keys: input, goal). Set prompts.prompt_key=goal.")


def test_parquet_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    batches = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, **options: Any) -> Iterator[Any]:
        for batch in batches(self, **options):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    content = parquet([{"prompt": "a"}] * 10_000)
    assert len(read(tmp_path, "p.parquet", content, limit=3)) == 3
    assert sizes == [3]


def test_small_parquet_files_that_expand_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_BYTES", 1000)
    repeated = parquet([{"prompt": "x" * 100}] * 20)
    assert "p.parquet:[10]: the texts up to this row exceed 0 GiB" in refusal(tmp_path, "p.parquet", repeated)
    assert len(read(tmp_path, "p.parquet", repeated, limit=10)) == 10
    monkeypatch.setattr(tables, "MAX_TEXT", 50)
    assert "p.parquet:[0] and the rows after it: a text has 100 bytes; the limit is 50" in refusal(
        tmp_path, "p.parquet", repeated
    )
    monkeypatch.setattr(tables, "MAX_VALUES", 10)
    lists = parquet([{"prompt": "a", "reference": ["b"] * 11}])
    assert "the column 'reference.list.element' of row group 0 has 11 values" in refusal(tmp_path, "p.parquet", lists)


def test_parquet_types_other_than_text_are_named(tmp_path: Path) -> None:
    for value, what in ((b"x", "bytes"), (datetime.date(2024, 1, 1), "a date"), (True, "the boolean true")):
        found = refusal(tmp_path, "p.parquet", parquet([{"prompt": "a", "reference": value}]))
        assert f"'reference' must be a string or a list of strings; got {what}" in found


def test_nulls_that_parquet_adds_to_chats_are_removed(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a", "name": None}, {"role": "user", "content": "b", "name": "Ann"}]
    [prompt] = read(tmp_path, "p.parquet", parquet([{"messages": chat}]))
    assert prompt.messages == ({"role": "user", "content": "a"}, {"role": "user", "content": "b", "name": "Ann"})


def test_non_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (
        ("pipe.jsonl", "is a pipe, which can be read only once; it must be a file"),
        ("folder.jsonl", "is a folder; it must be a file. Set prompts.dataset, or a pattern"),
        ("/dev/null", "is a device or socket; it must be a file"),
        ("x" * 5000, "cannot be read"),
        ("nul\0.jsonl", "there is no file"),
    ):
        with pytest.raises(ConfigError, match=r"prompts\.path: ") as caught:
            prompts.load(PromptsConfig(path=str(tmp_path / name)))
        assert message in str(caught.value)


def test_pipe_that_replaces_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}')
    [file] = prompt_files.find_prompt_files(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="cannot be read: it is no longer a regular file"):
        next(file.entries(PromptsConfig(path=str(path))))


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a"}))
    with pytest.raises(ConfigError, match=r"prompts\.path: 'p\.jsonl' cannot be read: Permission denied"):
        prompts.load(PromptsConfig(path=str(tmp_path / "p.jsonl")))
