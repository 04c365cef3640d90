"""Testing tools: conformance tests for transforms and engines, and a scripted engine.

Names are imported on first access, because the conformance tests need PyTorch and the configuration of the scripted
engine does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.testing.bench import EngineBench, Started
    from sweep.testing.engines import ENGINE_CHECKS, EngineCheck, check_death, check_engine
    from sweep.testing.scripted import ScriptedConfig
    from sweep.testing.transforms import CHECKS, Check, check_transform, demo_corpus, fresh_corpus

__all__ = [
    "CHECKS",
    "ENGINE_CHECKS",
    "Check",
    "EngineBench",
    "EngineCheck",
    "ScriptedConfig",
    "Started",
    "check_death",
    "check_engine",
    "check_transform",
    "demo_corpus",
    "fresh_corpus",
]

_MODULES = {
    "bench": ("EngineBench", "Started"),
    "engines": ("ENGINE_CHECKS", "EngineCheck", "check_death", "check_engine"),
    "scripted": ("ScriptedConfig",),
    "transforms": ("CHECKS", "Check", "check_transform", "demo_corpus", "fresh_corpus"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
