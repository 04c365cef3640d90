"""Validation of requests before they reach an engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sweep.config.schema import SweepConfig
from sweep.engines.base import Request, Sampling
from sweep.engines.request_errors import request_error
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.request_builder import build


def request(value: float, finite: bool) -> Request:
    return Request(0, (1, 2), torch.full((2, 4), value), Sampling(max_tokens=1), finite=finite)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_are_rejected(value: float) -> None:
    error = request_error(request(value, finite=False), 4, torch.float32)
    assert error == "its embeddings are not finite in torch.float32"
    assert request_error(request(1.0, finite=False), 4, torch.float32) is None


def test_a_request_known_to_be_finite_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: pytest.fail("checked again"))
    assert request_error(request(1.0, finite=True), 4, torch.float32) is None


def test_built_requests_are_known_to_be_finite(corpus: PromptSet, configure: Callable[..., SweepConfig]) -> None:
    assert build(0, configure(), corpus.prompts[0], corpus).request.finite
