"""Low temperatures: rejected for vLLM, which would raise them, and used unchanged by the Transformers engine."""

from __future__ import annotations

import math

import pytest
import torch

from sweep.engines import ServerConfig, TransformersConfig, VLLMConfig
from sweep.engines.base import EngineConfig, Sampling
from sweep.engines.transformers.decoding import apply_temperature
from sweep.errors import ConfigError

BELOW = math.nextafter(0.01, 0)


@pytest.mark.parametrize("config", [VLLMConfig(), ServerConfig()])
@pytest.mark.parametrize("temperature", [5e-324, 1e-6, 0.001, BELOW])
def test_temperatures_that_vllm_would_raise_are_rejected(config: EngineConfig, temperature: float) -> None:
    message = (
        rf"^sampling\.temperature must be 0 \(greedy\) or at least 0\.01 with engine={config.name}, because vLLM raises "
        rf"lower temperatures to 0\.01\. engine=transformers accepts them; got {temperature}\.$"
    )
    with pytest.raises(ConfigError, match=message):
        config.check(Sampling(1, temperature=temperature))


@pytest.mark.parametrize("config", [VLLMConfig(), ServerConfig()])
@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.7])
def test_all_other_temperatures_are_accepted(config: EngineConfig, temperature: float) -> None:
    config.check(Sampling(1, temperature=temperature))


@pytest.mark.parametrize("temperature", [5e-324, 1e-6, 0.001, BELOW, 0.01])
def test_transformers_accepts_all(temperature: float) -> None:
    TransformersConfig().check(Sampling(1, temperature=temperature))


@pytest.mark.parametrize(
    ("logits", "temperature", "expected"),
    [
        ([1.0, 1.0 - 2**-10, -9.0], 2**-10, [0.7310586, 0.2689414, 0.0]),
        ([4096.0, 4096.0 - 2**-10, -math.inf], 2**-10, [0.7310586, 0.2689414, 0.0]),
        ([1e30, 0.0, 0.0], 1e-9, [1.0, 0.0, 0.0]),
        ([3.0, 3.0, 2.0], 5e-324, [0.5, 0.5, 0.0]),
        ([2.0, 1.0, 0.0], 1.0, [0.6652410, 0.2447285, 0.0900306]),
    ],
)
def test_distributions_at_low_temperatures(logits: list[float], temperature: float, expected: list[float]) -> None:
    assert apply_temperature(torch.tensor(logits), temperature).softmax(0).tolist() == pytest.approx(expected, abs=1e-6)
