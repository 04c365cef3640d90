"""Recovery measures: share of a prompt's tokens that an attacker reads from the rows that were sent.

Only rows in the span of a transform count, changed or not. A token is recovered if no other token of the embedding
table is nearer (L2) to the attacker's estimate of its row. Tokens are compared by position, so that nothing is measured
for a point whose transform changes the number of rows in any prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.core.seeds import derive_seed
from sweep.core.values import Scores
from sweep.scoring.perturbation import is_own_token_nearest
from sweep.scoring.registry import MeasureSpec, Shown
from sweep.scoring.ridge import cross_fitted
from sweep.util.compact import compact

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sweep.transforms import Table

FOLDS = 5  # parts of the prompts; the linear attack on each is fitted on the others


@compact
@dataclass(frozen=True, slots=True)
class Exposed:
    """Sampled rows of one prompt as an attacker has them. Sent between processes.

    Attributes:
        rows: sent rows, evenly spaced over the transforms' spans: (k, hidden_size), float32.
        token_ids: the prompt's token at each row's position, k in all.
        unrotated: `rows` with known rotations undone; None if there is no rotation.
        by_position: whether the prompt has as many rows as tokens.
    """

    rows: NDArray[np.float32]
    token_ids: list[int]
    unrotated: NDArray[np.float32] | None
    by_position: bool


def evenly_spaced(rows: Sequence[int], count: int) -> list[int]:
    """Return up to `count` of the rows."""
    step = max(-(-len(rows) // count), 1)
    return list(rows[step // 2 :: step])


def recovery(
    prompts: Sequence[Exposed], table: Table, attacks: Sequence[str], *, controls: bool = False, on_gpu: bool = False
) -> list[Scores]:
    """Return for each prompt the share of its sampled tokens that each attack recovers.

    - `nearest`: the nearest row of the embedding table (L2).
    - `rotation`: the same, after the rotations of the transforms have been undone with their parameters and seeds.
    - `linear`: the same, after a linear map (`sweep.scoring.ridge`) that is fitted on pairs of sent and untransformed
      rows of other prompts: four fifths of the prompts for each fifth.

    Args:
        prompts: the sampled rows of each prompt.
        table: the model's embedding table.
        attacks: names from `sweep.scoring.attacks`.
        controls: whether to attack random rows too: normal, with the table's mean row and standard deviation. For an
            untransformed point, whose own values are the positive control.
        on_gpu: see `EmbeddingTable.nearest`.
    """
    import torch

    if not all(prompt.by_position for prompt in prompts):
        return [{} for _ in prompts]
    rows = torch.from_numpy(np.concatenate([prompt.rows for prompt in prompts]))
    ids = torch.tensor([token for prompt in prompts for token in prompt.token_ids], dtype=torch.long)
    owners = torch.repeat_interleave(torch.tensor([len(prompt.token_ids) for prompt in prompts]))
    estimates: dict[str, Tensor] = {}
    if not len(rows):
        return [{} for _ in prompts]
    unrotated = [prompt.unrotated for prompt in prompts if prompt.unrotated is not None]
    if "nearest" in attacks:
        estimates["nearest"] = rows
    if "rotation" in attacks and len(unrotated) == len(prompts):
        estimates["rotation"] = torch.from_numpy(np.concatenate(unrotated))
    if "linear" in attacks and (fitted := _linear(rows, ids, owners, table)) is not None:
        estimates["linear"] = fitted
    if controls:
        # A random row is as random after a rotation, so `rotation` needs no control of its own.
        generator = torch.Generator().manual_seed(derive_seed("recovery"))
        noise = table.mean + table.std * torch.randn(rows.shape, generator=generator)
        estimates |= {"nearest_random": noise} if "nearest" in attacks or "rotation" in attacks else {}
        if "linear" in estimates and (fitted := _linear(noise, ids, owners, table)) is not None:
            estimates["linear_random"] = fitted
    scores: list[Scores] = [{} for _ in prompts]
    for attack, estimate in estimates.items():
        hits = is_own_token_nearest(estimate, ids, table, on_gpu=on_gpu).float()
        for prompt_scores, share in zip(scores, _means(hits, owners, len(prompts)), strict=True):
            if share is not None:
                prompt_scores[f"perturbation/recovered_{attack}"] = share
    return scores


def _means(hits: Tensor, owners: Tensor, count: int) -> list[float | None]:
    parts = (hits[owners == number] for number in range(count))
    return [float(part.mean()) if len(part) else None for part in parts]


def _linear(rows: Tensor, ids: Tensor, owners: Tensor, table: Table) -> Tensor | None:
    """Return the estimates of a linear map fitted on other prompts; None if only one prompt has rows."""
    import torch

    fold_of = {owner: number % FOLDS for number, owner in enumerate(dict.fromkeys(owners.tolist()))}
    if len(fold_of) < 2:
        return None
    folds = torch.tensor([fold_of[owner] for owner in owners.tolist()])
    return cross_fitted(rows, table.rows(ids), folds)


def _recovered(name: str, about: str, **more: Any) -> MeasureSpec:
    return MeasureSpec(f"perturbation/recovered_{name}", about, "prompt", (0.0, 1.0), interval="share", **more)


MEASURES = (
    _recovered(
        "nearest",
        "share of tokens in the transforms' spans whose row is nearest (L2) to the sent row, of `scoring.nearest_rows`",
        shown=Shown(terminal=71, description=51),
        source="token embedding inversion, Qu et al. 2021, arXiv:2104.07504",
    ),
    _recovered(
        "rotation",
        "the same once rotations of the transforms are undone; left out without a rotation",
        shown=Shown(terminal=72, description=52),
    ),
    _recovered(
        "linear",
        "the same after a ridge regression to untransformed rows, fitted on other prompts",
        shown=Shown(terminal=73, description=53),
    ),
    _recovered("nearest_random", "negative control: the same for random rows; of controls only"),
    _recovered("linear_random", "negative control: the linear attack on random rows; of controls only"),
)
