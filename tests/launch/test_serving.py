"""A worker process whose shard cannot be finished ends, so that its coordinator runs the shard again."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sweep.console import signals
from sweep.console.terminal import Terminal
from sweep.launch.manifest import Manifest
from sweep.launch.shard_worker import ShardWorker

SCRIPT = """
import os, sys
from sweep import shard

class Worker:
    def __init__(self, terminal): ...
    def __enter__(self): return self
    def __exit__(self, *error): ...
    def drain(self, until=None): ...
    def generate(self, manifest, index, patience):
        def finish():
            if index == 1:
                raise OSError(28, "No space left on device")
        return finish

shard.ShardWorker, shard.read = Worker, lambda path: None
shard.serve(sys.stdin, os.fdopen(int(sys.argv[1]), "w"), sys.argv[2])
"""


def test_a_shard_that_cannot_be_finished_ends_the_worker(tmp_path: os.PathLike[str]) -> None:
    read, write = os.pipe()
    command = [sys.executable, "-c", SCRIPT, str(write), os.path.join(tmp_path, "log")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[write], text=True)
    os.close(write)
    assert process.stdin is not None
    process.stdin.write('["plan", 0]\n["plan", 1]\n')
    process.stdin.flush()  # left open, as by a coordinator that waits for the answer
    try:
        with os.fdopen(read) as answers:
            assert answers.read() == '[0, 0, ""]\n'
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.stdin.close()
    with open(os.path.join(tmp_path, "log"), encoding="utf-8") as log:
        assert "Shard 1 cannot be finished." in log.read()


def test_a_shard_that_is_interrupted_after_its_requests_is_left_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its lock is released, so that another worker need not wait until it expires."""
    left: list[type | None] = []

    def generate(worker: ShardWorker, manifest: Manifest, index: int, patience: float, cleanup: ExitStack) -> None:
        cleanup.push(lambda kind, error, traceback: left.append(kind))

    def interrupted(worker: ShardWorker, until: Any = None) -> None:
        raise signals.Interrupted(143)

    monkeypatch.setattr(ShardWorker, "_generate", generate)
    monkeypatch.setattr(ShardWorker, "drain", interrupted)
    manifest = Manifest(folder=tmp_path, sweep_id="s", command="", workdir=".", parent=None, shards=1, written=0.0)
    with pytest.raises(signals.Interrupted):
        ShardWorker(Terminal()).work(manifest, 0)
    assert left == [signals.Interrupted]
