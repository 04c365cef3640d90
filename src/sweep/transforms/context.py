"""What a transform may know beside the rows that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sweep.errors import TransformError
from sweep.inputs.layout import Layout
from sweep.seeds import derive_seed
from sweep.transforms.span import Origins, Span

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Table(Protocol):
    """The model's input-embedding table, in fp32, with the values that the engine has."""

    @property
    def hidden_size(self) -> int:
        """The width of a row."""

    @property
    def std(self) -> float:
        """The standard deviation of all entries."""

    @property
    def rms(self) -> float:
        """The root mean square of all entries."""

    @property
    def mean(self) -> Tensor:
        """The mean row, [hidden_size]."""

    @property
    def components(self) -> Tensor:
        """The principal components of the rows around their mean, [hidden_size] * 2: columns, largest first.

        Computed once, in a minute for the largest tables.
        """

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Return the rows of some tokens, [len(token_ids), hidden_size]."""

    def nearest(self, rows: Tensor, k: int = 1, metric: str = "l2") -> tuple[Tensor, Tensor]:
        """Return the k nearest tokens of each of n rows, nearest first: distances [n, k] and token ids [n, k].

        `metric` is `l2`, `cosine` (1 - cosine) or `dot` (minus the dot product).
        """

    def gaps(self, token_ids: Sequence[int]) -> Tensor:
        """Return the distance (L2) from each token's row to the nearest other token's, [len(token_ids)]."""


class Corpus(Protocol):
    """The sweep's prompts, as they are before any transform, and the model's table and tokenizer."""

    def __hash__(self) -> int:
        """It is what things computed of it are remembered by."""

    @property
    def table(self) -> Table:
        """The embedding table."""

    def layout(self, prompt_id: str) -> Layout:
        """Return a prompt's tokens and text.  Raises TransformError: there is no such prompt."""

    def values(self, prompt_id: str) -> Mapping[str, str]:
        """Return a prompt's own values."""

    def next_id(self, prompt_id: str) -> str:
        """Return the id of the prompt after this one; of the first after the last."""

    def numbers(self, span: Span, prompt_id: str) -> list[int]:
        """Return the numbers of a prompt's rows in a span, ascending.  Raises TransformError: there are none."""

    def mean(self, span: Span) -> Tensor:
        """Return the mean of all prompts' rows in a span, [hidden_size]; prompts that have none are left out."""

    def components(self, span: Span) -> Tensor:
        """Return the principal components of those rows around their mean, [hidden_size, r]: columns, largest first.

        Only those along which the rows have an extent.
        """

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens, without template and special tokens."""

    def special(self, name: str) -> int:
        """Return the id of the `pad`, `mask`, `unk`, `bos` or `eos` token.  Raises TransformError: there is none."""

    def tokenize_prompt(self, prompt_id: str, text: str) -> list[int]:
        """Return the tokens of a prompt whose rendered text has become `text`."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform may know beside the rows.

    Attributes:
        seed: derived from the point's seed, the prompt's id and the transform's place; the same in every process.
        shared_seed: the same without the prompt's id, for what must be equal for all prompts of a point.
        corpus: the sweep's prompts, table and tokenizer.
        prompt_id: which of the prompts the rows are of.
        span: the span that they are in.
        origins: for each of them the prompt's tokens that it stems from.
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
        """Return a fresh CPU generator; `shared` gives the same one to all prompts of a point.

        The global generator is never used: engines reseed it.
        """
        import torch

        return torch.Generator().manual_seed(self.shared_seed if shared else self.seed)

    def fork(self, *names: int | str) -> Context:
        """Return a context with other seeds, for a second source of random numbers or another stretch of rows."""
        return replace(self, seed=derive_seed(self.seed, *names), shared_seed=derive_seed(self.shared_seed, *names))

    def original(self, rows: Tensor) -> Tensor:
        """Return the untransformed rows of the tokens that `rows` stem from, [n, hidden_size].

        A row that stems from several tokens has their mean; one that stems from none is itself its original.
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
        """Return the untransformed rows of another prompt in the same span; without an id, of the next prompt."""
        other = self.corpus.next_id(self.prompt_id) if prompt_id is None else prompt_id
        ids = self.corpus.layout(other).token_ids
        return self.table.rows([ids[i] for i in self.corpus.numbers(self.span, other)])

    def embed(self, text: str) -> Tensor:
        """Return the rows of a text's tokens, without template and special tokens.

        Raises:
            TransformError: it has no tokens.
        """
        ids = self.corpus.tokenize(text)
        if not ids:
            raise TransformError(f"the text {text!r} has no tokens")
        return self.table.rows(ids)

    def special(self, name: str) -> Tensor:
        """Return the row of the tokenizer's `pad`, `mask`, `unk`, `bos` or `eos` token, [hidden_size]."""
        return self.table.rows([self.corpus.special(name)])[0]
