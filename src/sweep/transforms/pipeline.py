"""Transforms one after the other, each on its own span, and what became of the rows and their order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from sweep.disk.digests import code_digest, file_digest
from sweep.errors import TransformError
from sweep.seeds import derive_seed
from sweep.transforms._math import share
from sweep.transforms.base import Rearrangement, Transform
from sweep.transforms.context import Context, Corpus
from sweep.transforms.rows import Rows, rearrange, require_rows
from sweep.transforms.span import Span

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTROLS = ("noise", "direction")


@dataclass(frozen=True, slots=True)
class Dose:
    """How much a transform was asked to do, and how much it did after the cast, in its own unit."""

    requested: float
    achieved: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A transform on a span.

    Attributes:
        control: in place of the transform's change of each row, a random one of equal norm: `noise`, in a direction of
            the row's own; `direction`, in one direction that all rows of all prompts share.
    """

    transform: Transform
    span: Span
    control: str | None = None

    def apply(
        self, rows: Rows, prompt_id: str, corpus: Corpus, seeds: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Rows, Dose | None]:
        """Return the prompt with the rows of the span transformed, and the dose if the transform has one.

        Raises:
            TransformError: the span is empty, or the transform failed or broke its contract.
        """
        if rows.origins is None:
            chosen = corpus.numbers(self.span, prompt_id)
        else:
            chosen = self.span.rows(corpus.layout(prompt_id), rows.origins, len(rows.tensor))
        if self.transform.is_neutral:
            neutral = float(self.transform.neutral or 0.0)
            return rows, Dose(neutral, neutral)
        stems = rows.stems()
        context = Context(*seeds, corpus, prompt_id, self.span, [stems[i] for i in chosen])
        if isinstance(self.transform, Rearrangement):
            result, before, after = rearrange(self.transform, rows, chosen, context)
            if self.control is None:
                return result, self._dose(before, after, after, context)
            if after.shape != before.shape:
                raise TransformError(f"control={self.control} needs a transform that keeps the number of rows")
        else:
            before = rows.tensor[_index(chosen)]
            after = self.transform.apply(before, context)
            require_rows(after, before.shape)
        if self.control is not None:
            after = before + _random_of_equal_norm(after - before, self.control, context.fork("control"))
        # A control's change is not the transform's, whose dose it has not been given.
        dose = None if self.control else self._dose(before, after, after.to(dtype).float(), context)
        tensor = rows.tensor.clone()
        tensor[_index(chosen)] = after
        return replace(rows, tensor=tensor), dose

    def _dose(self, before: Tensor, exact: Tensor, sent: Tensor, context: Context) -> Dose | None:
        if self.transform.dose is None:
            return None
        requested = self.transform.requested(context)
        if self.transform.proportional:
            left = share(sent - before, exact - before)
            achieved = None if left is None else left * requested
        else:
            achieved = self.transform.achieved(before, sent, context)
        return None if achieved is None else Dose(requested, achieved)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A point's transforms, in their order."""

    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """The transforms' names: `scale+noise`."""
        return "+".join(stage.transform.name for stage in self.stages)

    @property
    def is_identity(self) -> bool:
        """Whether it is the control's: nothing but `identity`."""
        return all(stage.transform.name == "identity" for stage in self.stages)

    def apply(
        self, tensor: Tensor, prompt_id: str, corpus: Corpus, seed: int, dtype: torch.dtype
    ) -> tuple[Rows, list[Dose | None]]:
        """Return a prompt's transformed rows, still in fp32, and each stage's dose.

        Args:
            tensor: the untransformed rows, [n, hidden_size] in fp32.
            prompt_id: the prompt.
            corpus: the prompts that it is among.
            seed: the point's.
            dtype: the engine's, in which achieved doses are measured.

        Raises:
            TransformError: a span is empty, or a transform failed or broke its contract.
        """
        rows, doses = Rows(tensor), []
        for place, stage in enumerate(self.stages):
            seeds = derive_seed(seed, prompt_id, place), derive_seed(seed, place)
            try:
                rows, dose = stage.apply(rows, prompt_id, corpus, seeds, dtype)
            except TransformError as error:
                raise TransformError(f"{stage.transform.name}: {error}") from error
            except Exception as error:  # a user's transform may raise anything
                raise TransformError(f"{stage.transform.name} raised {type(error).__name__}: {error}") from error
            doses.append(dose)
        return rows, doses

    def check(self, corpus: Corpus) -> None:
        """Read and check what the transforms need from outside.  Raises ConfigError."""
        for stage in self.stages:
            stage.transform.check(corpus)

    def max_rows(self, count: int) -> int:
        """Return the most rows that a prompt of `count` rows can become."""
        for stage in self.stages:
            count = max(count, stage.transform.max_rows(count))
        return count

    def parameters(self) -> dict[str, Any]:
        """Return the stages' parameters under their override names: `transform.factor`, `transform.0.factor`."""
        flat: dict[str, Any] = {}
        for prefix, stage in self._keys():
            flat |= {f"{prefix}.{key}": value for key, value in _flat(stage.transform)}
            flat |= {f"{prefix}.span": str(stage.span), f"{prefix}.control": stage.control or "none"}
            if len(self.stages) > 1:
                flat[f"{prefix}.name"] = stage.transform.name
        return flat

    def identity(self) -> list[dict[str, Any]]:
        """Return what the transforms are: equal for pipelines that do the same.

        Files count by their contents, wherever they lie, and so does the module of a transform that is not ours.
        """
        return [
            {
                "name": stage.transform.name,
                "parameters": _without_paths(asdict(stage.transform), stage.transform.paths),
                "span": stage.span.config(),
                "control": stage.control,
                "files": [file_digest(path) for path in stage.transform.files()],
                "code": _own_code(type(stage.transform)),
            }
            for stage in self.stages
        ]

    def config(self) -> Any:
        """Return the stages as a configuration that makes them again."""
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


def _index(chosen: Sequence[int]) -> Any:
    """Return what picks some rows: a slice where it can be, which takes a fraction of a list's time."""
    contiguous = chosen[-1] - chosen[0] + 1 == len(chosen)
    return slice(chosen[0], chosen[-1] + 1) if contiguous else list(chosen)


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
        inner = parameters
        for parent in parents:
            inner = inner[parent]
        inner[key] = inner[key] is not None
    return parameters


def _own_code(transform: type[Transform]) -> str | None:
    """Return the digest of the module of a transform that is not this project's."""
    return None if transform.__module__.startswith("sweep.transforms.") else code_digest(transform)


def _flat(transform: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a dataclass and of those within it; a mapping, whose keys may be anything, as JSON."""
    for field in fields(transform):
        value = getattr(transform, field.name)
        if is_dataclass(value):
            yield from ((f"{field.name}.{key}", inner) for key, inner in _flat(value))
        elif value is not None:
            yield field.name, json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
