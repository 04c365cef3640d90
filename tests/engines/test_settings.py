"""Engine settings: each declares whether it changes generations."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from sweep.engines import ENGINES, ServerConfig, TransformersConfig, VLLMConfig, sampling_args
from sweep.engines.base import EngineConfig
from sweep.engines.vllm.arguments import FIXED, NO_CHANGE, OWN_KEYS
from sweep.engines.vllm.signatures import parameters
from sweep.testing import ScriptedConfig

EXPECTED = {
    "vllm": {
        "max_model_len",
        "tensor_parallel_size",
        "enforce_eager",
        "threads",
        "prefix_caching",
        "batch_invariant",
    },  # and those of `args` that are set
    "server": {"max_model_len", "served_model"},
    "transformers": {"max_model_len", "device", "threads"},
    ScriptedConfig.name: {"max_model_len"},
}


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_each_field_is_declared_with_a_reason(name: str) -> None:
    config = ENGINES[name]
    assert set(config.effects) == {field.name for field in fields(config)}
    declared = [*config.effects.values(), *config.variables.values()]
    assert all(effect.reason.endswith(".") for effect in declared)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_settings_that_change_generations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENGINES[name].variables:
        monkeypatch.delenv(variable, raising=False)
    assert set(ENGINES[name]().generation_settings()) == EXPECTED[name]


def test_values_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.engines.vllm.invariance.USER_INVARIANT", None)
    assert VLLMConfig(batch_invariant=True, max_num_seqs=3).generation_settings()["batch_invariant"] is True
    assert VLLMConfig().generation_settings()["batch_invariant"] is False
    assert TransformersConfig(device="cpu").generation_settings()["device"] == "cpu"
    assert ServerConfig(served_model="adapter").generation_settings()["served_model"] == "adapter"


def test_arguments_of_vllm() -> None:
    """Without any, settings are those of versions without the key. null is vLLM's default."""
    assert "args" not in VLLMConfig(args={"disable_log_stats": False, "kv_cache_dtype": None}).generation_settings()
    args = {"kv_cache_dtype": "fp8", "download_dir": "/tmp", "hf_overrides": {"head_dtype": "float32"}}
    counted = {"kv_cache_dtype": "fp8", "hf_overrides": {"head_dtype": "float32"}}
    assert VLLMConfig(args=args).generation_settings()["args"] == counted
    assert parameters("engine.arg_utils", "EngineArgs").keys() - OWN_KEYS.keys() - FIXED.keys() >= NO_CHANGE
    assert OWN_KEYS.keys() | FIXED.keys() <= parameters("engine.arg_utils", "EngineArgs").keys()
    own = sampling_args.OWN_KEYS.keys() | sampling_args.FIXED.keys() | sampling_args.RANGES.keys()
    assert own <= parameters("sampling_params", "SamplingParams").keys()


def test_environment_variables_are_included_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert TransformersConfig().generation_settings()["$NVIDIA_TF32_OVERRIDE"] == "0"
    assert "$NVIDIA_TF32_OVERRIDE" not in ServerConfig().generation_settings()
    monkeypatch.setattr("sweep.engines.vllm.invariance.USER_INVARIANT", "1")
    assert VLLMConfig().generation_settings()["batch_invariant"] is True


def test_a_field_without_a_declaration_is_included() -> None:
    @dataclass(frozen=True, slots=True)
    class Config(TransformersConfig):
        attention: str = "eager"

    assert issubclass(Config, EngineConfig)
    assert Config().generation_settings()["attention"] == "eager"
