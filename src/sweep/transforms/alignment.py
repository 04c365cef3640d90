"""Alignment of an encoder's rows to those of the model's embedding table, fitted on texts."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError, TransformError
from sweep.transforms.context import Corpus, Table
from sweep.transforms.text_encoder import Versions, states
from sweep.util.atomic import replace
from sweep.util.linear_algebra import thin_svd
from sweep.util.paths import user_cache

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

KEY = "transform.align_texts"
FOLDS = 5  # of five texts, one is held out
MAX_TEXTS = 10_000
PENALTIES = tuple(10.0**power for power in range(-8, 2))  # multiples of the largest eigenvalue
SMALLEST = 1e-10  # eigenvalues below this share of the largest count as zero
FORMAT = 1  # of cached alignments; increase it when a fit changes


@dataclass(frozen=True, slots=True)
class Source:
    """A layer of an encoder.

    Attributes:
        folder: the encoder.
        layer: see `text_encoder.states`.
        versions: the versions of the encoder's files.
    """

    folder: Path
    layer: int | None
    versions: Versions


@dataclass(frozen=True, slots=True)
class Alignment:
    """The map x ↦ x·weight + bias.

    Attributes:
        weight: (encoder width, hidden_size), float32.
        bias: (hidden_size,), float32.
        error: relative L2 error on held-out texts, of a map fitted on the others: ‖predicted - rows‖ / ‖rows‖.
        mean_error: the same error if the mean row is predicted for every token.
    """

    weight: Tensor
    bias: Tensor
    error: float
    mean_error: float

    def apply(self, rows: Tensor) -> Tensor:
        """Return the aligned rows: (n, hidden_size)."""
        return rows @ self.weight + self.bias


def match_rms(rows: Tensor, table: Table) -> Tensor:
    """Return rows whose root mean square is that of the table's entries."""
    return rows * (table.rms / rows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12))


@lru_cache(maxsize=16)
def fit(kind: str, to: str, source: Source, texts: Path, digest: str, corpus: Corpus) -> Alignment:
    """Return the alignment of an encoder's layer to the model's table, from the user's cache if it was fitted before.

    Each of the encoder's tokens is paired with the row of the model's token at the same characters, or of the one after
    it. The mean is taken of several. Special tokens are left out.

    Args:
        kind: `ridge`, a linear map whose penalty has the smallest generalised cross-validation error (Golub, Heath and
            Wahba 1979); or `procrustes`, a rotation with one scale (Schönemann 1966), for other widths too.
        to: `token` or `next`.
        source: the encoder's layer.
        texts: a file with one text per line.
        digest: digest of that file.
        corpus: the prompts, with the model's table and tokenizer.

    Raises:
        ConfigError: the file has too few texts, or the tokenizers do not tell the characters of tokens.
    """
    path = _cached(kind, to, source, digest, corpus.table)
    if path is not None and (known := _read(path)) is not None:
        return known
    pairs = [pair for text in read_texts(texts) if len((pair := _pairs(text, source, to, corpus))[0])]
    if len(pairs) < FOLDS:
        raise ConfigError(f"{KEY}: {str(texts)!r} needs at least {FOLDS} texts with tokens of both models.")
    held_out = pairs[FOLDS - 1 :: FOLDS]
    seen = [pair for i, pair in enumerate(pairs) if i % FOLDS != FOLDS - 1]
    weight, bias = solve(kind, *_joined(seen))
    rows, targets = _joined(held_out)
    norm = float(targets.norm())
    error = float((rows @ weight + bias - targets).norm()) / norm
    mean_error = float((_joined(seen)[1].mean(0) - targets).norm()) / norm
    weight, bias = solve(kind, *_joined(pairs))
    alignment = Alignment(weight.float(), bias.float(), error, mean_error)
    log.info("Alignment (%s): relative L2 error %.3g on held-out texts, %.3g of the mean row.", kind, error, mean_error)
    if path is not None:
        _write(path, alignment)
    return alignment


def read_texts(path: Path) -> list[str]:
    """Return the different lines of a text file that are not blank, from `FOLDS` to `MAX_TEXTS`.

    Raises:
        ConfigError: the file cannot be read as UTF-8, or has too few or too many lines.
    """
    try:
        lines = list(dict.fromkeys(filter(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{KEY}: {str(path)!r} cannot be read as text in UTF-8 ({error}).") from error
    if not FOLDS <= len(lines) <= MAX_TEXTS:
        raise ConfigError(
            f"{KEY}: {str(path)!r} has {len(lines)} different texts; from {FOLDS} to {MAX_TEXTS:,} are allowed."
        )
    return lines


def _pairs(text: str, source: Source, to: str, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Return the encoder's rows of a text, and the table's rows that belong to them: (n, width), (n, hidden_size)."""
    import torch

    ids, characters = corpus.tokenize_with_characters(text)
    try:
        found = states(source.folder, text, source.layer, source.versions)
    except TransformError as error:
        raise ConfigError(f"{KEY}: {error}.") from error
    if found.characters is None or characters is None:
        raise ConfigError(f"transform.align: the tokenizer of {source.folder.name!r} or the model is not a fast one.")
    table, starts = corpus.table.rows(ids), [start for start, _ in characters]
    kept, targets = [], []
    for number, (start, end) in enumerate(found.characters):
        if not found.is_text[number] or start == end:
            continue
        if to == "next":
            after = bisect_left(starts, end)
            tokens = [after] if after < len(ids) else []
        else:
            tokens = [i for i, (begin, stop) in enumerate(characters) if begin < end and start < stop]
        if tokens:
            kept.append(number)
            targets.append(table[tokens].mean(0))
    width = table.shape[1]
    return found.rows[kept].double(), torch.stack(targets).double() if targets else torch.empty(0, width).double()


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    import torch

    return torch.cat([rows for rows, _ in pairs]), torch.cat([targets for _, targets in pairs])


def solve(kind: str, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (width, hidden_size) and bias (hidden_size,) of a map from rows to targets, in fp64.

    Directions in which rows and targets do not vary together are mapped to zero.

    Args:
        kind: see `fit`.
        rows: (n, width), float64.
        targets: (n, hidden_size), float64.
    """
    import torch

    mean, target_mean = rows.mean(0), targets.mean(0)
    centred, aims = rows - mean, targets - target_mean
    if kind == "procrustes":
        left, strengths, right = torch.linalg.svd(centred.T @ aims, full_matrices=False)
        kept = strengths > SMALLEST * strengths[0]
        left, right = left[:, kept], right[kept]
        weight = left @ right * (strengths[kept].sum() / (centred @ left).square().sum().clamp(min=1e-300))
    else:
        weight = _ridge(centred, aims)
    return weight, target_mean - mean @ weight


def _ridge(centred: Tensor, aims: Tensor) -> Tensor:
    left, eigenvalues, right = thin_svd(centred, SMALLEST)
    projected = left.T @ aims
    squares, total = projected.square().sum(1), aims.square().sum()
    best = None
    for penalty in [float(eigenvalues[-1]) * factor for factor in PENALTIES]:
        shares = eigenvalues / (eigenvalues + penalty)
        residual = float(total - (shares * (2 - shares) * squares).sum())
        freedom = max(1 - (float(shares.sum()) + 1) / len(centred), 1e-9)
        score = max(residual, 0.0) / freedom**2
        if best is None or score < best[0]:
            best = score, shares
    assert best is not None
    weight: Tensor = right @ ((best[1] / eigenvalues.sqrt())[:, None] * projected)
    return weight


def _cached(kind: str, to: str, source: Source, digest: str, table: Table) -> Path | None:
    """Return the path of the alignment in the user's cache; None if there is no such folder."""
    folder = user_cache()
    if folder is None:
        return None
    of_table = hashlib.sha256(table.mean.numpy().tobytes()).hexdigest()
    identity = [FORMAT, kind, to, str(source.folder), source.layer, source.versions, digest, of_table, table.std]
    return folder / "alignments" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.safetensors"


def _read(path: Path) -> Alignment | None:
    """Return a cached alignment; None if there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        error, mean_error = tensors["errors"].tolist()
        return Alignment(tensors["weight"], tensors["bias"], error, mean_error)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write(path: Path, alignment: Alignment) -> None:
    import torch
    from safetensors.torch import save_file

    errors = torch.tensor([alignment.error, alignment.mean_error], dtype=torch.float64)
    tensors = {"weight": alignment.weight.contiguous(), "bias": alignment.bias.contiguous(), "errors": errors}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda temporary: save_file(tensors, temporary))
    except OSError as error:
        log.info("The alignment cannot be cached in %s: %s", path.parent, error)
