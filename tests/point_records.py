"""A point's record, for tests that need one."""

from __future__ import annotations

from sweep.core.records import PointRecord, Table

RECORD = PointRecord(
    index=0,
    name="factor=2",
    role="point",
    fingerprint="f" * 12,
    started=1.0,
    ended=2.0,
    parameters={},
    axes=(),
    summaries={},
    metrics={},
    tags={"sweep.result": "r"},
    config="seed: 0\n",
)
TABLE = Table(["prompt", "generation"], [["Hello", "there"]])
