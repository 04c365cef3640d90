"""Testing tools: conformance tests for transforms, engines and measures, and a scripted engine.

Names are imported on first access, because the conformance tests need PyTorch and the configuration of the scripted
engine does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.testing.bench import EngineBench, Started
    from sweep.testing.engines import ENGINE_CHECKS, EngineCheck, check_death, check_engine
    from sweep.testing.measures import MEASURE_CHECKS, MeasureCheck, check_measure, demo_items
    from sweep.testing.scripted import ScriptedConfig
    from sweep.testing.transforms import CHECKS, Check, check_transform, demo_corpus, fresh_corpus

__all__ = [
    "CHECKS",
    "ENGINE_CHECKS",
    "MEASURE_CHECKS",
    "Check",
    "EngineBench",
    "EngineCheck",
    "MeasureCheck",
    "ScriptedConfig",
    "Started",
    "check_death",
    "check_engine",
    "check_measure",
    "check_transform",
    "demo_corpus",
    "demo_items",
    "fresh_corpus",
]

_MODULES = {
    "bench": ("EngineBench", "Started"),
    "engines": ("ENGINE_CHECKS", "EngineCheck", "check_death", "check_engine"),
    "measures": ("MEASURE_CHECKS", "MeasureCheck", "check_measure", "demo_items"),
    "scripted": ("ScriptedConfig",),
    "transforms": ("CHECKS", "Check", "check_transform", "demo_corpus", "fresh_corpus"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
