"""Scripted engine: scripted pauses and crashes. The conformance tests check its answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.engines import ENGINES
from sweep.engines.base import Engine, Generation, Request, Sampling
from sweep.engines.registry import register_engine
from sweep.errors import ConfigError, EngineDied
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.testing import ScriptedConfig

GREEDY = Sampling(max_tokens=4, ignore_eos=True)


def opened(checkpoint: Checkpoint, **changes: object) -> Engine:
    return ScriptedConfig(**changes).open(checkpoint.files, 256, Path())  # type: ignore[arg-type]


def requests(table: EmbeddingTable, count: int, factor: float = 1.0) -> Iterator[Request]:
    for i in range(count):
        ids = (5 + i, 6 + i, 7 + i)
        yield Request(i, ids, (table.rows(ids) * factor).to(table.dtype), GREEDY)


def test_a_crash_at_an_answer_happens_once(checkpoint: Checkpoint, table: EmbeddingTable) -> None:
    config = ScriptedConfig(window=2, die_at=3)
    engine, answered = config.open(checkpoint.files, 256, Path()), list[object]()
    with pytest.raises(EngineDied, match="after 3 answers"):
        for answer in engine.generate(requests(table, 8)):
            answered.append(answer.key)
    assert answered == [0, 1, 2]
    replacement = config.for_restart().open(checkpoint.files, 256, Path())
    assert [a.key for a in replacement.generate(requests(table, 8))] == list(range(8))


def test_a_crash_at_a_request_happens_again_after_a_restart(checkpoint: Checkpoint, table: EmbeddingTable) -> None:
    largest = float(table.rows([5, 6, 7]).abs().max())
    config = ScriptedConfig(die_above=2 * largest)
    for restart in (config, config.for_restart()):
        with pytest.raises(EngineDied, match="entry above"):
            list(restart.open(checkpoint.files, 256, Path()).generate(requests(table, 1, factor=2.5)))
        assert len(list(restart.open(checkpoint.files, 256, Path()).generate(requests(table, 1, factor=1.5)))) == 1


def test_the_engine_waits_while_the_pause_file_exists(
    checkpoint: Checkpoint, table: EmbeddingTable, tmp_path: Path
) -> None:
    pause = tmp_path / "pause"
    engine, answered = opened(checkpoint, pause_at=2, pause_file=str(pause), window=1), list[object]()
    waited = threading.Event()

    def release() -> None:
        until = time.monotonic() + 20
        while not (pause.exists() and pause.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        assert pause.read_text() == f"{os.getpid()}\n" and answered == [0, 1]
        waited.set()
        pause.unlink()

    thread = threading.Thread(target=release)
    thread.start()
    for answer in engine.generate(requests(table, 4)):
        answered.append(answer.key)
    thread.join(20)
    assert waited.is_set() and answered == [0, 1, 2, 3]


def test_the_engine_does_not_wait_without_the_folder_of_the_pause_file(
    checkpoint: Checkpoint, table: EmbeddingTable, tmp_path: Path
) -> None:
    engine = opened(checkpoint, pause_at=2, pause_file=str(tmp_path / "removed" / "pause"))
    assert len(list(engine.generate(requests(table, 4)))) == 4


def test_death_of_the_process(tiny: Path) -> None:
    code = f"""
from pathlib import Path
from sweep.inputs.config import ModelConfig
from sweep.engines.base import Request, Sampling
from sweep.inputs.checkpoint import find
from sweep.testing import ScriptedConfig
engine = ScriptedConfig(die_at=1, death="process", window=1).open(find(ModelConfig(id={str(tiny)!r})).files, 256, Path())
for answer in engine.generate(Request(i, (5, 6), None, Sampling(max_tokens=2)) for i in range(3)):
    print(answer.key, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n"), done.stderr


def test_answers_depend_only_on_the_embeddings(checkpoint: Checkpoint, table: EmbeddingTable) -> None:
    def tokens(factor: float, **changes: object) -> list[tuple[int, ...]]:
        answers = opened(checkpoint, **changes).generate(requests(table, 6, factor))
        kept = {a.key: a.completions[0].token_ids for a in answers if isinstance(a, Generation)}
        return [kept[i] for i in range(6)]

    plain = tokens(1.0)
    assert tokens(1.0, window=1) == tokens(1.0, window=5) == plain and len(set(plain)) == 6
    assert tokens(3.0) != plain


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"engine\.death"):
        ScriptedConfig(death="sudden")
    with pytest.raises(ConfigError, match=r"engine\.step_seconds"):
        ScriptedConfig(step_seconds=-1.0)


def test_the_registry_rejects_a_name_that_is_taken_and_a_class_without_a_name() -> None:
    class Other(ScriptedConfig):
        pass

    with pytest.raises(ValueError, match=r"'scripted' is taken by sweep\.testing\.scripted\.ScriptedConfig"):
        register_engine(Other)
    assert ENGINES["scripted"] is ScriptedConfig
    assert register_engine(ScriptedConfig) is ScriptedConfig

    class Nameless(ScriptedConfig):
        name = ""

    with pytest.raises(ValueError, match="has no `name`"):
        register_engine(Nameless)


def test_a_plugin_engine_is_an_option_of_the_command_line(command_line, tmp_path: Path, tiny: Path) -> None:  # type: ignore[no-untyped-def]
    overrides = [
        "transform=scale",
        "transform.factor=1.2",
        f"model.id={tiny}",
        f"sweep.dir={tmp_path}",
        "sweep.dry_run=true",
    ]
    code, out, err = command_line("plugins=[sweep.testing.scripted]", "engine=scripted", "engine.window=2", *overrides)
    assert code == 0 and "engine 1: scripted" in out, err
    code, _, err = command_line("plugins=[sweep.testing.scripted]", "engine=scripted", "engine.windw=2", *overrides)
    assert code == 2 and "engine.windw: there is no such key. Did you mean 'window'?" in err
