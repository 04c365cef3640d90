"""Direction vectors in embedding space, read from a file or computed from contrasting texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.inputs.vector_files import load_vectors, vector_file
from sweep.transforms.context import Corpus
from sweep.util.validators import require, require_choice

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("mean_difference", "pca")
KEY = "transform.vector"
ADDED: dict[str, Any] = {"vector.row": None}  # see `Transform.added`
TINY = 1e-6  # relative size below which a value counts as zero, for fp32 rounding errors


@dataclass(frozen=True, slots=True)
class VectorSource:
    """Source of one vector, or of several that span a subspace: a file, or contrasting texts.

    Each text is embedded as the mean of its tokens' rows. `mean_difference` (Rimsky et al. 2023, arXiv:2312.06681) is
    the mean of the positive texts minus that of the negative ones. `pca` (Zou et al. 2023, arXiv:2310.01405) pairs the
    texts and computes the principal components of the pairs' differences. These are taken around zero, because the mean
    is what the pairs have in common. Each component points to the positive texts. Its length is the root mean square of
    the differences along it.

    Attributes:
        path: a file with one or more vectors (.safetensors, .npy, .npz, .pt, .gguf or .svec), or the folder of a sparse
            autoencoder (SAE). `sweep vectors FILE` lists what it holds.
        key: the tensor's name in the file, nested names joined by dots; null if it holds one tensor, and with `row` for
            the decoder of an SAE.
        row: index of one row from 0, such as a feature of an SAE; or the number of a layer in a file with one tensor
            per layer. null for all rows.
        positive: texts with the property that the vector stands for.
        negative: texts without it.
        method: `mean_difference`, one vector; or `pca`, which needs as many negative texts as positive ones.
        rank: number of vectors: the first ones of a file (null for all) or of the principal components (null for 1).
    """

    path: str | None = None
    key: str | None = None
    positive: list[str] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)
    method: str = "mean_difference"
    rank: int | None = None
    row: int | None = None

    def validate(self) -> None:
        """Check that exactly one source is set. Not called in `__post_init__`, because a default instance has none.

        Raises:
            ConfigError: names what is missing or superfluous.
        """
        has_texts = bool(self.positive or self.negative)
        require(
            (self.path is None) == has_texts, KEY, "needs either a path, or positive and negative texts, not both", None
        )
        require(
            self.path is not None or self.key is None, f"{KEY}.key", "selects a tensor in a file and needs a path", None
        )
        require(
            self.path is not None or self.row is None, f"{KEY}.row", "selects a row of a file and needs a path", None
        )
        require(self.row is None or self.row >= 0, f"{KEY}.row", "must be 0 or more", self.row)
        require(
            self.row is None or self.rank in (None, 1),
            f"{KEY}.rank",
            "must be 1 or null, because row is set",
            self.rank,
        )
        require_choice(f"{KEY}.method", self.method, METHODS)
        require(self.rank is None or self.rank >= 1, f"{KEY}.rank", "must be at least 1", self.rank)
        if not has_texts:
            return
        counts = len(self.positive), len(self.negative)
        require(min(counts) > 0, KEY, "needs positive and negative texts", counts)
        if self.method == "pca":
            require(counts[0] == counts[1], KEY, "needs as many negative texts as positive ones for pca", counts)
            rule = f"of pca is at most the number of pairs, {counts[0]}"
            require((self.rank or 1) <= counts[0], f"{KEY}.rank", rule, self.rank)
        else:
            require(self.rank in (None, 1), f"{KEY}.rank", "above 1 needs method=pca or a file", self.rank)

    def files(self) -> tuple[Path, ...]:
        """Return the file, if there is one."""
        return () if self.path is None else (vector_file(self.path, f"{KEY}.path"),)

    def vectors(self, corpus: Corpus) -> Tensor:
        """Return the vectors at their own lengths: (rank, hidden_size), float32.

        Raises:
            ConfigError: the file or the texts do not give such vectors, or one of them is zero.
        """
        rows = self._all(corpus)
        if self.rank is not None and self.rank > len(rows):
            raise ConfigError(f"{KEY}.rank: {self.path} holds {len(rows)} vectors; got {self.rank}.")
        rows = rows[: self.rank]
        if not bool(rows.any(1).all()):
            raise ConfigError(f"{KEY}: vector {int(rows.any(1).int().argmin())} is zero and has no direction.")
        return rows

    def vector(self, corpus: Corpus) -> Tensor:
        """Return the only vector: (hidden_size,), float32.

        Raises:
            ConfigError: see `vectors`; or there are several.
        """
        rows = self.vectors(corpus)
        if len(rows) > 1:
            choice = f"row=0 (to {len(rows) - 1})" if self.path is not None else "rank=1"
            raise ConfigError(f"{KEY}: expected one vector, found {len(rows)}. Set {KEY}.{choice} to use one.")
        return rows[0]

    def basis(self, corpus: Corpus) -> Tensor:
        """Return an orthonormal basis of the space that the vectors span: (rank, hidden_size), float32.

        Raises:
            ConfigError: see `vectors`; or the vectors are linearly dependent.
        """
        return _orthonormal(self._all(corpus), len(self.vectors(corpus)))

    def _all(self, corpus: Corpus) -> Tensor:
        """Return all vectors of the file or the texts; cached, so that equal calls return the same object."""
        if self.path is not None:
            width = corpus.table.hidden_size
            return load_vectors(self.path, self.key, self.row, width=width, config_key=f"{KEY}.path")
        texts = tuple(self.positive), tuple(self.negative)
        return _contrast(*texts, self.method, self.rank or 1, corpus)


@lru_cache(maxsize=16)
def _contrast(positive: Sequence[str], negative: Sequence[str], method: str, rank: int, corpus: Corpus) -> Tensor:
    import torch

    positive_rows = torch.stack([_mean_row(text, corpus) for text in positive])
    negative_rows = torch.stack([_mean_row(text, corpus) for text in negative])
    if method == "mean_difference":
        difference = positive_rows.mean(0) - negative_rows.mean(0)
        if float(difference.norm()) <= TINY * float(positive_rows.norm(dim=1).mean()):
            raise ConfigError(f"{KEY}: the positive and the negative texts have the same mean.")
        return difference[None].float()
    differences = positive_rows - negative_rows
    _, lengths, components = torch.linalg.svd(differences, full_matrices=False)
    if float(lengths[rank - 1]) <= TINY * float(positive_rows.norm()):
        raise ConfigError(f"{KEY}: the pairs of texts differ in fewer than {rank} dimensions.")
    components = components[:rank] * lengths[:rank, None] / len(differences) ** 0.5
    signs = torch.where(components @ differences.mean(0) < 0, -1.0, 1.0)
    vectors: Tensor = (signs[:, None] * components).float()
    return vectors


def _mean_row(text: str, corpus: Corpus) -> Tensor:
    ids = corpus.tokenize(text)
    if not ids:
        raise ConfigError(f"{KEY}: the text {text!r} has no tokens.")
    return corpus.table.rows(ids).double().mean(0)


@lru_cache(maxsize=16)
def _orthonormal(vectors: Tensor, rank: int) -> Tensor:
    import torch

    units = torch.nn.functional.normalize(vectors[:rank].double(), dim=1)
    basis, triangle = torch.linalg.qr(units.T)
    # The diagonal holds the distance of each vector from the space of the preceding ones.
    if rank > units.shape[1] or float(triangle.diagonal().abs().min()) < TINY:
        raise ConfigError(f"{KEY}: the {rank} vectors are not linearly independent: they span fewer dimensions.")
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    rows: Tensor = (basis * signs).T.float().contiguous()
    return rows
