"""Embeddings of another encoder, put into the prompt through a projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.inputs.tensors import tensor_file
from sweep.transforms.alignment import Alignment, Source, fit, match_rms
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus
from sweep.transforms.projector import project
from sweep.transforms.text_encoder import FILES, encode, locate, most_tokens, versions
from sweep.util.digests import file_digest
from sweep.util.validators import did_you_mean, require, require_choice

if TYPE_CHECKING:
    from torch import Tensor


@register("encoder")
@dataclass(frozen=True, slots=True)
class Encoder(Rearrangement):
    """[.. ; f(enc(text)) ; ..]: each contiguous range of the span is replaced by an encoder's output for a text.

    LLaVA (Liu et al. 2023, arXiv:2304.08485) puts projected rows of another modality's encoder into the prompt, xRAG
    (Cheng et al. 2024, arXiv:2405.13792) a whole document as one row. The output is one of the encoder's layers in
    fp32. A decoder-only language model is an encoder, too: its hidden states are then a latent message. f is linear, or
    several layers with GELU in between as in LLaVA-1.5 (arXiv:2310.03744). Code from the hub is never run.

    Attributes:
        encoder: a folder or a hub id of a Transformers model with its tokenizer.
        revision: revision of the hub id.
        value: name of the prompt's value to encode.
        text: the text to encode, the same for all prompts.
        pooling: `none`, one row per token of the text; `mean`, the mean over all tokens, the encoder's special tokens
            included; `cls`, the first token's row; or `last`, the row of the last token that is not special.
        projector: a file with f's weights, [d, width of the encoder] for the last layer: `weight` and `bias`, or those
            of several layers, `0.weight`, `2.weight`, under any prefix; null if the encoder's width is the model's.
        layer: number of the block whose output is taken, as in Transformers' `hidden_states`: 0 is the encoder's input
            embeddings, -1 its last layer; null is the last layer too.
        align: `none`; `rms`, each row scaled to the root mean square of the model's embedding table; or a map to that
            table's rows, fitted on `align_texts`: `ridge` (linear) or `procrustes` (a rotation with one scale). Its
            error on held-out texts is `perturbation/alignment_error`.
        align_texts: a text file with one text per line, to fit the alignment; `none` and `rms` do not read it.
        align_to: the row that a token is mapped to: that of the same `token`, or of the `next` one, which a language
            model's last layers predict.
    """

    examples: ClassVar = ()  # needs an encoder
    paths: ClassVar = ("encoder", "projector", "align_texts")
    added: ClassVar = {"layer": None, "align": "none", "align_texts": None, "align_to": "token"}

    encoder: str | None = None
    revision: str | None = None
    value: str | None = None
    text: str | None = None
    pooling: str = "none"
    projector: str | None = None
    layer: int | None = None
    align: str = "none"
    align_texts: str | None = None
    align_to: str = "token"

    def __post_init__(self) -> None:
        require(bool(self.encoder), "transform.encoder", "must name a folder or a hub id", self.encoder)
        exactly_one = (self.value is None) != (self.text is None)
        require(exactly_one, "transform", "needs either a value or a text", [self.value, self.text])
        require(self.text != "", "transform.text", "must not be empty", self.text)
        require_choice("transform.pooling", self.pooling, ("none", "mean", "cls", "last"))
        require_choice("transform.align", self.align, ("none", "rms", "ridge", "procrustes"))
        require_choice("transform.align_to", self.align_to, ("token", "next"))
        fitted = self.align in ("ridge", "procrustes")
        rule = f"must name a file of texts for align={self.align}"
        require(not fitted or bool(self.align_texts), "transform.align_texts", rule, self.align_texts)
        require(not fitted or self.projector is None, "transform.projector", f"excludes align={self.align}", None)

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the projected rows in place of `rows`; each has the whole range as its parents."""
        if self.value is None:
            text = self.text or ""
        else:
            values = context.corpus.values(context.prompt_id)
            if self.value not in values:
                raise TransformError(
                    f"the prompt has no value {self.value!r}. {did_you_mean(self.value, list(values))}"
                )
            text = values[self.value]
        new = self._encoded(text, context.corpus)
        return Rearranged(new, [tuple(range(len(rows)))] * len(new))

    def max_rows(self, count: int) -> int:
        """Return `count` plus the maximum number of rows for one text."""
        folder = self._folder()
        if self.pooling != "none":
            return count + 1
        if self.text is None:
            return count + most_tokens(folder)
        return count + len(encode(folder, self.text, self.pooling, self.layer, versions(folder)))

    def files(self) -> Sequence[Path]:
        """Return the files of the encoder, the projector and the texts."""
        found = sorted(file for file in self._folder().iterdir() if file.suffix in FILES)
        if self.projector is not None:
            found.append(tensor_file(self.projector, "transform.projector"))
        return found if self.align_texts is None else [*found, self._texts()]

    def facts(self, corpus: Corpus) -> Mapping[str, float]:
        """Return the alignment's errors on held-out texts."""
        alignment = self._alignment(corpus)
        if alignment is None:
            return {}
        return {"alignment_error": alignment.error, "alignment_error_of_mean": alignment.mean_error}

    def check(self, corpus: Corpus) -> None:
        """Load encoder and projector, and check that their widths match each other and the model's."""
        try:
            width = self._encoded(self.text or "text", corpus).shape[1]
        except TransformError as error:
            raise ConfigError(f"transform.text: {error}.") from error
        if width != corpus.table.hidden_size:
            key, verb = ("projector", "returns") if self.projector else ("encoder", "without a projector has")
            raise ConfigError(
                f"transform.{key}: {getattr(self, key)!r} {verb} rows of width {width}; "
                f"the model's are {corpus.table.hidden_size} wide."
            )

    def _folder(self) -> Path:
        return locate(self.encoder or "", self.revision)

    def _encoded(self, text: str, corpus: Corpus) -> Tensor:
        folder = self._folder()
        rows = encode(folder, text, self.pooling, self.layer, versions(folder))
        if self.projector is not None:
            rows = project(rows, self.projector)
        if self.align == "rms":
            return match_rms(rows, corpus.table)
        alignment = self._alignment(corpus)
        return rows if alignment is None else alignment.apply(rows)

    def _alignment(self, corpus: Corpus) -> Alignment | None:
        if self.align in ("none", "rms"):
            return None
        folder = self._folder()
        texts = self._texts()
        source = Source(folder, self.layer, versions(folder))
        return fit(self.align, self.align_to, source, texts, file_digest(texts), corpus)

    def _texts(self) -> Path:
        path = Path(self.align_texts or "").expanduser()
        if not path.is_file():
            raise ConfigError(f"transform.align_texts: there is no file {self.align_texts!r}.")
        return path
