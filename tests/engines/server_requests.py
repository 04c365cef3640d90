"""Requests and sweeps for tests of the server engine against a real vLLM server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import MAX_MODEL_LEN
from services import VLLM_KEY
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines import ServerConfig
from sweep.engines.base import Engine, Failure, Generation, Request, Sampling
from sweep.engines.server.in_flight import InFlight
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.points.point import Point

GREEDY = Sampling(max_tokens=8, ignore_eos=True)
PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 17, 40, 8, 25, 11)]
WINDOW = 16
Configure = Callable[..., SweepConfig]
Answers = dict[object, Generation | Failure]
Pause = tuple[int, float | None]

SAMPLINGS = {
    "greedy": GREEDY,
    "end of text": Sampling(max_tokens=60),
    "log-probabilities": replace(GREEDY, logprobs=5),
    "samples": Sampling(max_tokens=8, temperature=1.0, top_p=0.9, top_k=50, seed=2**62 - 1, n=3, logprobs=2),
    "stop strings": Sampling(max_tokens=60, ignore_eos=True, stop=("e", "\x16", "L")),
    "to the end of the context": Sampling(max_tokens=1000, ignore_eos=True),
}
BAD = {
    "nan": "its embeddings are not finite in torch.float32",
    "inf": "its embeddings are not finite in torch.float32",
    "width": "its embeddings are (17, 1) torch.float32, expected (17, 64) torch.float32",
    "dtype": "its embeddings are (17, 64) torch.float64, expected (17, 64) torch.float32",
    "ids": "the server rejected it: HTTP 400: Token id 1000000 is out of vocabulary",
    "penalty": "the server would apply its repetition penalty without the tokens of the prompt",
    "long": f"its 256 tokens leave no room for an answer; engine.max_model_len is {MAX_MODEL_LEN}",
}


@contextmanager
def engines_at(checkpoint: Checkpoint, folder: Path) -> Iterator[Callable[..., Engine]]:
    """Yield a function that opens the server engine for an address; close the engines at the end."""
    opened: list[Engine] = []

    def open_at(url: str, patience: float = 20.0, model: Checkpoint = checkpoint, **changes: object) -> Engine:
        config = replace(ServerConfig(url=url, patience=patience, max_in_flight=WINDOW), **changes)  # type: ignore[arg-type]
        opened.append(config.open(model.files, MAX_MODEL_LEN, folder))
        return opened[-1]

    yield open_at
    for engine in opened:
        engine.close()


def runs_of(config: SweepConfig) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    return {run.info.run_name: run for run in client.search_runs(["1"])}


def requests(table: EmbeddingTable, sampling: Sampling = GREEDY, factor: float = 2.0) -> list[Request]:
    return [Request(i, ids, table.rows(ids) * factor, sampling) for i, ids in enumerate(PROMPTS)]


def answers(engine: Engine, requests: Iterable[Request]) -> Answers:
    return {answer.key: answer for answer in engine.generate(requests)}


def sweep(
    configure: Configure, folder: Path, factors: Iterable[float], engine: dict[str, object], **changes: object
) -> tuple[SweepRunner, pd.DataFrame]:
    """Run a sweep with an engine; return the runner and the table of all generations and scores."""
    changes |= {"engine": engine, "sweep": {"dir": str(folder / str(engine["name"]))}}
    points = [
        Point(configure(transform={"name": "scale", "factor": factor}, **changes), (("transform.factor", factor),))
        for factor in factors
    ]
    with SweepRunner(configure(**changes), "compared", "sweep …", Terminal()) as runner:
        runner.run(points)
    table = pd.read_parquet(runner.folder / "report" / "generations.parquet")
    return runner, table.sort_values(["point", "prompt_id"], ignore_index=True)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def error_of(connect: Callable[..., Engine], *arguments: object, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        connect(*arguments, **changes)
    message = str(caught.value)
    assert len(message) < 400 and VLLM_KEY not in message
    return message


def narrowed(folder: Path) -> Path:
    """Write a model with a hidden size of 32."""
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=272, n_embd=32, n_layer=1, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def bad_request(kind: str, request: Request, table: EmbeddingTable) -> Request:
    """Return the request with the fault that a key of `BAD` names."""
    rows = table.rows(request.token_ids)
    return {
        "nan": replace(request, embeds=rows.clone().index_fill_(0, torch.tensor([2]), torch.nan)),
        "inf": replace(request, embeds=rows * torch.inf),
        "width": replace(request, embeds=rows[:, :1]),
        "dtype": replace(request, embeds=rows.double()),
        "ids": replace(request, embeds=None, token_ids=(10**6,)),
        "penalty": replace(request, sampling=replace(GREEDY, repetition_penalty=1.2)),
        "long": replace(request, token_ids=(7,) * 256, embeds=table.rows((7,) * 256)),
    }[kind]


def recorded_pauses(monkeypatch: pytest.MonkeyPatch) -> list[Pause]:
    """Shorten the pauses between attempts; return the arguments of each: the attempt and the server's `Retry-After`."""
    kept: list[Pause] = []

    def pause(_: InFlight, attempt: int, wait: float | None) -> float:
        kept.append((attempt, wait))
        return 0.05

    monkeypatch.setattr(InFlight, "_pause", pause)
    return kept
