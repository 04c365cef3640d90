"""vLLM crashes: detection, error messages and cleanup of processes."""

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

from sweep.engines.request_errors import OUT_OF_MEMORY, describe, error_type, first_line
from sweep.errors import EngineDied, EngineError
from sweep.util.install_check import advice

if TYPE_CHECKING:
    from psutil import Process  # type: ignore[import-untyped]  # comes with vLLM

GRACE = 1.0  # seconds for a core to end by itself: it has nothing to save
END_TIMEOUT = 5.0  # seconds from the end of the core to the end of its workers, which the kernel kills
EXIT_CODE_TIMEOUT = 0.5  # seconds; it can be read only once, and another thread of vLLM may be reading it

GPU_FULL = "CUDA error: out of memory"  # not even a CUDA context fits; PyTorch's allocator says "CUDA out of memory"
NAN_LOGITS = "NaNs detected in logits"
# The request number in an id like `0_17-9f86d081`: sample, request number, random suffix.
INTERNAL_ID = re.compile(r"'(?:\d+_)?(\d+)-\w+'")
WORKER = re.compile(r"Worker|spawn_main")  # in the command lines of the core's children; other children may end


class EngineProcesses:
    """The processes of a `vllm.LLMEngine` and their error file; empty if the engine runs in this process.

    Owned by the thread of the engine. A daemon thread watches the processes.
    """

    def __init__(self, engine: Any, error_file: Path) -> None:
        import psutil

        self._error_file = error_file
        client = engine.engine_core
        self._resources = getattr(client, "resources", None)
        self._cores = list(getattr(getattr(self._resources, "engine_manager", None), "processes", ()))
        self._ended_worker = ""
        self._processes: list[Process] = []
        workers: list[Process] = []
        for core in self._cores:
            with suppress(psutil.NoSuchProcess):  # it crashed at once, which the watch thread detects
                process = psutil.Process(core.pid)
                self._processes += [process, *process.children(recursive=True)]
                workers += [child for child in process.children() if WORKER.search(" ".join(child.cmdline()))]
        if self._cores:
            names = {core.sentinel: "" for core in self._cores} | _sentinels(workers)
            threading.Thread(target=self._watch, args=(names, client.outputs_queue), daemon=True).start()

    def is_crash(self, error: Exception) -> bool:
        """Return whether the engine crashed when a request was added, instead of only rejecting it."""
        dead = getattr(self._resources, "engine_dead", False)
        return dead or _is_dead_error(error) or OUT_OF_MEMORY.search(describe(error)) is not None

    def crash_error(self, error: Exception, in_flight: Mapping[str, Hashable]) -> EngineDied:
        """Return the error to raise for an engine that crashed with `error`.

        Args:
            error: the exception that vLLM raised.
            in_flight: keys of the requests in flight, by request number.
        """
        core_ended = _is_dead_error(error)
        text = _read(self._error_file) if core_ended else describe(error)
        if NAN_LOGITS in text:
            numbers = dict.fromkeys(INTERNAL_ID.findall(text))
            culprits = tuple(in_flight[number] for number in numbers if number in in_flight)
            return EngineDied(f"The model computed non-finite logits (vLLM: {NAN_LOGITS})", culprits)
        cause = first_line(text) or self._ended_worker or self._signal() or "see sweep.log"
        message = f"vLLM's core process died: {cause}" if core_ended else f"vLLM failed: {cause}"
        return error_type(text, EngineDied)(message)

    def clear(self) -> None:
        """Wait for all processes to end, because the next engine needs their memory; kill those that do not."""
        import psutil

        _, alive = psutil.wait_procs(self._processes, timeout=END_TIMEOUT)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=END_TIMEOUT)
        with suppress(OSError):
            self._error_file.unlink()

    def _watch(self, names: dict[int, str], outputs: Any) -> None:
        """Wake a waiting client when a process ends; vLLM does so late or, if the core was killed, never."""
        from vllm.v1.engine.exceptions import EngineDeadError

        ended = {names[sentinel] for sentinel in connection.wait(list(names)) if isinstance(sentinel, int)}
        if "" not in ended:  # a core's workers end with it
            self._ended_worker = ended.pop()
        outputs.put_nowait(EngineDeadError())
        for sentinel, name in names.items():
            if name:
                os.close(sentinel)

    def _signal(self) -> str:
        """Return which signal killed the core; empty if none did."""
        deadline = time.monotonic() + EXIT_CODE_TIMEOUT
        for core in self._cores:
            while (code := core.exitcode) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if code is not None and code < 0:
                return f"killed by {signal.Signals(-code).name}"
        return ""


def start_error(error: Exception, error_file: Path) -> EngineError:
    """Return the error to raise for an engine that did not start."""
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return EngineError("vLLM is not installed. Install it, or set engine=transformers, which does not need it")
    text = _read(error_file) or describe(error)
    if GPU_FULL in text:  # not `EngineOutOfMemory`: fewer requests do not help
        return EngineError(f"vLLM did not start: other processes hold the GPU's memory (vLLM: {GPU_FULL})")
    return error_type(text, EngineError)(f"vLLM did not start: {advice(error, text) or first_line(text)}")


def _sentinels(workers: list[Process]) -> dict[int, str]:
    """Return file descriptors that become readable when a process ends that is not a child of this one."""
    sentinels: dict[int, str] = {}
    if hasattr(os, "pidfd_open"):  # Linux
        for worker in workers:
            with suppress(OSError):
                sentinels[os.pidfd_open(worker.pid)] = f"its worker {worker.name()} ended"
    return sentinels


def _is_dead_error(error: Exception) -> bool:
    return type(error).__name__ == "EngineDeadError"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # nothing was written, or the folder was removed
        return ""
