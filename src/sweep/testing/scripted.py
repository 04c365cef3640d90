"""Scripted engine: deterministic answers without a language model, for tests of the code around an engine.

    scripts/sweep plugins=[sweep.testing.scripted] engine=scripted engine.die_at=40 transform=scale …

It reads the model's embedding table and tokenizer, but no other weights, and opens in milliseconds. `ScriptedModel`
computes answers from the embeddings of the prompt. Sampling, penalties, stop strings and log-probabilities are those of
the Transformers engine. It passes the conformance tests, `sweep.testing.check_engine`.

Its behaviour can be scripted: it can be slow, wait for an event, or crash at a given request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from sweep.engines.base import Engine, EngineConfig, ModelFiles
from sweep.engines.registry import register_engine
from sweep.engines.settings import MAX_MODEL_LEN, Effect, no_change
from sweep.util.validators import require, require_choice

DEATHS = ("engine", "process")
VERSION = 1  # increment it when answers change


@register_engine
@dataclass(frozen=True, slots=True)
class ScriptedConfig(EngineConfig):
    """Configuration of the scripted engine.

    Attributes:
        window: concurrent requests.
        step_seconds: seconds per decoding step, in which all requests in flight get one token.
        start_seconds: seconds to open the engine.
        pause_at: number of answers since the start after which the engine waits while `pause_file` exists.
        pause_file: path of a file. When the engine starts to wait, it appends a line with its process id, so that a
            test knows which engines wait. It continues when the file is removed. If the path is None or its folder does
            not exist, the engine does not wait.
        die_at: number of answers since the start after which the engine crashes. A restarted engine does not crash
            again. None: never.
        die_above: largest absolute entry of a request's embeddings that does not crash the engine. A restarted engine
            crashes at the same request again. None: no request crashes it.
        death: `engine` raises `EngineDied`, as after the end of a core process; `process` ends the whole process with
            SIGKILL.
    """

    name: ClassVar[str] = "scripted"
    packages: ClassVar[tuple[str, ...]] = ()
    effects: ClassVar[Mapping[str, Effect]] = {
        **MAX_MODEL_LEN,
        **{
            setting: no_change("It changes when an answer arrives, not the answer.")
            for setting in ("window", "step_seconds", "start_seconds", "pause_at", "pause_file")
        },
        **{
            setting: no_change("It changes whether an answer arrives, not the answer.")
            for setting in ("die_at", "die_above", "death")
        },
    }

    window: int = 16
    step_seconds: float = 0.0
    start_seconds: float = 0.0
    pause_at: int = 0
    pause_file: str | None = None
    die_at: int | None = None
    die_above: float | None = None
    death: str = "engine"

    def __post_init__(self) -> None:
        for key in ("max_model_len", "window"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"engine.{key}", "must be at least 1", value)
        for key in ("step_seconds", "start_seconds", "pause_at", "die_at", "die_above"):
            value = getattr(self, key)
            require(value is None or value >= 0, f"engine.{key}", "must be 0 or more", value)
        require_choice("engine.death", self.death, DEATHS)

    @classmethod
    def installed(cls) -> str:
        """Return the version of the answers; see `EngineConfig.installed`."""
        return f"{cls.name} {VERSION}"

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Read the embedding table and the tokenizer; see `EngineConfig.open`."""
        from sweep.testing.scripted_engine import ScriptedEngine

        return ScriptedEngine(self, model, max_model_len)

    def for_restart(self) -> ScriptedConfig:
        """Return the configuration without `die_at`, which applies only once."""
        return replace(self, die_at=None)

    def smaller(self) -> ScriptedConfig | None:
        """Return the configuration with half the window."""
        return replace(self, window=self.window // 2) if self.window > 1 else None
