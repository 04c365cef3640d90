"""Stages of `bench_gpu.py`, each run in a separate process."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench_gpu_figures import MEASURES
from bench_gpu_model import SHAPES, make_model, write_prompts
from bench_gpu_session import (
    Inputs,
    Report,
    Session,
    Values,
    jobs_of,
    model_folder,
    plain_config,
    spread,
    timed,
)

from sweep.engines.base import Request, Sampling
from sweep.inputs.checkpoint import find


def stage_model(options: argparse.Namespace, report: Report) -> None:
    """Write the checkpoint."""
    began = time.time()
    report.note("parameters", make_model(SHAPES[options.shape], model_folder(options)))
    report.note("seconds", round(time.time() - began, 1))


def stage_start(options: argparse.Namespace, report: Report) -> None:
    """Measure the time from the start of the process to an open engine and to the first token."""
    [(_, config)] = jobs_of(plain_config(options, write_prompts(Path(options.work), 32, 1), 1), [1.0])
    report.note("our imports and configuration seconds", round(time.time() - options.began, 2))
    engine = replace(config.engine, enforce_eager=options.eager)  # type: ignore[call-arg]
    began = time.time()
    opened: Any = engine.open(find(config.model).files, options.max_model_len, Path(options.cache))
    report.note("open seconds, vLLM's import among them", round(time.time() - began, 2))
    timed(opened, [Request("first", tuple(range(3, 35)), None, Sampling(max_tokens=1))])
    report.note("engine", f"{opened.version}, {opened.llm.model_config.dtype}")
    report.note("process to first token seconds", round(time.time() - options.began, 2))
    report.note("GPU memory GiB", opened.memory_gib())
    began = time.time()
    opened.close()
    report.note("close seconds", round(time.time() - began, 2))


def stage_plain(options: argparse.Namespace, report: Report) -> None:
    """Measure unmodified vLLM on a separate engine: token ids, no prompt embeddings, no checks of the logits."""
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = os.environ["VLLM_RAISE_ON_LOGIT_NANS"] = "0"
    import torch
    import vllm

    inputs = Inputs(options, options.prompt_tokens, options.prompts * max(options.points))
    prompts = [{"prompt_token_ids": list(request.token_ids)} for request in inputs.by_ids(options.tokens)]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    on_cpu: Values = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": 2**29}
    began = time.time()
    llm = vllm.LLM(
        str(model_folder(options)),
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enforce_eager=options.eager or bool(on_cpu),
        enable_prefix_caching=False,
        **on_cpu,
    )
    report.note("start seconds", round(time.time() - began, 2))
    seconds: list[float] = []
    for _ in range(options.repeats + 1):
        began = time.time()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds.append(time.time() - began)
        report.note(f"seconds for {len(prompts)} requests, the first left out", spread(seconds[1:] or seconds))
    llm.llm_engine.engine_core.shutdown()


def stage_figures(options: argparse.Namespace, report: Report) -> None:
    """Open one engine and measure on it."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to send a function to the engine's core
    session = Session(options, report)
    names = ["parity"] if options.parity_only else options.only or list(MEASURES)
    for index, name in enumerate(names):
        measure, weight = MEASURES[name]
        report.run(name, partial(measure, session), weight / sum(MEASURES[other][1] for other in names[index:]))
    report.note("GPU memory GiB at the end", session.engine.memory_gib())
    session.close()


STAGES: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "model": stage_model,
    "start": stage_start,
    "plain": stage_plain,
    "figures": stage_figures,
}
