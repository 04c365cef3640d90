"""The perturbation that a transform achieved, after the cast to the engine's dtype."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity


def perturbation(rows: Tensor, sent: Tensor) -> dict[str, float]:
    """Measure what was sent against the untransformed rows.

    Args:
        rows: [seq_len, hidden_size] in fp32, as the model's own embedding layer gives them.
        sent: the same shape, in the engine's dtype.

    Returns:
        `relative_l2`: ‖sent - rows‖ / ‖rows‖ (Frobenius); `cosine`: the mean of the rows' cosines; `changed`: the share
        of entries that differ after the cast.
    """
    difference = sent.float() - rows
    return {
        "perturbation/relative_l2": float(difference.norm() / rows.norm()),
        "perturbation/cosine": float(cosine_similarity(sent.float(), rows, dim=-1).mean()),
        "perturbation/changed": float((sent != rows.to(sent.dtype)).float().mean()),
    }
