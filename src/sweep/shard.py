"""One shard of a plan: `python -m sweep.shard MANIFEST INDEX`, which schedulers call for each.

MANIFEST is the plan's `manifest.json` or its folder, INDEX a number from 0.  A number beyond the last shard has nothing
to do, so that a scheduler may have more tasks than there are shards.  Exit codes are those of `sweep`: 0 all points of
the shard are done, 1 some failed, 2 the plan cannot be used, 75 another process is at work on the shard, 130/143
interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TextIO

import sweep._environment  # noqa: F401 - before the libraries that it is for
from sweep import signals
from sweep.errors import ConfigError, SweepError
from sweep.redaction import redact
from sweep.shards.manifest import read
from sweep.shards.worker import ShardWorker
from sweep.terminal import Terminal


def main() -> None:
    """Work off one shard and exit."""
    arguments = sys.argv[1:]
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print("usage: python -m sweep.shard MANIFEST INDEX", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    signals.install()
    terminal = Terminal()
    try:
        manifest, index = read(Path(arguments[0])), int(arguments[1])
        if index >= manifest.shards:
            terminal.say(f"The plan has {manifest.shards} shards; there is nothing to do for number {index}.")
            return
        manifest.enter()
        with ShardWorker(terminal) as worker, terminal.divert(manifest.log(f"shard-{index:05d}"), verbose=False):
            worker.work(manifest, index)
    except SweepError as error:
        print(f"sweep: {redact(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except signals.Interrupted as end:
        signals.leave(int(str(end.code)))


def serve(asked: TextIO, answers: TextIO, log: str) -> None:
    """Work off shards as they are asked for, a line `[MANIFEST, INDEX]` each, until there are no more lines.

    Each is answered by a line `[INDEX, EXIT_CODE, REASON]`.  `log` is the file for what is logged.
    """
    signals.install()
    try:
        terminal = Terminal()
        with terminal.divert(Path(log), verbose=False), ShardWorker(terminal) as worker:
            for line in asked:
                path, index = json.loads(line)
                code, reason = 0, ""
                try:
                    worker.work(read(Path(path)), index)
                except SweepError as error:
                    code, reason = error.exit_code, redact(str(error))
                answers.write(json.dumps([index, code, reason]) + "\n")
                answers.flush()
    except signals.Interrupted as end:
        signals.leave(int(str(end.code)))


if __name__ == "__main__":
    main()
