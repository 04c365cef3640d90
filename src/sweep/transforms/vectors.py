"""Directions in embedding space: read from a file, or made on the spot from contrasting texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.checks import require, require_choice
from sweep.errors import ConfigError
from sweep.inputs.tensors import load_tensor, tensor_file
from sweep.transforms.context import Corpus

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("mean_difference", "pca")
KEY = "transform.vector"
TINY = 1e-6  # what counts as zero beside 1: the rounding errors of fp32 files and rows


@dataclass(frozen=True, slots=True)
class VectorSource:
    """Where one vector comes from, or several that span a subspace: a file, or contrasting texts.

    Each text is embedded as the mean of its tokens' rows.  `mean_difference` (Rimsky et al. 2023, arXiv:2312.06681) is
    the mean of the positive texts less that of the negative ones.  `pca` (Zou et al. 2023, arXiv:2310.01405) pairs the
    texts and takes the principal components of the pairs' differences around zero, not around their mean, which is
    what the pairs have in common; each points to the positive texts, and is as long as the differences are along it in
    root mean square.

    Attributes:
        path: a file of one or more vectors: .safetensors, .npy or .pt.
        key: the tensor's name in it; null if it holds one only.
        positive: texts that have what the vector stands for.
        negative: texts that have not.
        method: `mean_difference`, one vector; or `pca`, which needs as many negative texts as positive ones.
        rank: how many vectors: the first of a file (null: all of them) or of the principal components (null: 1).
    """

    path: str | None = None
    key: str | None = None
    positive: list[str] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)
    method: str = "mean_difference"
    rank: int | None = None

    def require_given(self) -> None:
        """Check that it is given, in one way only.  A default cannot be, which is why its own making does not ask.

        Raises:
            ConfigError: says what is missing or too much.
        """
        texts = bool(self.positive or self.negative)
        require(
            (self.path is None) == texts, KEY, "needs either a path, or positive and negative texts, and not both", None
        )
        require(
            self.path is not None or self.key is None, f"{KEY}.key", "names a tensor in a file: it needs a path", None
        )
        require_choice(f"{KEY}.method", self.method, METHODS)
        require(self.rank is None or self.rank >= 1, f"{KEY}.rank", "must be at least 1", self.rank)
        if not texts:
            return
        counts = len(self.positive), len(self.negative)
        require(min(counts) > 0, KEY, "needs positive and negative texts", counts)
        if self.method == "pca":
            require(counts[0] == counts[1], KEY, "needs as many negative texts as positive ones for pca", counts)
            most = f"of pca is at most the number of pairs, {counts[0]}"
            require((self.rank or 1) <= counts[0], f"{KEY}.rank", most, self.rank)
        else:
            require(self.rank in (None, 1), f"{KEY}.rank", "above 1 needs method=pca or a file", self.rank)

    def files(self) -> tuple[Path, ...]:
        """Return the file, if it is from one."""
        return () if self.path is None else (tensor_file(self.path, f"{KEY}.path"),)

    def vectors(self, corpus: Corpus) -> Tensor:
        """Return the vectors as they are, [rank, hidden_size].

        Raises:
            ConfigError: the file or the texts do not give such vectors, or one of them is zero.
        """
        rows = self._all(corpus)
        if self.rank is not None and self.rank > len(rows):
            raise ConfigError(f"{KEY}.rank: {self.path} holds {len(rows)} vectors, not {self.rank}.")
        rows = rows[: self.rank]
        if not bool(rows.any(1).all()):
            raise ConfigError(f"{KEY}: vector {int(rows.any(1).int().argmin())} is zero, which is no direction.")
        return rows

    def vector(self, corpus: Corpus) -> Tensor:
        """Return the one vector, [hidden_size].

        Raises:
            ConfigError: as of `vectors`, or there are several.
        """
        rows = self.vectors(corpus)
        if len(rows) > 1:
            raise ConfigError(f"{KEY}: there are {len(rows)} vectors, and one is needed; {KEY}.rank=1 takes the first.")
        return rows[0]

    def basis(self, corpus: Corpus) -> Tensor:
        """Return an orthonormal basis of the space that the vectors span, [rank, hidden_size].

        Raises:
            ConfigError: as of `vectors`, or they are not linearly independent.
        """
        return _orthonormal(self._all(corpus), len(self.vectors(corpus)))

    def _all(self, corpus: Corpus) -> Tensor:
        """Return the file's vectors or those of the texts: the same object each time, not made again each time."""
        if self.path is not None:
            return load_tensor(self.path, self.key, width=corpus.table.hidden_size, what=f"{KEY}.path")
        texts = tuple(self.positive), tuple(self.negative)
        return _contrast(*texts, self.method, self.rank or 1, corpus)


@lru_cache(maxsize=16)
def _contrast(positive: Sequence[str], negative: Sequence[str], method: str, rank: int, corpus: Corpus) -> Tensor:
    import torch

    toward = torch.stack([_mean_row(text, corpus) for text in positive])
    away = torch.stack([_mean_row(text, corpus) for text in negative])
    if method == "mean_difference":
        difference = toward.mean(0) - away.mean(0)
        if float(difference.norm()) <= TINY * float(toward.norm(dim=1).mean()):
            raise ConfigError(f"{KEY}: the positive and the negative texts have the same mean.")
        return difference[None].float()
    differences = toward - away
    _, lengths, components = torch.linalg.svd(differences, full_matrices=False)
    if float(lengths[rank - 1]) <= TINY * float(toward.norm()):
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
    # The diagonal says how far each vector is from the space of those before it.
    if rank > units.shape[1] or float(triangle.diagonal().abs().min()) < TINY:
        raise ConfigError(f"{KEY}: the {rank} vectors are not linearly independent: they span fewer dimensions.")
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    rows: Tensor = (basis * signs).T.float().contiguous()
    return rows
