"""Every bad configuration and input of the corpus is refused in a line or three, and leaves nothing behind.

The corpus is data, `data/bad_configurations.yaml`, whose head says what a case is.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DATA = Path(__file__).parent / "data" / "bad_configurations.yaml"
CORPUS = yaml.load(DATA.read_text("utf-8"), yaml.CSafeLoader)
LONGEST, MOST_LINES = 400, 3
Sweep = Callable[..., tuple[int, str, str]]


def test_the_corpus_is_large_and_no_case_is_there_twice() -> None:
    assert len({case["name"] for case in CORPUS}) == len(CORPUS) >= 200
    assert len({json.dumps(case | {"name": ""}, sort_keys=True, default=repr) for case in CORPUS}) == len(CORPUS)


def test_bad_configurations_are_refused(
    command_line: Sweep,
    no_engine: None,
    tiny: Path,
    tmp_path: Path,
    subtests: pytest.Subtests,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    imported = set(sys.modules)
    for number, case in enumerate(CORPUS):
        with subtests.test(case["name"]):
            folder = tmp_path / str(number)
            folder.mkdir()
            _write(folder, case, tiny)
            monkeypatch.chdir(folder)
            before = _below(folder)

            code, out, err = command_line(*_command(folder, case, tiny))

            message = err[err.rfind("\nsweep: ") + 1 :]
            assert code == 2, err
            assert message.startswith("sweep: "), err
            assert len(message) <= LONGEST and len(message.splitlines()) <= MOST_LINES, message
            for said in _list(case["says"]):
                assert said.replace("{folder}", str(folder)) in message
            assert "Traceback" not in err and out == ""
            logs = list((folder / "outputs" / "sweeps").glob("*/sweep.log"))
            assert len(logs) <= 1
            assert _below(folder) - before <= {path for log in logs for path in (log, *log.parents)}
            shown = err + "".join(log.read_text() for log in logs)
            assert case.get("secret", "hunter2") not in shown
    for module in set(sys.modules) - imported:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[module]


def _command(folder: Path, case: dict[str, Any], tiny: Path) -> list[str]:
    given = [override.replace("{folder}", str(folder)).replace("{tiny}", str(tiny)) for override in case["overrides"]]
    keys = {override.split("=")[0] for override in given}
    defaults = {"sweep.dir": f"{folder}/outputs", "model.id": str(tiny), "prompts.items": "[Hi,Ho]"}
    if "prompts.path" in keys:
        del defaults["prompts.items"]
    return [*given, *(f"{key}={value}" for key, value in defaults.items() if key not in keys)]


def _write(folder: Path, case: dict[str, Any], tiny: Path) -> None:
    """Write a case's files, and its models: copies of the tiny one in which something is wrong."""
    for name, wrong in case.get("models", {}).items():
        shutil.copytree(tiny, folder / name)
        for file in _list(wrong.get("without", [])):
            (folder / name / file).unlink()
        for file, changes in wrong.get("changed", {}).items():
            path = folder / name / file
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        for file, size in wrong.get("cut", {}).items():
            path = folder / name / file
            path.write_bytes(path.read_bytes()[:size])
    for name, content in case.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _below(folder: Path) -> set[Path]:
    return {folder, *folder.parents, *folder.rglob("*")}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
