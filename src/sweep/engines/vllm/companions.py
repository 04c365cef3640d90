"""Check, before the engine starts, that packages which vLLM's code for a model imports are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from sweep.engines.base import ModelFiles
from sweep.errors import ConfigError
from sweep.util.install_check import advice

# Sections of `config.json` that text-only models do not have.
TOWERS = ("vision_config", "audio_config", "visual", "vision_tower", "mm_vision_tower", "thinker_config")
SECONDS = 300  # an import takes 10 s on an idle machine; after this limit the check is skipped

_IMPORT = """
import sys
from vllm.model_executor.models import ModelRegistry
ModelRegistry.models[sys.argv[1]].load_model_cls()
"""


def require_companions(model: ModelFiles, cache_dir: Path) -> None:
    """Reject a model with a vision tower if its class in vLLM needs torchvision or torchaudio and they are missing.

    There is no rule for which classes need them; text models can, too (vLLM 0.32: 68 of 259 modules). So the class is
    imported, in a separate process, because in a dry run Transformers runs without PyTorch in this one.

    Args:
        model: the model's files.
        cache_dir: folder for vLLM's caches.

    Raises:
        ConfigError: a package is missing. The message names the architecture, the package and what to do.
    """
    if find_spec("torchvision") is not None or find_spec("vllm") is None:
        return
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not any(config.get(tower) for tower in TOWERS):
        return
    for architecture in config.get("architectures") or []:
        if reason := _missing_package(str(architecture), cache_dir):
            raise ConfigError(f"model.id: vLLM cannot run {architecture} on this machine: {reason}.")


@lru_cache
def _missing_package(architecture: str, cache_dir: Path) -> str | None:
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(cache_dir / "vllm")}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _IMPORT, architecture],
            env={**os.environ, **settings}, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return advice(None, done.stderr) if done.returncode else None
