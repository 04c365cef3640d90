"""External rows: soft prompts, and tensors that replace a part of the prompt."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.inputs.tensors import count_rows, load_tensor, tensor_file
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus
from sweep.util.counts import counted
from sweep.util.validators import require, require_choice

if TYPE_CHECKING:
    from torch import Generator, Tensor

ID = "{id}"


@register("soft_prompt")
@dataclass(frozen=True, slots=True)
class SoftPrompt(Rearrangement):
    """[P; E] or [E; P]: rows P from a file, from a text's tokens or at random, before or after the prompt.

    Prompt tuning (Lester et al. 2021, arXiv:2104.08691); its PEFT checkpoints can be read directly. P is placed next to
    the rows of the span. By default it precedes the whole prompt, BOS included, as in PEFT.

    Attributes:
        path: a file with P, [n, d], or the folder of a PEFT checkpoint (PROMPT_TUNING, P_TUNING, CPT, multitask).
        key: the tensor's name in the file, nested names joined by dots; null if it holds one tensor, and for PEFT.
        task: index of the task in a checkpoint of multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861), from 0;
            null for all others.
        text: a text whose tokens' rows are P.
        random: number of rows of P drawn from N(μ, σ²), with the mean row and the standard deviation of the table; the
            same rows for all prompts of a point.
        tokens: number of rows of P to use, from the first; -1 for all.
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
    task: int | None = None
    text: str | None = None
    random: int | None = None
    tokens: int = -1
    place: str = "before"

    def __post_init__(self) -> None:
        _require_one_of(self.path, self.key, {"path": self.path, "text": self.text, "random": self.random})
        require(self.task is None or self.task >= 0, "transform.task", "must be 0 or more", self.task)
        has_path = self.task is None or self.path is not None
        require(has_path, "transform.task", "selects a task of a PEFT checkpoint and needs transform.path", self.task)
        require(self.random is None or self.random >= 1, "transform.random", "must be at least 1", self.random)
        require(self.tokens >= -1, "transform.tokens", "must be 0 or more, or -1 for all", self.tokens)
        require_choice("transform.place", self.place, ("before", "after"))

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the rows with P before or after them."""
        import torch

        prompt = self._prompt(context.corpus, context.generator(shared=True))
        row_parents: list[tuple[int, ...]] = [(i,) for i in range(len(rows))]
        prompt_parents: list[tuple[int, ...]] = [()] * len(prompt)
        prompt_tokens = _text_tokens(self.text, len(prompt), context.corpus)
        row_tokens: list[int | None] = [None] * len(rows)
        if self.place == "before":
            return Rearranged(torch.cat([prompt, rows]), prompt_parents + row_parents, prompt_tokens + row_tokens)
        return Rearranged(torch.cat([rows, prompt]), row_parents + prompt_parents, row_tokens + prompt_tokens)

    def requested(self, context: Context) -> float:
        """Return the requested number of rows."""
        import torch

        return float(len(self._prompt(context.corpus, torch.Generator())) if self.tokens < 0 else self.tokens)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the number of inserted rows."""
        return float(len(after) - len(before))

    def max_rows(self, count: int) -> int:
        """Return `count` plus the rows of P; a text has at most one row per byte."""
        if self.tokens >= 0:
            return count + self.tokens
        return count + (self.random or _most_rows(self.path, self.key, self.text, self.task))

    def files(self) -> Sequence[Path]:
        """Return the file of P, if it has one."""
        return () if self.path is None else (tensor_file(self.path, "transform.path"),)

    def check(self, corpus: Corpus) -> None:
        """Read P and check that it has the requested number of rows."""
        import torch

        self._prompt(corpus, torch.Generator())

    def _prompt(self, corpus: Corpus, generator: Generator) -> Tensor:
        import torch

        if self.random is not None:
            noise = torch.randn(self.random, corpus.table.hidden_size, generator=generator)
            prompt = corpus.table.mean + corpus.table.std * noise
        else:
            prompt = _read_rows(self.path, self.key, self.text, corpus, self.task)
        if self.tokens > len(prompt):
            raise ConfigError(
                f"transform.tokens: the soft prompt has {counted(len(prompt), 'row')}; got {self.tokens}."
            )
        return prompt if self.tokens < 0 else prompt[: self.tokens]


@register("inject")
@dataclass(frozen=True, slots=True)
class Inject(Rearrangement):
    """[.. ; X ; ..]: each contiguous range of the span is replaced by the rows X of an external tensor or a text.

    For embeddings of other models and modalities, as in Frozen (Tsimpoukelli et al. 2021, arXiv:2106.13884): a prompt
    that contains `{image}`, with span={placeholder: image}. Each new row originates from the whole range, so later
    spans find it there.

    Attributes:
        path: a file with X, [n, d]; `{id}` in it stands for the prompt's id, with one file per prompt.
        key: the tensor's name in the file; null if it holds one tensor.
        text: a text whose tokens' rows are X.
        scale: `none`; or `table_rms`, X scaled to the RMS of the table's entries.
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
        """Return X in place of the rows."""
        path = None if self.path is None else self.path.replace(ID, context.prompt_id)
        try:
            external = _read_rows(path, self.key, self.text, context.corpus)
        except ConfigError as error:  # fails this prompt only; others may have their files
            raise TransformError(str(error).removesuffix(".")) from error
        rms = float(external.square().mean()) ** 0.5
        if self.scale == "table_rms" and rms:
            external = external * (context.table.rms / rms)
        all_rows = tuple(range(len(rows)))
        return Rearranged(external, [all_rows] * len(external), _text_tokens(self.text, len(external), context.corpus))

    def max_rows(self, count: int) -> int:
        """Return `count` plus the rows of X, counted once; a text has at most one row per byte.

        A span with several ranges can need more rows. In that case, set engine.max_model_len.
        """
        return count + max(_most_rows(path, self.key, self.text) for path in self._paths())

    def files(self) -> Sequence[Path]:
        """Return the file of X; with `{id}` in its path, all matching files, sorted."""
        return [tensor_file(path, "transform.path") for path in self._paths() if path is not None]

    def check(self, corpus: Corpus) -> None:
        """Read X; with `{id}` in its path, all matching files. A prompt without a file fails only when it is built."""
        for path in self._paths():
            if path is None:
                _read_rows(None, None, self.text, corpus)
            else:
                count_rows(path, self.key, width=corpus.table.hidden_size, config_key="transform.path")

    def _paths(self) -> Sequence[str | None]:
        if self.path is None or ID not in self.path:
            return [self.path]
        matches = sorted(glob.glob(glob.escape(str(Path(self.path).expanduser())).replace(ID, "*")))
        if not matches:
            raise ConfigError(f"transform.path: there is no file {self.path!r} for any id.")
        return matches


def _require_one_of(path: str | None, key: str | None, alternatives: dict[str, object]) -> None:
    set_names = [name for name, value in alternatives.items() if value is not None]
    require(len(set_names) == 1, "transform", f"needs one of {', '.join(alternatives)}", set_names)
    require(
        path is not None or key is None, "transform.key", "selects a tensor in a file and needs transform.path", key
    )


def _read_rows(path: str | None, key: str | None, text: str | None, corpus: Corpus, task: int | None = None) -> Tensor:
    """Return the rows of a file or of a text's tokens: (n, hidden_size)."""
    if path is not None:
        return load_tensor(path, key, width=corpus.table.hidden_size, config_key="transform.path", task=task)
    ids = corpus.tokenize(text or "")
    if not ids:
        raise ConfigError(f"transform.text: {text!r} has no tokens.")
    return corpus.table.rows(ids)


def _text_tokens(text: str | None, count: int, corpus: Corpus) -> list[int | None]:
    """Return the token that each row stands for; None for rows that are not from a text."""
    return [None] * count if text is None else [*corpus.tokenize(text)[:count]]


def _most_rows(path: str | None, key: str | None, text: str | None, task: int | None = None) -> int:
    if path is not None:
        return count_rows(path, key, width=None, config_key="transform.path", task=task)
    return len((text or "").encode()) + 1
