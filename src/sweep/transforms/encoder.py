"""Embeddings of another encoder, put into the prompt through a projector."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.inputs.tensors import load_tensors, tensor_file
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus
from sweep.util.digests import FileVersion, file_versions
from sweep.util.install_check import advice
from sweep.util.validators import did_you_mean, require, require_choice

if TYPE_CHECKING:
    from torch import Tensor

FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
UNLIMITED = 512  # tokens reserved for one text if the encoder has no limit
Layers = Sequence[tuple["Tensor", "Tensor | None"]]
Versions = tuple[tuple[str, FileVersion], ...]


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
    """

    examples: ClassVar = ()  # needs an encoder
    paths: ClassVar = ("encoder", "projector")
    added: ClassVar = {"layer": None}

    encoder: str | None = None
    revision: str | None = None
    value: str | None = None
    text: str | None = None
    pooling: str = "none"
    projector: str | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.encoder), "transform.encoder", "must name a folder or a hub id", self.encoder)
        exactly_one = (self.value is None) != (self.text is None)
        require(exactly_one, "transform", "needs either a value or a text", [self.value, self.text])
        require(self.text != "", "transform.text", "must not be empty", self.text)
        require_choice("transform.pooling", self.pooling, ("none", "mean", "cls", "last"))

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
        new = self._encoded(text)
        return Rearranged(new, [tuple(range(len(rows)))] * len(new))

    def max_rows(self, count: int) -> int:
        """Return `count` plus the maximum number of rows for one text."""
        if self.pooling != "none":
            return count + 1
        return count + (len(self._encoded(self.text)) if self.text is not None else _most_tokens(self._folder()))

    def files(self) -> Sequence[Path]:
        """Return the files of the encoder and the projector."""
        encoder_files = sorted(file for file in self._folder().iterdir() if file.suffix in FILES)
        return (
            encoder_files
            if self.projector is None
            else [*encoder_files, tensor_file(self.projector, "transform.projector")]
        )

    def check(self, corpus: Corpus) -> None:
        """Load encoder and projector, and check that their widths match each other and the model's."""
        try:
            width = self._encoded(self.text or "text").shape[1]
        except TransformError as error:
            raise ConfigError(f"transform.text: {error}.") from error
        if width != corpus.table.hidden_size:
            key, verb = ("projector", "returns") if self.projector else ("encoder", "without a projector has")
            raise ConfigError(
                f"transform.{key}: {getattr(self, key)!r} {verb} rows of width {width}; "
                f"the model's are {corpus.table.hidden_size} wide."
            )

    def _folder(self) -> Path:
        return _locate(self.encoder or "", self.revision)

    def _encoded(self, text: str) -> Tensor:
        import torch

        folder = self._folder()
        rows = _encode(folder, text, self.pooling, self.layer, _versions(folder))
        if self.projector is None:
            return rows
        layers = _layers(self.projector)
        if layers[0][0].shape[1] != rows.shape[1]:
            raise ConfigError(
                f"transform.projector: {self.projector!r} takes rows of width {layers[0][0].shape[1]}; "
                f"the encoder's are {rows.shape[1]} wide."
            )
        for number, (weight, bias) in enumerate(layers):
            rows = torch.nn.functional.linear(torch.nn.functional.gelu(rows) if number else rows, weight, bias)
        return rows


def _locate(encoder: str, revision: str | None) -> Path:
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or encoder.startswith(("/", ".", "~")) or encoder.count("/") > 1:
        raise ConfigError(f"transform.encoder: there is no folder {encoder!r}.")
    return _download(encoder, revision)


@lru_cache(maxsize=8)
def _download(encoder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # No *.py: code from the hub is not run. No subfolders: they hold the same weights in other formats.
        patterns = [f"*{suffix}" for suffix in FILES if suffix != ".bin"]
        return Path(snapshot_download(encoder, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # unknown model or revision, gated model, or unreachable hub
        raise ConfigError(
            f"transform.encoder: {encoder!r} is not a folder, and the hub download failed ({type(error).__name__})."
        ) from error


def _versions(folder: Path) -> Versions:
    """Return the versions of an encoder's files, which are part of the cache keys below."""
    return tuple(file_versions(folder, [f"*{suffix}" for suffix in FILES]).items())


@lru_cache(maxsize=2)
def _load(folder: Path, versions: Versions) -> tuple[Any, Any]:
    """Return the tokenizer, and the model in fp32 on the CPU."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # Transformers raises almost any exception type for a broken folder
        reason = advice(error) or str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"transform.encoder: {str(folder)!r} cannot be loaded: {reason}") from error
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):
        raise ConfigError(f"transform.encoder: {str(folder)!r} lacks weights, such as {missing[0]}.")
    return tokenizer, (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def _limit(folder: Path) -> float:
    tokenizer, model = _load(folder, _versions(folder))
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    return float(min(tokenizer.model_max_length, positions))


def _most_tokens(folder: Path) -> int:
    limit = _limit(folder)
    return int(limit) if limit < 1e6 else UNLIMITED


@lru_cache(maxsize=4096)
def _encode(folder: Path, text: str, pooling: str, layer: int | None, versions: Versions) -> Tensor:
    """Return a layer of an encoder for a text: (n, encoder width). Computed once per text, not once per point."""
    import torch

    tokenizer, model = _load(folder, versions)
    tokens = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    count = tokens["input_ids"].shape[1]
    vocabulary = model.get_input_embeddings().num_embeddings
    if (largest := int(tokens["input_ids"].max())) >= vocabulary:
        raise TransformError(
            f"the encoder's tokenizer returns token {largest}, but the encoder has only {vocabulary} rows"
        )
    if count > _limit(folder):
        raise TransformError(f"the text has {count} tokens for the encoder, whose limit is {_limit(folder):g}")
    is_text = tokens["special_tokens_mask"][0] == 0
    if not is_text.any():
        raise TransformError(f"the text {text[:40]!r} has no tokens for the encoder")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=layer is not None)
    if layer is None:
        states = output.last_hidden_state[0]
    else:
        count = len(output.hidden_states)
        if not -count <= layer < count:
            raise ConfigError(
                f"transform.layer must be between {-count} and {count - 1} for {folder.name!r}; got {layer}. "
                "0 is its input embeddings."
            )
        states = output.hidden_states[layer][0]
    pooled: dict[str, Callable[[], Tensor]] = {
        "none": lambda: states[is_text],
        "mean": lambda: states.mean(0)[None],
        "cls": lambda: states[:1],
        "last": lambda: states[is_text][-1:],
    }
    return pooled[pooling]()


def _layers(path: str) -> Layers:
    """Return the weights and biases of a projector's layers, first to last."""
    tensors = load_tensors(path, config_key="transform.projector")
    names = [name for name in tensors if name.rpartition(".")[2] == "weight"]
    # Numeric order, so that layer 10 comes after layer 2.
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    layers = [(tensors[name], tensors.get(name[: -len("weight")] + "bias")) for name in names]
    used_tensors = len(layers) + sum(bias is not None for _, bias in layers)
    valid = used_tensors == len(tensors) and all(weight.ndim == 2 for weight, _ in layers)
    valid &= all(bias is None or bias.shape == weight.shape[:1] for weight, bias in layers)
    if not layers or not valid or any(a.shape[0] != b.shape[1] for (a, _), (b, _) in pairwise(layers)):
        shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:8])
        raise ConfigError(
            f"transform.projector: {path!r} holds no projector. Expected one or more successive linear layers, "
            f"each with a weight [out, in] and a bias [out]; found {shown}."
        )
    return layers
