"""Similarity of meaning: cosine of the sentence embeddings of an answer and of the control's answer.

Computed if `scoring.measures` names it. `scoring.similarity_model` is the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweep.scoring.registry import MeasureSpec
from sweep.scoring.sentence_encoder import check_encoder, load_encoder

if TYPE_CHECKING:
    from sweep.scoring.batch import Item, MeasureSettings

NAME = "divergence/sentence_similarity"


def sentence_similarity(items: Sequence[Item], settings: MeasureSettings) -> list[float]:
    """Return the cosine of the sentence embeddings of the answer and the control's answer.

    Equal texts have exactly 1, without a look at the encoder. Without a control's answer there is no score.
    """
    pairs = [None if item.control is None else (item.answer.text, item.control.text) for item in items]
    texts = list(dict.fromkeys(text for pair in pairs if pair is not None and pair[0] != pair[1] for text in pair))
    places = {text: place for place, text in enumerate(texts)}
    vectors = load_encoder(settings.scoring.similarity_model).encode(texts).double() if texts else None

    def similarity(answer: str, control: str) -> float:
        if answer == control or vectors is None:
            return 1.0
        return min(max(float(vectors[places[answer]] @ vectors[places[control]]), -1.0), 1.0)

    return [math.nan if pair is None else similarity(*pair) for pair in pairs]


def _check(scoring: Any, contact: bool) -> None:
    check_encoder(scoring.similarity_model, download=contact)


MEASURES = (
    MeasureSpec(
        NAME,
        per="batch",
        range=(-1.0, 1.0),
        direction="higher",
        implied=True,
        compute=sentence_similarity,
        configured=True,
        check=_check,
        source="Reimers & Gurevych 2019, arXiv:1908.10084",
    ),
)
