"""Rows from outside: soft prompts, and external tensors in the place of a part of the prompt."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sweep.checks import require, require_choice
from sweep.errors import ConfigError, TransformError
from sweep.inputs.tensors import count_rows, load_tensor, tensor_file
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus

if TYPE_CHECKING:
    from torch import Generator, Tensor

ID = "{id}"


@register("soft_prompt")
@dataclass(frozen=True, slots=True)
class SoftPrompt(Rearrangement):
    """[P; E] or [E; P]: rows P from a file, of a text's tokens or at random, beside the prompt.

    Prompt tuning (Lester et al. 2021, arXiv:2104.08691), whose PEFT checkpoints can be read as they are.  The span says
    beside what: P stands before all of the prompt, its BOS too, as PEFT has it, unless another one is given.

    Attributes:
        path: a file of P, [n, d], or the folder of a PEFT checkpoint.
        key: the tensor's name in it (`prompt_embeddings` of PEFT's); null if it holds one only.
        text: a text whose tokens' rows are P.
        random: the number of rows of P that are drawn from N(μ, σ²), with the mean row and the standard deviation of
            the table; the same rows for all prompts of a point.
        tokens: how many rows of P are used, its first ones; -1 for all.
        place: `before` or `after` the span's rows.
    """

    dose: ClassVar[str | None] = "tokens"
    neutral: ClassVar[float | None] = 0
    default_span: ClassVar[str] = "all"
    examples: ClassVar = ({"random": 4}, {"text": "Answer briefly.", "tokens": 3, "place": "after"})
    paths: ClassVar = ("path",)
    whole: ClassVar[bool] = True

    path: str | None = None
    key: str | None = None
    text: str | None = None
    random: int | None = None
    tokens: int = -1
    place: str = "before"

    def __post_init__(self) -> None:
        _require_one_of(self.path, self.key, {"path": self.path, "text": self.text, "random": self.random})
        require(self.random is None or self.random >= 1, "transform.random", "must be at least 1", self.random)
        require(self.tokens >= -1, "transform.tokens", "must be 0 or more, or -1 for all", self.tokens)
        require_choice("transform.place", self.place, ("before", "after"))

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the rows with P before or after them."""
        import torch

        prompt = self._prompt(context.corpus, context.generator(shared=True))
        own: list[tuple[int, ...]] = [(i,) for i in range(len(rows))]
        none: list[tuple[int, ...]] = [()] * len(prompt)
        spoken = _spoken(self.text, len(prompt), context.corpus)
        rest: list[int | None] = [None] * len(rows)
        if self.place == "before":
            return Rearranged(torch.cat([prompt, rows]), none + own, spoken + rest)
        return Rearranged(torch.cat([rows, prompt]), own + none, rest + spoken)

    def requested(self, context: Context) -> float:
        """Return how many rows are asked for."""
        import torch

        return float(len(self._prompt(context.corpus, torch.Generator())) if self.tokens < 0 else self.tokens)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return how many rows were put in."""
        return float(len(after) - len(before))

    def max_rows(self, count: int) -> int:
        """Return `count` and the rows of P; of a text, at most one for each of its bytes."""
        if self.tokens >= 0:
            return count + self.tokens
        return count + (self.random or _most_rows(self.path, self.key, self.text))

    def files(self) -> Sequence[Path]:
        """Return the file of P, if it is from one."""
        return () if self.path is None else (tensor_file(self.path, "transform.path"),)

    def check(self, corpus: Corpus) -> None:
        """Read P and check that it has as many rows as are asked for."""
        import torch

        self._prompt(corpus, torch.Generator())

    def _prompt(self, corpus: Corpus, generator: Generator) -> Tensor:
        import torch

        if self.random is not None:
            noise = torch.randn(self.random, corpus.table.hidden_size, generator=generator)
            prompt = corpus.table.mean + corpus.table.std * noise
        else:
            prompt = _given(self.path, self.key, self.text, corpus)
        if self.tokens > len(prompt):
            raise ConfigError(f"transform.tokens: the soft prompt has {len(prompt)} rows, not {self.tokens}.")
        return prompt if self.tokens < 0 else prompt[: self.tokens]


@register("inject")
@dataclass(frozen=True, slots=True)
class Inject(Rearrangement):
    """[.. ; X ; ..]: each contiguous stretch of the span becomes the rows X of an external tensor or a text.

    The road for other models' embeddings and other modalities, as of Frozen (Tsimpoukelli et al. 2021,
    arXiv:2106.13884): a prompt that says `{image}` somewhere, with span={placeholder: image}.  Each new row counts as
    one of the whole stretch, so that later spans find it there.

    Attributes:
        path: a file of X, [n, d]; with `{id}` in it, one for each prompt, whose id stands there.
        key: the tensor's name in it; null if it holds one only.
        text: a text whose tokens' rows are X.
        scale: `none`; or `table_rms`: X times the number that gives its entries the RMS of the table's.
    """

    examples: ClassVar = ({"text": "a cat"}, {"text": "a cat", "scale": "table_rms"})
    paths: ClassVar = ("path",)

    path: str | None = None
    key: str | None = None
    text: str | None = None
    scale: str = "none"

    def __post_init__(self) -> None:
        _require_one_of(self.path, self.key, {"path": self.path, "text": self.text})
        require_choice("transform.scale", self.scale, ("none", "table_rms"))

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return X in the place of the rows."""
        path = None if self.path is None else self.path.replace(ID, context.prompt_id)
        try:
            given = _given(path, self.key, self.text, context.corpus)
        except ConfigError as error:  # of one prompt only: others may have their files
            raise TransformError(str(error).removesuffix(".")) from error
        rms = float(given.square().mean()) ** 0.5
        if self.scale == "table_rms" and rms:
            given = given * (context.table.rms / rms)
        everything = tuple(range(len(rows)))
        return Rearranged(given, [everything] * len(given), _spoken(self.text, len(given), context.corpus))

    def max_rows(self, count: int) -> int:
        """Return `count` and the rows of X, once; of a text, at most one for each of its bytes.

        A span of several stretches can need more: then engine.max_model_len has to say so.
        """
        return count + max(_most_rows(path, self.key, self.text) for path in self._paths())

    def files(self) -> Sequence[Path]:
        """Return the file of X; with `{id}` in its path, all files that have something in that place, sorted."""
        return [tensor_file(path, "transform.path") for path in self._paths() if path is not None]

    def check(self, corpus: Corpus) -> None:
        """Read X.  With `{id}` in its path all such files: that each prompt has its own is seen when its turn comes."""
        for path in self._paths():
            if path is None:
                _given(None, None, self.text, corpus)
            else:
                count_rows(path, self.key, width=corpus.table.hidden_size, what="transform.path")

    def _paths(self) -> Sequence[str | None]:
        if self.path is None or ID not in self.path:
            return [self.path]
        found = sorted(glob.glob(glob.escape(str(Path(self.path).expanduser())).replace(ID, "*")))
        if not found:
            raise ConfigError(f"transform.path: there is no file {self.path!r} for any id.")
        return found


def _require_one_of(path: str | None, key: str | None, ways: dict[str, object]) -> None:
    given = [name for name, value in ways.items() if value is not None]
    require(len(given) == 1, "transform", f"needs one of {', '.join(ways)}", given)
    require(path is not None or key is None, "transform.key", "names a tensor in a file: it needs a path", key)


def _given(path: str | None, key: str | None, text: str | None, corpus: Corpus) -> Tensor:
    """Return the rows of a file or of a text's tokens, [n, hidden_size]."""
    if path is not None:
        return load_tensor(path, key, width=corpus.table.hidden_size, what="transform.path")
    ids = corpus.tokenize(text or "")
    if not ids:
        raise ConfigError(f"transform.text: {text!r} has no tokens.")
    return corpus.table.rows(ids)


def _spoken(text: str | None, count: int, corpus: Corpus) -> list[int | None]:
    """Return the tokens that rows stand for, if they are a text's."""
    return [None] * count if text is None else [*corpus.tokenize(text)[:count]]


def _most_rows(path: str | None, key: str | None, text: str | None) -> int:
    if path is not None:
        return count_rows(path, key, width=None, what="transform.path")
    return len((text or "").encode()) + 1
