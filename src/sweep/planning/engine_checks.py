"""Checks that an engine can run points: their sampling parameters and LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.config.schema import SweepConfig
from sweep.engines import EngineConfig
from sweep.engines.sampling_args import check_tokens
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import ModelConfig
from sweep.inputs.input_store import InputStore
from sweep.inputs.lora import LoraAdapter
from sweep.planning.request_builder import sampling_of


def check_sampling(config: SweepConfig, engine: EngineConfig, checkpoint: Checkpoint) -> None:
    """Check the sampling parameters of a point.

    Raises:
        ConfigError: the engine does not have a parameter, or the model does not have a token.
    """
    engine.check(sampling_of(config, ""))
    if args := {name: value for name, value in config.sampling.args.items() if value is not None}:
        engine.check_args(args)
        check_tokens(args, checkpoint.vocab_size)


def adapters_of(engine: EngineConfig, models: Sequence[ModelConfig], inputs: InputStore) -> tuple[LoraAdapter, ...]:
    """Return the distinct adapters of models.

    Raises:
        ConfigError: the engine has no adapters, or one cannot be found or used.
    """
    distinct = {model.content_digest: model for model in models}.values()
    adapters = tuple(adapter for model in distinct if (adapter := inputs.adapter(model)) is not None)
    if adapters and not engine.has_adapters:
        raise ConfigError(
            f"model.lora is not available with engine={engine.name}. Use engine=vllm, or merge the adapter into the "
            "model with PEFT and set model.id to the result."
        )
    return adapters
