"""What a sweep takes: seconds, requests and tokens, of each point and of the batch that all points share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Costs:
    """What a point took.

    Attributes:
        build_seconds: to make its requests, of which transform_seconds in its transforms.
        requests: how many the engine was sent, those of teacher forcing among them.
        prompt_tokens, output_tokens: of those, cached_tokens of the former found in the engine's prefix cache.
        reused: answers that were not generated for it, but taken from the journal of other sweeps.
    """

    build_seconds: float = 0.0
    transform_seconds: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reused: int = 0

    def metrics(self) -> dict[str, float]:
        """Return them as they are published."""
        return {
            "cost/build_seconds": self.build_seconds,
            "cost/transform_seconds": self.transform_seconds,
            "cost/requests": float(self.requests),
            "cost/prompt_tokens": float(self.prompt_tokens),
            "cost/cached_prompt_tokens": float(self.cached_tokens),
            "cost/generated_tokens": float(self.output_tokens),
        }

    def add(self, other: Costs) -> None:
        """Add another point's."""
        for own in fields(self):
            setattr(self, own.name, getattr(self, own.name) + getattr(other, own.name))


@dataclass(slots=True)
class SharedCosts:
    """What a sweep's points took together.

    Attributes:
        points: sums over points.
        engine_starts, engine_start_seconds: how often an engine was started, and how long that took.
        generate_seconds: in which the engine worked, or waited for requests.
        score_seconds, publish_seconds: beside the engine; the former summed over the processes that score.
        report_seconds: at the end.
        gpu_memory_gib: the most that the GPU held; None without one.
    """

    points: Costs = field(default_factory=Costs)
    engine_starts: int = 0
    engine_start_seconds: float = 0.0
    generate_seconds: float = 0.0
    score_seconds: float = 0.0
    publish_seconds: float = 0.0
    report_seconds: float = 0.0
    gpu_memory_gib: float | None = None
    tokens: int = 0

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the seconds of a `with` block to one of the attributes."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.monotonic() - began)

    def count(self, tokens: int, seconds: float) -> None:
        """Add what the engine generated, and how long it took."""
        self.tokens += tokens
        self.generate_seconds += seconds

    def sums(self) -> dict[str, float]:
        """Return what adds up over processes, but for the engines' starts, which are counted where they happen."""
        names = [each.name for each in fields(self) if each.name.endswith("_seconds") or each.name == "tokens"]
        own = {name: float(getattr(self, name)) for name in names}
        return own | {f"points.{each.name}": float(getattr(self.points, each.name)) for each in fields(self.points)}

    def add(self, sums: Mapping[str, float]) -> None:
        """Add another process's sums."""
        for name, value in sums.items():
            owner, _, attribute = name.rpartition(".")
            target = self.points if owner else self
            setattr(target, attribute, getattr(target, attribute) + value)

    def now(self) -> dict[str, float]:
        """Return what a point is told of the batch that it shared, up to now."""
        speed = self.tokens / self.generate_seconds if self.generate_seconds else 0.0
        told = {"tokens_per_second": speed, "engine_start_seconds": self.engine_start_seconds}
        return told if self.gpu_memory_gib is None else told | {"gpu_memory_gib": self.gpu_memory_gib}

    def metrics(self) -> dict[str, float]:
        """Return them as the sweep's own run is given them."""
        own = {
            f"cost/{each.name}": float(value)
            for each in fields(self)
            if each.name not in ("points", "tokens") and (value := getattr(self, each.name)) is not None
        }
        return own | self.points.metrics() | {"cost/tokens_per_second": self.now()["tokens_per_second"]}
