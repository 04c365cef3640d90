"""Engines: what answers requests.  An engine knows requests and tensors, not points.

`ENGINES` has the configuration class of each by its name; importing it imports no engine's library.
"""

from sweep.engines.base import EngineConfig
from sweep.engines.server import ServerConfig
from sweep.engines.transformers import TransformersConfig
from sweep.engines.vllm import VLLMConfig

__all__ = ["ENGINES", "EngineConfig", "ServerConfig", "TransformersConfig", "VLLMConfig"]

ENGINES: dict[str, type[EngineConfig]] = {
    config.name: config for config in (VLLMConfig, ServerConfig, TransformersConfig)
}
