"""Inversion of a pipeline by an attacker who knows its rotations, and the rows that a pipeline may have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweep.core.seeds import derive_seed
from sweep.errors import TransformError
from sweep.inputs.span import Span
from sweep.transforms.context import Context, Corpus
from sweep.transforms.pipeline import Pipeline, Stage
from sweep.transforms.rows import Rows, require_rows

if TYPE_CHECKING:
    from torch import Tensor

CONTENT = Span(part="content")


def span_rows(pipeline: Pipeline, rows: Rows, prompt_id: str, corpus: Corpus) -> list[int]:
    """Return the indices of the transformed rows that lie in the span of any transform, ascending.

    For a pipeline without a transform, these are the rows of the messages' contents, or all rows if the contents cannot
    be located.

    Args:
        pipeline: the transforms.
        rows: the rows after the transforms.
        prompt_id: the prompt's id.
        corpus: the sweep's prompts.
    """
    if pipeline.is_identity:
        return _rows_in(CONTENT, rows, prompt_id, corpus) or list(range(len(rows.tensor)))
    stages = [stage for stage in pipeline.stages if stage.transform.name != "identity"]
    return sorted({row for stage in stages for row in _rows_in(stage.span, rows, prompt_id, corpus)})


def undo_rotations(
    pipeline: Pipeline, sent: Tensor, selected: Sequence[int], rows: Rows, prompt_id: str, corpus: Corpus, seed: int
) -> Tensor | None:
    """Return sent rows with all rotations of a pipeline undone, the last one first.

    All other transforms stay. A pipeline without a transform has nothing to undo.

    Args:
        pipeline: the transforms.
        sent: the rows that the attacker has: (n, hidden_size), float32.
        selected: their indices among all rows.
        rows: all rows after the transforms.
        prompt_id: the prompt's id.
        corpus: the sweep's prompts.
        seed: the point's seed.

    Returns:
        (n, hidden_size), float32; None if the pipeline has transforms, but no rotation.
    """
    undone, is_rotated = sent, pipeline.is_identity
    for place, stage in reversed(list(enumerate(pipeline.stages))):
        inside = set(_rows_in(stage.span, rows, prompt_id, corpus))
        numbers = [number for number, row in enumerate(selected) if row in inside]
        seeds = derive_seed(seed, prompt_id, place), derive_seed(seed, place)
        back = _undo(stage, undone[numbers], Context(*seeds, corpus, prompt_id, stage.span, ()))
        if back is not None:
            undone, is_rotated = undone.clone(), True
            undone[numbers] = back
    return undone if is_rotated else None


def _undo(stage: Stage, rows: Tensor, context: Context) -> Tensor | None:
    if stage.control is not None:  # it replaces the change by a random one, which is not a rotation
        return None
    try:
        undone = stage.transform.undo_rotation(rows, context)
        if undone is not None:
            require_rows(undone, rows.shape)
    except Exception as error:  # a user's transform may raise any exception
        raise TransformError(f"{stage.transform.name}: undo_rotation: {error}") from error
    return undone


def _rows_in(span: Span, rows: Rows, prompt_id: str, corpus: Corpus) -> list[int]:
    try:
        if rows.origins is None:
            return corpus.numbers(span, prompt_id)
        return span.rows(corpus.layout(prompt_id), rows.origins, len(rows.tensor))
    except TransformError:  # no row is in it any more, or contents cannot be located
        return []
