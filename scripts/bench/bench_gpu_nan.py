"""Price of vLLM's search for NaN in the logits, measured on one open engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench_gpu_session import Session, Values, ratios, spread, timed


def set_nan_check(worker: Any, enabled: bool) -> None:
    """Enable or disable, in an engine's core, the search for NaN in the logits (vLLM's second model runner only)."""
    sampler = worker.model_runner.sampler
    if not hasattr(sampler, "compute_nans"):
        raise RuntimeError(f"{type(worker.model_runner)} has no switch for the search for NaN")
    sampler.compute_nans = enabled


def nan_check(session: Session) -> Values:
    """Compare bare generation with and without vLLM's search for NaN in the logits, on one engine."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts)
    ready = list(inputs.requests(session.factors(min(8, max(options.points))), options.tokens))

    def bare(enabled: bool) -> Values:
        session.llm.collective_rpc(set_nan_check, args=(enabled,))
        return {"seconds": timed(session.engine, list(ready))[0]}

    bare(True)
    kinds = {"with": partial(bare, True), "without": partial(bare, False)}
    seconds = {
        name: [run["seconds"] for run in runs]
        for name, runs in session.report.interleave(kinds, 2 * options.repeats).items()
    }
    session.llm.collective_rpc(set_nan_check, args=(True,))
    return {
        "requests": len(ready),
        "seconds with": spread(seconds["with"]),
        "with / without": ratios(seconds["with"], seconds["without"]),
    }
