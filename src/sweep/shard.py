"""Run one shard of a plan: `python -m sweep.shard MANIFEST INDEX`.

Schedulers start one such process for each shard. MANIFEST is the plan's `manifest.json` or its folder. INDEX counts
from 0. An index beyond the last shard has nothing to do, so a scheduler may have more tasks than there are shards.

Exit codes are those of `sweep`: 0 all points of the shard are done, 1 some failed or were not published, 2 the plan
cannot be used, 75 another process is running the shard, 129, 130 or 143 interrupted.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TextIO

import sweep.util.environment  # noqa: F401 - before the libraries that read these variables
from sweep.console import signals, streams
from sweep.console.terminal import Terminal
from sweep.errors import ConfigError, SweepError
from sweep.launch.manifest import read
from sweep.launch.shard_server import ShardServer
from sweep.launch.shard_worker import ShardWorker
from sweep.util.counts import counted
from sweep.util.redaction import redact


def main() -> None:
    """Run the shard that the command line names, and exit."""
    streams.install()
    arguments = sys.argv[1:]
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print("usage: python -m sweep.shard MANIFEST INDEX", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    signals.install()
    terminal = Terminal()
    try:
        manifest, index = read(Path(arguments[0])), int(arguments[1])
        if index >= manifest.shards:
            terminal.say(
                f"Nothing to do for shard {index}: the plan has {counted(manifest.shards, 'shard')}, numbered from 0."
            )
            return
        manifest.enter_workdir()
        with ShardWorker(terminal) as worker, terminal.divert(manifest.log(f"shard-{index:05d}"), verbose=False):
            worker.work(manifest, index)
    except SweepError as error:
        print(streams.visible(f"sweep: {redact(str(error))}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except signals.Interrupted as end:
        signals.leave(int(str(end.code)))


def serve(requests: TextIO, answers: TextIO, log: str) -> None:
    """Run the shards that are requested, until the stream of requests ends.

    Args:
        requests: Lines `[MANIFEST, INDEX]`.
        answers: Receives a line `[INDEX, EXIT_CODE, REASON]` for each request.
        log: File for the log.
    """
    signals.install()
    try:
        terminal = Terminal()
        with terminal.divert(Path(log), verbose=False), ShardWorker(terminal) as worker:
            server = ShardServer(worker, partial(_answer, answers))
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read, args=(requests, lines), name="requests", daemon=True).start()
            while True:
                server.drain(until=lambda: not lines.empty())
                if (line := lines.get()) is None:
                    break
                path, index = json.loads(line)
                try:
                    manifest = read(Path(path))
                except SweepError as error:
                    server.fail(index, error)
                else:
                    server.begin(manifest, index)
            server.close()
    except signals.Interrupted as end:
        signals.leave(int(str(end.code)))


def _read(requests: TextIO, lines: queue.Queue[str | None]) -> None:
    try:
        for line in requests:
            lines.put(line)
    finally:
        lines.put(None)


def _answer(answers: TextIO, index: int, code: int, reason: str) -> None:
    answers.write(json.dumps([index, code, reason]) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
