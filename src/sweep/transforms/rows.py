"""A prompt's rows on their way through transforms, and which of its tokens each of them stems from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sweep.errors import TransformError
from sweep.transforms.base import Rearranged, Rearrangement
from sweep.transforms.context import Context
from sweep.transforms.span import Origins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A prompt's rows.

    Attributes:
        tensor: [n, hidden_size] in fp32.
        origins: for each row the prompt's tokens, by number, that it stems from; None while the rows are the prompt's
            own, in their order.
        token_ids: for each row the token that it stands for, None for one from outside; None as `origins` is.
    """

    tensor: Tensor
    origins: Origins | None = None
    token_ids: Sequence[int | None] | None = None

    def stems(self) -> Origins:
        """Return `origins`, spelled out."""
        return [(i,) for i in range(len(self.tensor))] if self.origins is None else self.origins


def rearrange(
    transform: Rearrangement, rows: Rows, chosen: Sequence[int], context: Context
) -> tuple[Rows, Tensor, Tensor]:
    """Hand each stretch of the chosen rows to a transform and put together what becomes of them.

    Returns:
        All rows; what the transform was given of them, and what it made of that, stretch after stretch.

    Raises:
        TransformError: as the transform does, or no row is left.
    """
    import torch

    tensor, stems = rows.tensor, rows.stems()
    ids: Sequence[int | None] = rows.token_ids or context.corpus.layout(context.prompt_id).token_ids
    pieces: list[Tensor] = []
    given: list[Tensor] = []
    made: list[Tensor] = []
    origins: list[tuple[int, ...]] = []
    token_ids: list[int | None] = []
    at = 0
    parts = [(chosen[0], chosen[-1] + 1)] if transform.whole else stretches(chosen)
    for number, (start, stop) in enumerate(parts):
        within = replace(context, origins=stems[start:stop])
        done = transform.rearrange(tensor[start:stop], within.fork(number) if number else within)
        require_rows(done.rows, (len(done.parents), tensor.shape[1]))
        pieces += [tensor[at:start], done.rows]
        given.append(tensor[start:stop])
        made.append(done.rows)
        origins += [*stems[at:start], *_origins(done, stems[start:stop])]
        token_ids += [*ids[at:start], *_token_ids(done, ids[start:stop])]
        at = stop
    result = torch.cat([*pieces, tensor[at:]])
    if not len(result):
        raise TransformError("no row of the prompt is left")
    return Rows(result, [*origins, *stems[at:]], [*token_ids, *ids[at:]]), torch.cat(given), torch.cat(made)


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the contiguous stretches [start, stop) of ascending numbers."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    edges = [0, *breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(edges)]


def require_rows(rows: Any, shape: Sequence[int]) -> None:
    """Raise a `TransformError` unless `rows` is an fp32 tensor of a shape."""
    import torch

    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.float32:
        got = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TransformError(f"must return rows in torch.float32, not {got}")
    if list(rows.shape) != list(shape):
        raise TransformError(f"made rows of shape {list(rows.shape)} of {list(shape)}")


def _origins(done: Rearranged, stems: Origins) -> list[tuple[int, ...]]:
    # Rows that stem from the same ones are common: a whole stretch may have become a few of them.
    joined = {parents: tuple(sorted({token for p in parents for token in stems[p]})) for parents in set(done.parents)}
    return [joined[parents] for parents in done.parents]


def _token_ids(done: Rearranged, ids: Sequence[int | None]) -> Sequence[int | None]:
    inherited = [ids[parents[0]] if parents else None for parents in done.parents]
    own = done.token_ids or inherited
    return [before if token is None else token for token, before in zip(own, inherited, strict=True)]
