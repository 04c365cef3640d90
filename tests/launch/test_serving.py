"""A worker process whose shard cannot be finished ends, so that its coordinator runs the shard again."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, sys
from sweep import shard

class Worker:
    def __init__(self, terminal): ...
    def __enter__(self): return self
    def __exit__(self, *error): ...
    def drain(self, until=None): ...
    def generate(self, manifest, index):
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
