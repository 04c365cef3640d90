"""Server engine with vLLM servers whose options do not fit the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from server_requests import GREEDY, PROMPTS, engines_at, error_of, recorded_pauses, requests

from servers import vllm_server
from services import VLLM_KEY
from sweep.engines.base import Engine, Failure, Request
from sweep.engines.server.config import KEY_VARIABLE
from sweep.errors import EngineDied
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from tiny_models import make_model

pytestmark = pytest.mark.slow


@pytest.fixture
def connect(checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Return a function that opens the server engine for an address; the engines are closed afterwards."""
    with engines_at(checkpoint, tmp_path) as open_at:
        yield open_at


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_pauses(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, VLLM_KEY)
        yield


def test_a_server_that_does_not_accept_embeddings(
    tiny: Path, vllm_cache: Path, tmp_path: Path, connect: Callable[..., Engine]
) -> None:
    with vllm_server(tiny, tmp_path, vllm_cache, "--served-model-name", "one", "two") as other:
        message = "does not accept embeddings. Start it with --enable-prompt-embeds"
        assert message in error_of(connect, other.url)
        assert message in error_of(connect, other.url, served_model="two")


def test_other_log_probabilities_and_nan_logits_fail_requests_and_a_killed_server_ends_the_engine(
    connect: Callable[..., Engine], vllm_cache: Path, tmp_path: Path
) -> None:
    """A mean over rows of this size overflows in GPT-2's layer norm, although every entry is finite."""
    gpt2 = find(ModelConfig(id=str(make_model(tmp_path / "gpt2", "gpt2"))))
    table = open_table(gpt2)
    options = ("--enable-prompt-embeds", "--logprobs-mode", "processed_logprobs")
    with vllm_server(gpt2.folder, tmp_path, vllm_cache, *options) as other:
        engine = connect(other.url, patience=1.0, model=gpt2)
        plain, *_ = requests(table)
        for request in (replace(plain, sampling=replace(GREEDY, logprobs=3)), replace(plain, scored=2)):
            [failure] = engine.generate([request])
            assert isinstance(failure, Failure) and "--logprobs-mode raw_logprobs" in failure.reason, failure
        large, *_ = requests(table, factor=2e38)
        [failure] = engine.generate([large])
        assert isinstance(failure, Failure) and "non-finite logits" in failure.reason, failure
        long = replace(GREEDY, max_tokens=200)
        stream = engine.generate(Request(i, PROMPTS[0], None, long if i else GREEDY) for i in range(9))
        assert next(stream).key == 0
        began = time.monotonic()
        other.kill()
        with pytest.raises(EngineDied, match=f"The server at {other.url} is down"):
            list(stream)
        assert 1 <= time.monotonic() - began < 15
