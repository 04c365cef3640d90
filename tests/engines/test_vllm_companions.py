"""Vision models: rejected before the start if vLLM's code for them needs a package that is not installed."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sweep.engines import TransformersConfig, VLLMConfig
from sweep.engines.base import ModelFiles
from sweep.engines.vllm import companions
from sweep.errors import ConfigError

TOWER = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"hidden_size": 32}, "text_config": {}}
MISSING = "ModuleNotFoundError: No module named 'torchvision'"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    companions._missing_package.cache_clear()


def files(folder: Path, config: Any) -> ModelFiles:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelFiles(folder, "float32", False)


def importing(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, torchvision: bool = False) -> list[str]:
    """Fake the result of importing a class; return the list of imported architectures."""
    tried: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tried.append(command[-1])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(companions.subprocess, "run", run)
    monkeypatch.setattr(companions, "find_spec", lambda name: name == "vllm" or torchvision or None)
    return tried


def test_a_class_that_needs_a_missing_package_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = importing(monkeypatch, 1, f"Traceback …\n{MISSING}\n")
    message = (
        r"^model\.id: vLLM cannot run LlavaForConditionalGeneration on this machine: it needs torchvision, which is not "
        r"installed\. Use engine=transformers, or install the build of torchvision that fits torch \d"
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            VLLMConfig().check_model(files(tmp_path, TOWER), tmp_path)
    assert tried == ["LlavaForConditionalGeneration"]
    TransformersConfig().check_model(files(tmp_path, TOWER), tmp_path)


@pytest.mark.parametrize(
    ("config", "code", "stderr", "torchvision", "tries"),
    [
        (TOWER, 1, MISSING, True, 0),  # torchvision is installed
        ({"architectures": ["LlamaForCausalLM"]}, 1, MISSING, False, 0),  # a text model
        ({"vision_config": {"hidden_size": 32}}, 1, MISSING, False, 0),  # no architecture
        ([], 1, MISSING, False, 0),
        (TOWER, 0, MISSING, False, 1),  # it can be imported
        (TOWER, 1, "KeyError: 'LlavaForConditionalGeneration'", False, 1),  # unknown; vLLM reports it at the start
    ],
)
def test_other_models_are_not_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, code: int, stderr: str, torchvision: bool, tries: int
) -> None:
    tried = importing(monkeypatch, code, stderr, torchvision)
    VLLMConfig().check_model(files(tmp_path, config), tmp_path)
    assert len(tried) == tries


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("torchvision") is not None or find_spec("vllm") is None, reason="needs vLLM without torchvision"
)
def test_the_class_in_vllm_decides(tmp_path: Path) -> None:
    """In vLLM 0.32, LLaVA needs torchvision and Phi 3 Vision does not."""
    message = r"^model\.id: vLLM cannot run LlavaForConditionalGeneration on this machine: it needs torchvision"
    with pytest.raises(ConfigError, match=message):
        VLLMConfig().check_model(files(tmp_path, TOWER), tmp_path)
    VLLMConfig().check_model(files(tmp_path, TOWER | {"architectures": ["Phi3VForCausalLM"]}), tmp_path)
