"""What helpers do."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

from sweep.config import SweepConfig
from sweep.disk.archive import Archive
from sweep.errors import TransformError
from sweep.helpers.base import Built, Scored, Unbuilt
from sweep.inputs.corpus import Corpus
from sweep.outcome import Finished
from sweep.request import build


def build_some(
    corpus: Corpus, config: SweepConfig, prompts: Sequence[int], unsent: frozenset[int], most: int
) -> list[Built | Unbuilt]:
    """Build and measure requests of one point; see `Helpers.build`.  A prompt that a transform refuses fails alone."""
    built: list[Built | Unbuilt] = []
    for number in prompts:
        try:
            built.append(_build(corpus, config, number, number not in unsent, most))
        except TransformError as error:
            built.append(Unbuilt(str(error), "".join(traceback.format_exception(error))))
    return built


def _build(corpus: Corpus, config: SweepConfig, number: int, sent: bool, most: int) -> Built:
    began = time.perf_counter()
    own = build(number, config, corpus.prompts[number], corpus, most)
    seconds = time.perf_counter() - began
    request = own.request if sent else replace(own.request, embeds=None)
    return Built(request, own.measure(), seconds, own.transform_seconds)


def score(corpus: Corpus, finished: Finished, archive: Archive) -> Scored:
    """Score a point and archive it; see `Helpers.score`.  What a scorer fails of is the point's failure."""
    # Here and not above, so that SciPy is imported by who scores, while the engine generates.
    from sweep.conclusion import conclude

    began = time.monotonic()
    try:
        outcome = conclude(finished, corpus)
    except Exception as error:  # a scorer of the user's, or a mistake of ours: it is this point's alone
        outcome = conclude(finished.failed(str(error), traceback.format_exc()), corpus)
    archived = archive.add(finished.identity.result_key, outcome.record, outcome.rows)
    return Scored(archived, outcome.values, time.monotonic() - began)
