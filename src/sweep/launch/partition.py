"""Partition of a plan's points into shards of about equal work."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.planning.plan import PlannedPoint


def split(points: Sequence[PlannedPoint], count: int) -> list[list[PlannedPoint]]:
    """Split points, in order, into shards of about equal work. Each shard needs one engine only.

    A control is in the shard of its first point.

    Args:
        points: the points.
        count: target number of shards. More are made where the engine changes.
    """
    total = sum(map(work, points)) or 1
    shards: list[list[PlannedPoint]] = []
    done = 0
    for planned in points:
        target = min(count - 1, done * count // total)
        same_engine = shards and shards[-1][0].point.engine_spec == planned.point.engine_spec
        if not same_engine or (target >= len(shards) and not shards[-1][-1].point.is_control):
            shards.append([])
        shards[-1].append(planned)
        done += work(planned)
    return shards


def work(planned: PlannedPoint) -> int:
    """Return a point's cost in tokens: the most that it can generate, plus a tenth of its prompt tokens."""
    sampling = planned.point.config.sampling
    prompt_tokens = sum(len(encoded.token_ids) for encoded in planned.prompts)
    return planned.runs * (len(planned.prompts) * sampling.n * sampling.max_tokens + prompt_tokens // 10)
