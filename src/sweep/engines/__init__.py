"""Engines: they generate completions for requests. An engine knows requests and tensors, not points.

`ENGINES` maps engine names to configuration classes. Importing it does not import any engine's library. Plugins add
engines with `register_engine`.
"""

from sweep.engines.base import EngineConfig
from sweep.engines.registry import ENGINES, register_engine
from sweep.engines.server.config import ServerConfig
from sweep.engines.transformers.config import TransformersConfig
from sweep.engines.vllm.config import VLLMConfig

__all__ = ["ENGINES", "EngineConfig", "ServerConfig", "TransformersConfig", "VLLMConfig", "register_engine"]

for _config in (VLLMConfig, TransformersConfig, ServerConfig):
    register_engine(_config)
