"""The model's input-embedding table, read for the rows that are needed.

Rows come as the engine's own embedding layer would give them: cast to the engine's dtype, multiplied where the family
multiplies inside its embedding layer (Gemma, MiniCPM; Granite and Falcon-H1 multiply later, in every engine, and so
are not in the list), then widened to fp32, in which all transforms compute.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

# How checkpoints call the table, after any prefix.
TABLE_NAMES = (
    "embed_tokens.weight",  # Llama and most others
    "wte.weight",  # GPT-2, GPT-J, Falcon
    "word_embeddings.weight",  # BLOOM, Falcon
    "embed_in.weight",  # GPT-NeoX
    "tok_embeddings.weight",
    "embeddings.weight",  # Mamba
    "embedding.weight",
)

MULTIPLIERS: dict[str, Callable[[Any], float]] = {
    "gemma": lambda config: math.sqrt(config.hidden_size),
    "gemma2": lambda config: math.sqrt(config.hidden_size),
    "gemma3_text": lambda config: math.sqrt(config.hidden_size),
    "vaultgemma": lambda config: math.sqrt(config.hidden_size),
    "minicpm": lambda config: config.scale_emb,
}


PIECE_ENTRIES = 2**22  # of the table that are widened to fp32 at a time: 16 MiB, near what a processor caches
COMPUTED = ("components", "std", "_moments", "_gaps")  # what takes a while, and is not large
KEPT_BYTES = 64 * 2**20  # size in fp32 up to which a table is widened once and kept


@dataclass(frozen=True)
class EmbeddingTable:
    """An input-embedding table, opened when it is first needed.

    Attributes:
        open: returns [size or more, hidden_size] in the checkpoint's dtype; a view of the mapped file where it can be.
        size: the rows that stand for tokens; what lies beyond is padding.
        hidden_size: the width of a row.
        engine_dtype: the name of the engine's dtype, such as `bfloat16`.
        multiplier: what the family's embedding layer multiplies rows by; None for most.
    """

    open: Callable[[], Tensor]
    size: int
    hidden_size: int
    engine_dtype: str
    multiplier: float | None = None

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[Any, ...], dict[str, Any]]:
        """Go to another process without what was read, but with what was computed of all of it."""
        made_of = self.open, self.size, self.hidden_size, self.engine_dtype, self.multiplier
        return EmbeddingTable, made_of, {name: own for name, own in vars(self).items() if name in COMPUTED}

    @cached_property
    def weight(self) -> Tensor:
        """What `open` returns.  Raises ConfigError: it cannot be read."""
        return self.open()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The engine's dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.engine_dtype)
        return dtype

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Return the rows of some tokens, [len(token_ids), hidden_size] in fp32."""
        import torch

        return self._as_engine(self.weight.index_select(0, torch.as_tensor(token_ids))).float()

    @cached_property
    def std(self) -> float:
        """The standard deviation of all entries, as the engine has them."""
        return math.sqrt(max(self.rms**2 - float(self.mean.double().mean()) ** 2, 0.0))

    @property
    def rms(self) -> float:
        """The root mean square of all entries."""
        return math.sqrt(self._moments[1])

    @property
    def mean(self) -> Tensor:
        """The mean row, [hidden_size] in fp32."""
        return self._moments[0]

    @cached_property
    def components(self) -> Tensor:
        """The principal components of the rows around their mean, [hidden_size] * 2: columns, largest first."""
        import torch

        covariance = torch.zeros(self.hidden_size, self.hidden_size, dtype=torch.float64)
        for _, piece in self._pieces():
            centred = piece - self.mean
            covariance += centred.T @ centred
        vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
        return vectors.flip(1).float()

    def nearest(self, rows: Tensor, k: int = 1, metric: str = "l2") -> tuple[Tensor, Tensor]:
        """Return the k nearest tokens of each of n rows, nearest first: distances [n, k] and token ids [n, k].

        The table is widened and compared piece by piece.  `metric` is `l2`, `cosine` (1 - cosine) or `dot` (minus the
        dot product).
        """
        import torch

        # Differences of l2 distances that rounding hides are told apart afterwards, among a few more candidates.
        wanted = min(k + 4 if metric == "l2" else k, self.size)
        scores = torch.empty(len(rows), 0)
        ids = torch.empty(len(rows), 0, dtype=torch.long)
        queries = torch.nn.functional.normalize(rows) if metric == "cosine" else rows
        for start, piece in self._pieces():
            if metric == "cosine":
                piece = torch.nn.functional.normalize(piece)
            score = queries @ piece.T
            if metric == "l2":
                score -= self._half_squares[start : start + len(piece)]
            best = score.topk(min(wanted, len(piece)))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + start], 1)
            if scores.shape[1] > wanted:
                kept = scores.topk(wanted)
                scores, ids = kept.values, ids.gather(1, kept.indices)
        if metric != "l2":
            return (1 - scores if metric == "cosine" else -scores), ids
        distances = (self.rows(ids.flatten()).view(*ids.shape, -1) - rows[:, None]).norm(dim=2)
        nearest = distances.topk(min(k, wanted), largest=False)
        return nearest.values, ids.gather(1, nearest.indices)

    def gaps(self, token_ids: Sequence[int]) -> Tensor:
        """Return the distance (L2) from each token's row to the nearest other token's, [len(token_ids)].

        Looked up once for each token.
        """
        import torch

        if unknown := sorted(set(token_ids) - self._gaps.keys()):
            distances, _ = self.nearest(self.rows(unknown), k=2)  # the nearest is the token itself, or its equal
            self._gaps.update(zip(unknown, distances[:, -1].tolist(), strict=True))
        return torch.tensor([self._gaps[token] for token in token_ids])

    @cached_property
    def _gaps(self) -> dict[int, float]:
        return {}

    @cached_property
    def _moments(self) -> tuple[Tensor, float]:
        import torch

        total = torch.zeros(self.hidden_size, dtype=torch.float64)
        squares = 0.0
        for _, piece in self._pieces():
            entries = piece.double()
            total += entries.sum(0)
            squares += float(entries.square().sum())
        return (total / self.size).float(), squares / (self.size * self.hidden_size)

    @cached_property
    def _half_squares(self) -> Tensor:
        import torch

        return torch.cat([piece.square().sum(1) / 2 for _, piece in self._pieces()])

    @cached_property
    def _wide(self) -> Tensor | None:
        """The table in fp32, if it is small enough to be kept."""
        small = self.size * self.hidden_size * 4 <= KEPT_BYTES
        return self._as_engine(self.weight[: self.size]).float() if small else None

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        piece = max(PIECE_ENTRIES // self.hidden_size, 1)
        for start in range(0, self.size, piece):
            stop = min(start + piece, self.size)
            kept = self._wide
            yield start, self._as_engine(self.weight[start:stop]).float() if kept is None else kept[start:stop]

    def _as_engine(self, rows: Tensor) -> Tensor:
        import torch

        rows = rows.to(self.dtype)
        return rows if self.multiplier is None else rows * torch.tensor(self.multiplier, dtype=self.dtype)


def open_table(checkpoint: Checkpoint) -> EmbeddingTable:
    """Find the table of a checkpoint by the embedder that its model asks for.

    Without safetensors in the folder, it is the classical way, which a log line says.

    Raises:
        ConfigError: no table is found, or its shape does not fit the model's configuration.
    """
    lazily = checkpoint.model.embedder == "safetensors"
    if lazily and not any(checkpoint.folder.glob("*.safetensors")):
        log.warning("%s has no safetensors: its whole checkpoint is loaded for its embeddings.", checkpoint.model.id)
        lazily = False
    return from_safetensors(checkpoint) if lazily else from_transformers(checkpoint)


def from_safetensors(checkpoint: Checkpoint) -> EmbeddingTable:
    """Map the table out of the safetensors file that holds it; the model is not loaded, unread pages stay on disk."""
    size, hidden_size = checkpoint.config.vocab_size, checkpoint.hidden_size
    shape = f"[{size} or more, {hidden_size}]"
    family = MULTIPLIERS.get(checkpoint.config.model_type)
    multiplier = family(checkpoint.config) if family else None
    with _reading(checkpoint):
        for file, name in _candidates(checkpoint.folder):
            with safe_open(file, framework="numpy") as tensors:  # which does not import PyTorch
                rows, *width = tensors.get_slice(name).get_shape()
            if rows >= size and width == [hidden_size]:
                mapped = partial(_mapped, checkpoint, file, name)
                return EmbeddingTable(mapped, size, hidden_size, checkpoint.engine_dtype, multiplier)
    raise ConfigError(
        f"model.id: {checkpoint.model.id!r} has no embedding table of shape {shape} under a known name; "
        "model.embedder=transformers loads the model to find it."
    )


def from_transformers(checkpoint: Checkpoint) -> EmbeddingTable:
    """Load the model the classical way and ask its embedding layer for all rows."""
    size, hidden_size = checkpoint.config.vocab_size, checkpoint.hidden_size
    return EmbeddingTable(partial(_loaded, checkpoint), size, hidden_size, checkpoint.engine_dtype)


def _mapped(checkpoint: Checkpoint, file: Path, name: str) -> Tensor:
    with _reading(checkpoint), safe_open(file, framework="pt") as tensors:
        weight: Tensor = tensors.get_tensor(name)
        return weight


@contextmanager
def _reading(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"model.id: the checkpoint {checkpoint.model.id!r} cannot be read: {error}") from error


def _loaded(checkpoint: Checkpoint) -> Tensor:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=checkpoint.dtype,
            trust_remote_code=checkpoint.model.trust_remote_code,
            weights_only=True,
        )
    except Exception as error:  # Transformers raises nearly every type there is for a broken folder
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"model.id: {checkpoint.model.id!r} cannot be loaded: {reason}") from error
    with torch.inference_mode():
        layer = model.get_input_embeddings()
        rows: Tensor = layer(torch.arange(layer.num_embeddings)).clone()
        return rows


def _candidates(folder: Path) -> list[tuple[Path, str]]:
    """Return (file, tensor name) for all tensors whose name says that they are an embedding table."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        document = json.loads(index.read_text())
        files = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(files, dict):
            raise ConfigError(f"model.id: {folder}/{index.name} cannot be read: it has no weight_map.")
        found = [(folder / file, name) for name, file in files.items()]
    else:
        found = []
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as tensors:
                found += [(file, name) for name in tensors.keys()]  # noqa: SIM118 - not a dict
    named = [(file, name) for file, name in found if name.endswith(TABLE_NAMES)]
    return sorted(named, key=lambda pair: len(pair[1]))
