"""Rows of a prompt as they pass through transforms, with the tokens that each row originates from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sweep.errors import TransformError
from sweep.inputs.span import Origins
from sweep.transforms.base import Rearranged, Rearrangement
from sweep.transforms.context import Context

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A prompt's rows.

    Attributes:
        tensor: (n, hidden_size), float32.
        origins: for each row, the indices of the prompt's tokens it originates from; None while the rows are the
            prompt's own, in order.
        token_ids: for each row, the token it stands for, None for external rows. The attribute is None as `origins` is.
    """

    tensor: Tensor
    origins: Origins | None = None
    token_ids: Sequence[int | None] | None = None

    def resolved_origins(self) -> Origins:
        """Return `origins`, with None replaced by one token per row."""
        return [(i,) for i in range(len(self.tensor))] if self.origins is None else self.origins


def rearrange(
    transform: Rearrangement, rows: Rows, selected: Sequence[int], context: Context
) -> tuple[Rows, Tensor, Tensor]:
    """Apply a transform to each contiguous range of the selected rows and reassemble the prompt.

    Args:
        transform: the transform.
        rows: all rows of the prompt.
        selected: indices of the selected rows, ascending.
        context: the context of the whole span.

    Returns:
        All rows; the selected rows before; and the selected rows after the transform, range by range.

    Raises:
        TransformError: the transform failed, or no row is left.
    """
    import torch

    tensor, old_origins = rows.tensor, rows.resolved_origins()
    old_ids: Sequence[int | None] = rows.token_ids or context.corpus.layout(context.prompt_id).token_ids
    pieces: list[Tensor] = []
    before: list[Tensor] = []
    after: list[Tensor] = []
    origins: list[tuple[int, ...]] = []
    token_ids: list[int | None] = []
    position = 0
    ranges = [(selected[0], selected[-1] + 1)] if transform.whole else contiguous_ranges(selected)
    for number, (start, stop) in enumerate(ranges):
        range_context = replace(context, origins=old_origins[start:stop])
        result = transform.rearrange(tensor[start:stop], range_context.fork(number) if number else range_context)
        require_rows(result.rows, (len(result.parents), tensor.shape[1]))
        pieces += [tensor[position:start], result.rows]
        before.append(tensor[start:stop])
        after.append(result.rows)
        origins += [*old_origins[position:start], *_origins(result, old_origins[start:stop])]
        token_ids += [*old_ids[position:start], *_token_ids(result, old_ids[start:stop])]
        position = stop
    combined = torch.cat([*pieces, tensor[position:]])
    if not len(combined):
        raise TransformError("no row of the prompt is left")
    return (
        Rows(combined, [*origins, *old_origins[position:]], [*token_ids, *old_ids[position:]]),
        torch.cat(before),
        torch.cat(after),
    )


def contiguous_ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the contiguous ranges [start, stop) in a list of ascending integers."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    edges = [0, *breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(edges)]


def require_rows(rows: Any, shape: Sequence[int]) -> None:
    """Raise a `TransformError` unless `rows` is a float32 tensor of the given shape."""
    import torch

    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.float32:
        got = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TransformError(f"must return rows in torch.float32; got {got}")
    if list(rows.shape) != list(shape):
        raise TransformError(f"must return rows of shape {list(shape)}; got {list(rows.shape)}")


def _origins(result: Rearranged, old_origins: Origins) -> list[tuple[int, ...]]:
    # Many rows can share their parents, for example when each has the whole range as its parents.
    joined = {
        parents: tuple(sorted({token for p in parents for token in old_origins[p]})) for parents in set(result.parents)
    }
    return [joined[parents] for parents in result.parents]


def _token_ids(result: Rearranged, ids: Sequence[int | None]) -> Sequence[int | None]:
    inherited = [ids[parents[0]] if parents else None for parents in result.parents]
    token_ids = result.token_ids or inherited
    return [old if token is None else token for token, old in zip(token_ids, inherited, strict=True)]
