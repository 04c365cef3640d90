"""Conformance batteries: what every transform and every engine must hold to, whoever wrote it."""

from sweep.testing.bench import EngineBench, Started
from sweep.testing.engines import ENGINE_CHECKS, EngineCheck, check_death, check_engine
from sweep.testing.transforms import CHECKS, Check, check_transform, demo_corpus, fresh_corpus

__all__ = [
    "CHECKS",
    "ENGINE_CHECKS",
    "Check",
    "EngineBench",
    "EngineCheck",
    "Started",
    "check_death",
    "check_engine",
    "check_transform",
    "demo_corpus",
    "fresh_corpus",
]
