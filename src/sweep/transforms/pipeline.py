"""Pipelines: successive transforms, each on its own span, with the resulting order of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.core.seeds import derive_seed
from sweep.errors import TransformError
from sweep.inputs.span import Span
from sweep.transforms._math import share
from sweep.transforms.base import Rearrangement, Transform
from sweep.transforms.context import Context, Corpus
from sweep.transforms.rows import Rows, rearrange, require_rows
from sweep.util.digests import code_digest, file_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTROLS = ("noise", "direction")


@dataclass(frozen=True, slots=True)
class Dose:
    """Requested dose of a transform, and the dose achieved after the cast, in the transform's unit."""

    requested: float
    achieved: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A transform on a span.

    Attributes:
        transform: The transform.
        span: Embedding rows to change: all, content, template, injected, or a mapping such as {substring: blue} or
            {role: user}; null means the transform's default.
        control: Replace each row's change by a random one of equal norm: noise (a direction for each row) or direction
            (one direction for all rows of all prompts); null means the transform's own change.
    """

    transform: Transform
    span: Span
    control: str | None = None

    def apply(
        self, rows: Rows, prompt_id: str, corpus: Corpus, seeds: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Rows, Dose | None]:
        """Return the prompt with the span's rows transformed, and the dose if the transform has one.

        Args:
            rows: the prompt's rows.
            prompt_id: the prompt's id.
            corpus: the sweep's prompts.
            seeds: `Context.seed` and `Context.shared_seed`.
            dtype: the engine's dtype, in which the achieved dose is measured.

        Raises:
            TransformError: the span is empty, or the transform failed or returned invalid rows.
        """
        if rows.origins is None:
            indices = corpus.numbers(self.span, prompt_id)
        else:
            indices = self.span.rows(corpus.layout(prompt_id), rows.origins, len(rows.tensor))
        if self.transform.is_neutral:
            neutral = float(self.transform.neutral or 0.0)
            return rows, Dose(neutral, neutral)
        origins = rows.resolved_origins()
        context = Context(*seeds, corpus, prompt_id, self.span, [origins[i] for i in indices])
        if isinstance(self.transform, Rearrangement):
            result, before, after = rearrange(self.transform, rows, indices, context)
            if self.control is None:
                return result, self._dose(before, after, after, context)
            if after.shape != before.shape:
                raise TransformError(f"control={self.control} needs a transform that keeps the number of rows")
        else:
            before = rows.tensor[_index(indices)]
            after = self.transform.apply(before, context)
            require_rows(after, before.shape)
        if self.control is not None:
            after = before + _random_of_equal_norm(after - before, self.control, context.fork("control"))
        # A control replaces the transform's change, so no dose was given.
        dose = None if self.control else self._dose(before, after, after.to(dtype).float(), context)
        tensor = rows.tensor.clone()
        tensor[_index(indices)] = after
        return replace(rows, tensor=tensor), dose

    def _dose(self, before: Tensor, exact: Tensor, sent: Tensor, context: Context) -> Dose | None:
        if self.transform.dose is None:
            return None
        requested = self.transform.requested(context)
        if self.transform.proportional:
            fraction = share(sent - before, exact - before)
            achieved = None if fraction is None else fraction * requested
        else:
            achieved = self.transform.achieved(before, sent, context)
        return None if achieved is None else Dose(requested, achieved)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A point's transforms, in order. Immutable.

    Attributes:
        stages: the transforms with their spans.
        pins: files that the transforms read, with their digests at planning time.
        codes: for each stage, the digest of the transform's module; None for built-in transforms. See `code_digests`.
    """

    stages: tuple[Stage, ...]
    pins: tuple[tuple[Path, str], ...] = field(default=(), compare=False, repr=False)
    codes: tuple[str | None, ...] = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """Names of the transforms, such as `scale+noise`."""
        return "+".join(stage.transform.name for stage in self.stages)

    @property
    def is_identity(self) -> bool:
        """Whether this is the control's pipeline, with no transform but `identity`."""
        return all(stage.transform.name == "identity" for stage in self.stages)

    def pinned(self, digest: Callable[[Path], str]) -> Pipeline:
        """Return a copy that raises in `apply` if its files or its code have changed since this call.

        Args:
            digest: returns the digest of a file.
        """
        paths = dict.fromkeys(path for stage in self.stages for path in stage.transform.files())
        codes = self.code_digests()
        if not paths and not any(codes):
            return self
        return replace(self, pins=tuple((path, digest(path)) for path in paths), codes=codes)

    def apply(
        self, tensor: Tensor, prompt_id: str, corpus: Corpus, seed: int, dtype: torch.dtype
    ) -> tuple[Rows, list[Dose | None]]:
        """Return a prompt's transformed rows in fp32, and each stage's dose.

        Args:
            tensor: the untransformed rows, (n, hidden_size), float32.
            prompt_id: the prompt's id.
            corpus: the sweep's prompts.
            seed: the point's seed.
            dtype: the engine's dtype, in which achieved doses are measured.

        Raises:
            TransformError: a span is empty, a transform failed or returned invalid rows, or its files or code have
                changed.
        """
        rows, doses = Rows(tensor), []
        for place, stage in enumerate(self.stages):
            seeds = derive_seed(seed, prompt_id, place), derive_seed(seed, place)
            try:
                rows, dose = stage.apply(rows, prompt_id, corpus, seeds, dtype)
            except TransformError as error:
                raise TransformError(f"{stage.transform.name}: {error}") from error
            except Exception as error:  # a user's transform may raise any exception
                raise TransformError(f"{stage.transform.name} raised {type(error).__name__}: {error}") from error
            doses.append(dose)
        self._expect_unchanged()
        return rows, doses

    def _expect_unchanged(self) -> None:
        """Raise a `TransformError` if files or code differ from those in the fingerprint."""
        for path, digest in self.pins:
            try:
                same = file_digest(path) == digest
            except OSError as error:
                raise TransformError(f"{path} cannot be read: {error.strerror or error}") from error
            if not same:
                raise TransformError(f"{path} has changed since the sweep was planned. Run the command again")
        if self.codes and self.codes != self.code_digests():
            raise TransformError("the transform's module has changed since the plan. Run the command again")

    def code_digests(self) -> tuple[str | None, ...]:
        """Return the digest of each user transform's module, as imported by this process; None for built-in ones."""
        return tuple(_user_code_digest(type(stage.transform)) for stage in self.stages)

    def facts(self, corpus: Corpus) -> dict[str, float]:
        """Return numbers about the transforms, see `Transform.facts`; in a composition `STAGE/NAME`."""
        several = len(self.stages) > 1
        return {
            f"{number}/{name}" if several else name: value
            for number, stage in enumerate(self.stages)
            for name, value in stage.transform.facts(corpus).items()
        }

    def check(self, corpus: Corpus) -> None:
        """Read and check the external inputs of all transforms.

        Raises:
            ConfigError: see `Transform.check`.
        """
        for stage in self.stages:
            stage.transform.check(corpus)

    def max_rows(self, count: int) -> int:
        """Return the maximum number of rows that a prompt of `count` rows can become."""
        for stage in self.stages:
            count = max(count, stage.transform.max_rows(count))
        return count

    def parameters(self) -> dict[str, Any]:
        """Return the stages' parameters by override name: `transform.factor`, `transform.0.factor`."""
        flat: dict[str, Any] = {}
        for prefix, stage in self._keys():
            flat |= {f"{prefix}.{key}": value for key, value in _flat(stage.transform)}
            flat |= {f"{prefix}.span": str(stage.span), f"{prefix}.control": stage.control or "none"}
            if len(self.stages) > 1:
                flat[f"{prefix}.name"] = stage.transform.name
        return flat

    def identity(self, digest: Callable[[Path], str] = file_digest) -> list[dict[str, Any]]:
        """Return the pipeline's part of the fingerprint, which is equal for pipelines with the same effect.

        Files, and modules of user transforms, count by their contents, not by their paths.

        Args:
            digest: returns the digest of a file.
        """
        return [
            {
                "name": stage.transform.name,
                "parameters": without_added(
                    _without_paths(asdict(stage.transform), stage.transform.paths), stage.transform.added
                ),
                "span": stage.span.config(),
                "control": stage.control,
                "files": [digest(path) for path in stage.transform.files()],
                "code": _user_code_digest(type(stage.transform)),
            }
            for stage in self.stages
        ]

    def config(self) -> Any:
        """Return the configuration that creates these stages."""
        stages = [
            {
                "name": stage.transform.name,
                **asdict(stage.transform),
                "span": stage.span.config(),
                "control": stage.control,
            }
            for _, stage in self._keys()
        ]
        return stages[0] if len(stages) == 1 else stages

    def _keys(self) -> Iterator[tuple[str, Stage]]:
        for place, stage in enumerate(self.stages):
            yield ("transform" if len(self.stages) == 1 else f"transform.{place}"), stage


def _index(indices: Sequence[int]) -> Any:
    """Return an index for rows: a slice if they are contiguous, which is much faster than a list."""
    contiguous = indices[-1] - indices[0] + 1 == len(indices)
    return slice(indices[0], indices[-1] + 1) if contiguous else list(indices)


def _random_of_equal_norm(change: Tensor, kind: str, context: Context) -> Tensor:
    import torch

    norms = change.norm(dim=-1, keepdim=True)
    if kind == "noise":
        random = torch.randn(change.shape, generator=context.generator())
    else:
        random = torch.randn(change.shape[-1], generator=context.generator(shared=True))
    scaled: Tensor = norms * random / random.norm(dim=-1, keepdim=True)
    return scaled


def _without_paths(parameters: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    for path in paths:
        *parents, key = path.split(".")
        section = parameters
        for parent in parents:
            section = section[parent]
        section[key] = section[key] is not None
    return parameters


def without_added(parameters: dict[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a transform's plain parameters without those at the values of `Transform.added`."""
    result = parameters
    for path, default in added.items():
        first, _, rest = path.partition(".")
        value = result.get(first)
        if rest:
            if isinstance(value, dict):
                result = result | {first: without_added(value, {rest: default})}
        elif first in result and value == default:
            result = {key: kept for key, kept in result.items() if key != first}
    return result


def _user_code_digest(transform: type[Transform]) -> str | None:
    """Return the digest of a user transform's module; None for a built-in transform."""
    return None if transform.__module__.startswith("sweep.transforms.") else code_digest(transform)


def _flat(transform: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a dataclass's fields, nested ones included; mappings as JSON."""
    for parameter in fields(transform):
        value = getattr(transform, parameter.name)
        if is_dataclass(value):
            yield from ((f"{parameter.name}.{key}", inner) for key, inner in _flat(value))
        elif value is not None:
            yield parameter.name, json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
