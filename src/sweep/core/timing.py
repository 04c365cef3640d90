"""Cost accounting: seconds, requests and tokens of each point and of the batch that points share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Costs:
    """Costs of one point. Owned by the main thread until the point is finished, then read by a pool process's copy.

    Attributes:
        build_seconds: time to build its requests.
        transform_seconds: the part of build_seconds spent in transforms.
        requests: number of requests sent to the engine, teacher forcing included.
        prompt_tokens: prompt tokens of these requests.
        cached_tokens: the part of prompt_tokens found in the engine's prefix cache.
        output_tokens: tokens generated for these requests.
        reused: completions taken from other sweeps' journals instead of being generated.
    """

    build_seconds: float = 0.0
    transform_seconds: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reused: int = 0

    def metrics(self) -> dict[str, float]:
        """Return the costs under their published metric names."""
        return {
            "cost/build_seconds": self.build_seconds,
            "cost/transform_seconds": self.transform_seconds,
            "cost/requests": float(self.requests),
            "cost/prompt_tokens": float(self.prompt_tokens),
            "cost/cached_prompt_tokens": float(self.cached_tokens),
            "cost/generated_tokens": float(self.output_tokens),
        }

    def add(self, other: Costs) -> None:
        """Add another point's costs."""
        for field_ in fields(self):
            setattr(self, field_.name, getattr(self, field_.name) + getattr(other, field_.name))


@dataclass(slots=True)
class SharedCosts:
    """Costs of a sweep that its points share.

    Written by the main, scoring and publishing threads; each field has one writer at a time.

    Attributes:
        points: sums over points.
        engine_starts: number of engine starts.
        engine_start_seconds: total time of these starts.
        generate_seconds: time in which the engine ran or waited for requests.
        score_seconds: scoring time in parallel to the engine, summed over scoring processes.
        publish_seconds: publishing time in parallel to the engine.
        report_seconds: time for the report at the end.
        gpu_memory_gib: peak GPU memory in GiB; None without a GPU.
        tokens: number of generated tokens.
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
        """Add the duration of a `with` block to the attribute `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.monotonic() - start)

    def count(self, tokens: int, seconds: float) -> None:
        """Add a number of generated tokens and the seconds they took."""
        self.tokens += tokens
        self.generate_seconds += seconds

    def sums(self) -> dict[str, float]:
        """Return the costs that add up over processes, except engine starts, which are counted where they happen."""
        names = [field_.name for field_ in fields(self) if field_.name.endswith("_seconds") or field_.name == "tokens"]
        shared = {name: float(getattr(self, name)) for name in names}
        return shared | {
            f"points.{field_.name}": float(getattr(self.points, field_.name)) for field_ in fields(self.points)
        }

    def add(self, sums: Mapping[str, float]) -> None:
        """Add the sums of another process."""
        for name, value in sums.items():
            owner, _, attribute = name.rpartition(".")
            target = self.points if owner else self
            setattr(target, attribute, getattr(target, attribute) + value)

    def now(self) -> dict[str, float]:
        """Return the shared metrics of a point, at this moment."""
        speed = self.tokens / self.generate_seconds if self.generate_seconds else 0.0
        metrics = {"tokens_per_second": speed, "engine_start_seconds": self.engine_start_seconds}
        return metrics if self.gpu_memory_gib is None else metrics | {"gpu_memory_gib": self.gpu_memory_gib}

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the sweep's parent run."""
        shared = {
            f"cost/{field_.name}": float(value)
            for field_ in fields(self)
            if field_.name not in ("points", "tokens") and (value := getattr(self, field_.name)) is not None
        }
        return shared | self.points.metrics() | {"cost/tokens_per_second": self.now()["tokens_per_second"]}
