"""Packages beside PyTorch that do not fit it or are missing: recognised, with what to do about them."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sweep.engines.vllm.failures import start_error
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import ModelConfig
from sweep.util.install_check import advice

TORCH = version("torch")
MISFIT = f"the installed torchvision 0.1 does not fit torch {TORCH}. A text model does not need it: pip uninstall torchvision torchaudio"
MISSING = (
    "it needs torchvision, which is not installed. Use engine=transformers, or install the build of torchvision that "
    f"fits torch {TORCH}"
)


@pytest.fixture
def companions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torchvision 0.1 that raises when it is imported, and a torchaudio."""
    for name in ("torchvision", "torchaudio"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
        (tmp_path / f"{name}-0.1.dist-info").mkdir()
        (tmp_path / f"{name}-0.1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    return tmp_path


def lazily_imported() -> ModuleNotFoundError:
    """Return what Transformers raises when an import of its own has failed."""
    try:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            raise ModuleNotFoundError(
                "Could not import module 'LlamaConfig'. Are this object's requirements …"
            ) from error
    except ModuleNotFoundError as error:
        return error
    raise AssertionError("it was imported")


def test_incompatible_package_is_named_with_the_fix(companions: Path) -> None:
    assert advice(lazily_imported()) == MISFIT


def test_model_that_needs_the_package_names_it(companions: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object, **__: object) -> None:
        raise lazily_imported()

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", raises)
    with pytest.raises(ConfigError) as raised:
        _ = Checkpoint(ModelConfig(id="mine"), tiny).config
    assert str(raised.value) == f"model.id: 'mine' has no model that can be loaded: {MISFIT}"


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: operator torchvision::nms does not exist",
        'File "/env/site-packages/torchvision/_meta_registrations.py", line 163, in register_meta',
    ],
)
def test_errors_in_another_processs_output_are_recognised(companions: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "last").write_text(text)
    assert str(start_error(RuntimeError("it ended"), tmp_path / "last")) == f"vLLM did not start: {MISFIT}"


def test_missing_package_is_named_with_the_fix(tmp_path: Path) -> None:
    error = ModuleNotFoundError("No module named 'torchvision'")
    assert advice(error) == MISSING
    assert str(start_error(error, tmp_path / "none")) == f"vLLM did not start: {MISSING}"
    assert advice(None, "ModuleNotFoundError: No module named 'torchaudio.transforms'") == MISSING.replace(
        "torchvision", "torchaudio"
    )


def test_other_errors_get_no_advice() -> None:
    for error in (ValueError("no such head"), ModuleNotFoundError("No module named 'torchvisions'"), None):
        assert advice(error) is None
