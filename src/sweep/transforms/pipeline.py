"""Transforms one after the other, each on its own span, and what became of the rows and their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import TransformError
from sweep.seeds import derive_seed
from sweep.transforms._math import share
from sweep.transforms.base import Rearrangement, Transform
from sweep.transforms.context import Context, Corpus
from sweep.transforms.span import Origins, Span

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTROLS = ("noise", "direction")


@dataclass(frozen=True, slots=True)
class Rows:
    """A prompt's rows.

    Attributes:
        tensor: [n, hidden_size] in fp32.
        origins: for each row the prompt's tokens that it stems from; None while they are the prompt's own, in order.
    """

    tensor: Tensor
    origins: Origins | None = None

    def stems(self) -> list[tuple[int, ...]]:
        """Return `origins`, spelled out."""
        return list(self.origins) if self.origins is not None else [(i,) for i in range(len(self.tensor))]


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
            return _rearrange(self.transform, rows.tensor, stems, chosen, context)
        # A slice is read and written in a fraction of the time that a list of numbers takes.
        contiguous = chosen[-1] - chosen[0] + 1 == len(chosen)
        place: Any = slice(chosen[0], chosen[-1] + 1) if contiguous else chosen
        before = rows.tensor if len(chosen) == len(rows.tensor) else rows.tensor[place]
        after = self.transform.apply(before, context)
        _check(self.transform, after, before.shape)
        if self.control is not None:
            after = before + _random_of_equal_norm(after - before, self.control, context.fork("control"))
        # A control's change is not the transform's, whose dose it has not been given.
        dose = None if self.control else _dose(self.transform, before, after, after.to(dtype).float(), context)
        if before is rows.tensor:
            return Rows(after, rows.origins), dose
        result = rows.tensor.clone()
        result[place] = after
        return Rows(result, rows.origins), dose


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
            flat |= {f"{prefix}.{key}": value for key, value in _flat(asdict(stage.transform)) if value is not None}
            flat |= {f"{prefix}.span": str(stage.span), f"{prefix}.control": stage.control or "none"}
            if len(self.stages) > 1:
                flat[f"{prefix}.name"] = stage.transform.name
        return flat

    def identity(self) -> list[dict[str, Any]]:
        """Return what the transforms are, files by their contents: equal for pipelines that do the same."""
        return [
            {
                "name": stage.transform.name,
                **asdict(stage.transform),
                "span": asdict(stage.span),
                "control": stage.control,
                "files": [_digest(path, path.stat().st_mtime_ns) for path in stage.transform.files()],
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


def _rearrange(
    transform: Rearrangement, tensor: Tensor, stems: list[tuple[int, ...]], chosen: list[int], context: Context
) -> tuple[Rows, Dose | None]:
    import torch

    at, pieces, origins, changed = 0, [], [], []
    parts = [(chosen[0], chosen[-1] + 1)] if transform.whole else stretches(chosen)
    for number, (start, stop) in enumerate(parts):
        within = Context(
            context.seed, context.shared_seed, context.corpus, context.prompt_id, context.span, stems[start:stop]
        )
        done = transform.rearrange(tensor[start:stop], within.fork(number) if number else within)
        _check(transform, done.rows, (len(done.parents), tensor.shape[1]))
        pieces += [tensor[at:start], done.rows]
        changed.append(done.rows)
        origins += stems[at:start]
        own = stems[start:stop]
        joined = {parents: _joined(own, parents) for parents in set(done.parents)}
        origins += [joined[parents] for parents in done.parents]
        at = stop
    rows = torch.cat([*pieces, tensor[at:]])
    if not len(rows):
        raise TransformError("no row of the prompt is left")
    given, new = torch.cat([tensor[start:stop] for start, stop in parts]), torch.cat(changed)
    return Rows(rows, [*origins, *stems[at:]]), _dose(transform, given, new, new, context)


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the contiguous stretches [start, stop) of ascending numbers."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    edges = [0, *breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(edges)]


def _joined(stems: Sequence[tuple[int, ...]], parents: tuple[int, ...]) -> tuple[int, ...]:
    if len(parents) == 1:
        return stems[parents[0]]
    return tuple(sorted({token for parent in parents for token in stems[parent]}))


def _check(transform: Transform, rows: Any, shape: Sequence[int]) -> None:
    import torch

    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.float32:
        got = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TransformError(f"must return rows in torch.float32, not {got}")
    if list(rows.shape) != list(shape):
        raise TransformError(f"made rows of shape {list(rows.shape)} of {list(shape)}")


def _dose(transform: Transform, before: Tensor, exact: Tensor, sent: Tensor, context: Context) -> Dose | None:
    if transform.dose is None:
        return None
    requested = float(getattr(transform, transform.dose))
    if transform.proportional:
        left = share(sent - before, exact - before)
        achieved = None if left is None else left * requested
    else:
        achieved = transform.achieved(before, sent, context)
    return None if achieved is None else Dose(requested, achieved)


def _random_of_equal_norm(change: Tensor, kind: str, context: Context) -> Tensor:
    import torch

    norms = change.norm(dim=-1, keepdim=True)
    if kind == "noise":
        random = torch.randn(change.shape, generator=context.generator())
    else:
        random = torch.randn(change.shape[-1], generator=context.generator(shared=True))
    scaled: Tensor = norms * random / random.norm(dim=-1, keepdim=True)
    return scaled


@lru_cache(maxsize=1024)
def _digest(path: Path, modified: int) -> str:
    """Return a file's SHA-256; read once, not once for each point, as long as it is not `modified`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
