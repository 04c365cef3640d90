"""Information available to a transform in addition to its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sweep.core.seeds import derive_seed
from sweep.errors import TransformError
from sweep.inputs.layout import Layout
from sweep.inputs.span import Origins, Span

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Table(Protocol):
    """The model's input-embedding table in fp32, with the engine's values. See `inputs.embedding_table`."""

    @property
    def hidden_size(self) -> int:
        """Width of a row."""

    @property
    def std(self) -> float:
        """Standard deviation of all entries."""

    @property
    def rms(self) -> float:
        """Root mean square of all entries."""

    @property
    def mean(self) -> Tensor:
        """Mean row: (hidden_size,), float32."""

    @property
    def components(self) -> Tensor:
        """Principal components of the rows around their mean: (hidden_size, hidden_size), columns, largest first.

        Computed once; takes a minute for the largest tables.
        """

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Return the rows of tokens: (len(token_ids), hidden_size), float32."""

    def nearest(self, rows: Tensor, k: int = 1, metric: str = "l2", *, on_gpu: bool = False) -> tuple[Tensor, Tensor]:
        """Return the k nearest tokens of each row, nearest first: distances (n, k) and token ids (n, k).

        Args:
            rows: (n, hidden_size), float32.
            k: number of tokens per row.
            metric: `l2`, `cosine` (1 - cosine) or `dot` (negative dot product).
            on_gpu: whether a GPU may be used.
        """

    def gaps(self, token_ids: Sequence[int], *, on_gpu: bool = False) -> Tensor:
        """Return the L2 distance from each token's row to the nearest other token's: (len(token_ids),)."""


class Corpus(Protocol):
    """The sweep's prompts before any transform, with the model's table and tokenizer. See `inputs.prompt_set`."""

    def __hash__(self) -> int:
        """Hash by identity; results computed from a corpus are cached by it."""

    @property
    def table(self) -> Table:
        """The embedding table."""

    def layout(self, prompt_id: str) -> Layout:
        """Return a prompt's tokens and text.

        Raises:
            TransformError: there is no such prompt.
        """

    def values(self, prompt_id: str) -> Mapping[str, str]:
        """Return a prompt's own values."""

    def next_id(self, prompt_id: str) -> str:
        """Return the id of the next prompt; the first one follows the last."""

    def numbers(self, span: Span, prompt_id: str) -> list[int]:
        """Return the indices of a prompt's rows in a span, ascending.

        Raises:
            TransformError: the span is empty in this prompt.
        """

    def mean(self, span: Span) -> Tensor:
        """Return the mean of all prompts' rows in a span: (hidden_size,). Prompts without such rows are skipped."""

    def components(self, span: Span) -> Tensor:
        """Return the principal components of all prompts' rows in a span around their mean.

        Returns:
            (hidden_size, r): columns, largest first; only directions in which the rows vary.
        """

    def tokenize(self, text: str) -> list[int]:
        """Return a text's token ids, without template and special tokens."""

    def tokenize_with_characters(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Return a text's token ids as `tokenize`, and the characters of each; None if they cannot be determined."""

    def special(self, name: str) -> int:
        """Return the id of the `pad`, `mask`, `unk`, `bos` or `eos` token.

        Raises:
            TransformError: the tokenizer has no such token.
        """

    def tokenize_prompt(self, prompt_id: str, text: str) -> list[int]:
        """Return the token ids of a prompt whose rendered text was changed to `text`."""


@dataclass(frozen=True, slots=True)
class Context:
    """Information available to a transform in addition to its rows.

    Immutable; created for each application of a transform to a prompt.

    Attributes:
        seed: derived from the point's seed, the prompt's id and the transform's position; equal in every process.
        shared_seed: derived without the prompt's id, for values that all prompts of a point share.
        corpus: the sweep's prompts, table and tokenizer.
        prompt_id: id of the prompt that the rows belong to.
        span: the span that the rows are in.
        origins: for each row, the indices of the prompt's tokens it originates from.
    """

    seed: int
    shared_seed: int
    corpus: Corpus
    prompt_id: str
    span: Span
    origins: Origins

    @property
    def table(self) -> Table:
        """The model's embedding table."""
        return self.corpus.table

    def generator(self, shared: bool = False) -> Generator:
        """Return a new CPU generator; `shared` gives all prompts of a point the same one.

        The global generator is never used, because engines reseed it.
        """
        import torch

        return torch.Generator().manual_seed(self.shared_seed if shared else self.seed)

    def fork(self, *names: int | str) -> Context:
        """Return a context with other seeds, for a second source of randomness or another range of rows."""
        return replace(self, seed=derive_seed(self.seed, *names), shared_seed=derive_seed(self.shared_seed, *names))

    def original(self, rows: Tensor) -> Tensor:
        """Return the untransformed rows of the tokens that `rows` originate from: (n, hidden_size).

        A row with several origin tokens gets their mean. A row without one is returned unchanged.
        """
        import torch

        ids = self.corpus.layout(self.prompt_id).token_ids
        if all(len(tokens) == 1 for tokens in self.origins):
            return self.table.rows([ids[token] for (token,) in self.origins])
        means = [
            self.table.rows([ids[token] for token in tokens]).mean(0) if tokens else row
            for tokens, row in zip(self.origins, rows, strict=True)
        ]
        return torch.stack(means)

    def other(self, prompt_id: str | None = None) -> Tensor:
        """Return the untransformed rows of another prompt in the same span; None means the next prompt.

        Raises:
            TransformError: there is no such prompt, or the span is empty in it.
        """
        other = self.corpus.next_id(self.prompt_id) if prompt_id is None else prompt_id
        ids = self.corpus.layout(other).token_ids
        return self.table.rows([ids[i] for i in self.corpus.numbers(self.span, other)])

    def embed(self, text: str) -> Tensor:
        """Return the rows of a text's tokens, without template and special tokens.

        Raises:
            TransformError: the text has no tokens.
        """
        ids = self.corpus.tokenize(text)
        if not ids:
            raise TransformError(f"the text {text!r} has no tokens")
        return self.table.rows(ids)

    def special(self, name: str) -> Tensor:
        """Return the row of the tokenizer's `pad`, `mask`, `unk`, `bos` or `eos` token: (hidden_size,)."""
        return self.table.rows([self.corpus.special(name)])[0]
