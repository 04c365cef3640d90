"""How vLLM dies: how that is noticed, what is said of it, and that nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Hashable, Mapping
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.engines.faults import OUT_OF_MEMORY, describe, first_line, kind
from sweep.errors import EngineDied, EngineError

if TYPE_CHECKING:
    from psutil import Process  # type: ignore[import-untyped]  # comes with vLLM

GRACE = 1.0  # seconds that a core is given to end by itself: it has nothing to save
END_TIMEOUT = 5.0  # seconds from the core's end to that of its workers, which the kernel kills
EXIT_CODE_TIMEOUT = 0.5  # seconds; it can be read but once, which another thread of vLLM's may be about to do

NAN_LOGITS = "NaNs detected in logits"
# The number under which vLLM was asked, of an id like `0_17-9f86d081`; before it stands the sample's, behind it chance.
INTERNAL_ID = re.compile(r"'(?:\d+_)?(\d+)-\w+'")
WORKER = re.compile(r"Worker|spawn_main")  # in the command lines of the core's children, some of which may end


class Remains:
    """The processes of a `vllm.LLMEngine`, and what they leave behind; none and nothing when it runs in this one."""

    def __init__(self, engine: Any, last_words: Path) -> None:
        import psutil

        self._last_words = last_words
        client = engine.engine_core
        self._resources = getattr(client, "resources", None)
        self._cores = list(getattr(getattr(self._resources, "engine_manager", None), "processes", ()))
        self._ended = ""
        self._processes: list[Process] = []
        workers: list[Process] = []
        for core in self._cores:
            with suppress(psutil.NoSuchProcess):  # it died at once, and is seen to have
                process = psutil.Process(core.pid)
                self._processes += [process, *process.children(recursive=True)]
                workers += [child for child in process.children() if WORKER.search(" ".join(child.cmdline()))]
        if self._cores:
            names = {core.sentinel: "" for core in self._cores} | _sentinels(workers)
            threading.Thread(target=self._watch, args=(names, client.outputs_queue), daemon=True).start()

    def is_death(self, error: Exception) -> bool:
        """Return whether the engine died when it was handed a request, and did not only refuse it."""
        dead = getattr(self._resources, "engine_dead", False)
        return dead or _is_dead_error(error) or OUT_OF_MEMORY.search(describe(error)) is not None

    def death(self, error: Exception, in_flight: Mapping[str, Hashable]) -> EngineDied:
        """Return what to say of an engine that died of `error`.

        Args:
            in_flight: the requests' keys by the numbers under which vLLM was asked.
        """
        gone = _is_dead_error(error)
        text = _read(self._last_words) if gone else describe(error)
        if NAN_LOGITS in text:
            named = dict.fromkeys(INTERNAL_ID.findall(text))
            culprits = tuple(in_flight[number] for number in named if number in in_flight)
            return EngineDied(f"The model computed non-finite logits (vLLM: {NAN_LOGITS})", culprits)
        how = first_line(text) or self._ended or self._signal() or "sweep.log says more"
        return kind(text, EngineDied)(f"vLLM's core process died: {how}" if gone else f"vLLM failed: {how}")

    def clear(self) -> None:
        """Wait until all processes are gone, which hold memory that the next engine needs; kill those that stay."""
        import psutil

        _, alive = psutil.wait_procs(self._processes, timeout=END_TIMEOUT)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=END_TIMEOUT)
        self._last_words.unlink(missing_ok=True)

    def _watch(self, names: dict[int, str], outputs: Any) -> None:
        """Tell a client that waits for a process of its death; vLLM tells it late or, of the core's, never."""
        from vllm.v1.engine.exceptions import EngineDeadError

        ended = {names[sentinel] for sentinel in connection.wait(list(names)) if isinstance(sentinel, int)}
        if "" not in ended:  # with a core, its workers end
            self._ended = ended.pop()
        outputs.put_nowait(EngineDeadError())
        for sentinel, name in names.items():
            if name:
                os.close(sentinel)

    def _signal(self) -> str:
        """Say which signal killed the core, if one did."""
        deadline = time.monotonic() + EXIT_CODE_TIMEOUT
        for core in self._cores:
            while (code := core.exitcode) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if code is not None and code < 0:
                return f"killed by {signal.Signals(-code).name}"
        return ""


def start_error(error: Exception, last_words: Path) -> EngineError:
    """Return what to say of an engine that did not start."""
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return EngineError("vLLM is not installed. engine=transformers does without it")
    text = _read(last_words) or describe(error)
    return kind(text, EngineError)(f"vLLM did not start: {first_line(text)}")


def _sentinels(workers: list[Process]) -> dict[int, str]:
    """Return file descriptors that become readable when a process that is no child of this one ends."""
    found: dict[int, str] = {}
    if hasattr(os, "pidfd_open"):  # Linux
        for worker in workers:
            with suppress(OSError):
                found[os.pidfd_open(worker.pid)] = f"its worker {worker.name()} ended"
    return found


def _is_dead_error(error: Exception) -> bool:
    return type(error).__name__ == "EngineDeadError"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""
