"""Tasks of the worker pool: build requests, and score and archive a point."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError, TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.request_builder import build
from sweep.planning.results import Finished
from sweep.points.fingerprint import scorers_text
from sweep.storage.archive import Archive
from sweep.workers.base import Built, Scored, Unbuilt


def build_requests(
    corpus: PromptSet, config: SweepConfig, prompts: Sequence[int], measure_only: frozenset[int], max_rows: int
) -> list[Built | Unbuilt]:
    """Build and measure requests of one point; see `WorkerPool.build`.

    A prompt that a transform rejects fails alone.
    """
    results: list[Built | Unbuilt] = []
    for number in prompts:
        try:
            results.append(_build(corpus, config, number, number not in measure_only, max_rows))
        except TransformError as error:
            results.append(Unbuilt(str(error), "".join(traceback.format_exception(error))))
    return results


def _build(corpus: PromptSet, config: SweepConfig, number: int, with_embeds: bool, max_rows: int) -> Built:
    began = time.perf_counter()
    built = build(number, config, corpus.prompts[number], corpus, max_rows)
    seconds = time.perf_counter() - began
    request = built.request if with_embeds else replace(built.request, embeds=None)
    return Built(request, built.measure(), seconds, built.transform_seconds)


def score(corpus: PromptSet, finished: Finished, archive: Archive, *, on_gpu: bool = False) -> Scored:
    """Score a point and archive it; see `WorkerPool.score`. A scorer that fails makes the point fail."""
    # Imported late, so that the scoring process imports SciPy while the engine generates.
    from sweep.workers.score_point import score_point

    began = time.monotonic()
    try:
        planned = finished.point_fingerprint.scorers
        if planned is not None and scorers_text(finished.point.config.scoring) != planned:
            raise ConfigError("the module of a measure has changed since the plan; run the same command again")
        scored = score_point(finished, corpus, on_gpu=on_gpu)
    except Exception as error:  # a user's scorer failed, or this code has a bug: only this point fails
        scored = score_point(finished.failed(str(error), traceback.format_exc()), corpus)
    archived = archive.add(finished.point_fingerprint.result_key, scored.record, scored.rows)
    return Scored(archived, scored.values, time.monotonic() - began)
