"""Commands and Python blocks of README and docs run.

Fast: `scripts/sweep …` as a dry run in this process, Python blocks on a small sweep. Slow: the same commands for real, on
the scripted engine, and `scripts/test …` as a collection. All others are in `listed_commands.NOT_RUN`, each with the reason.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_folder import make_files
from doc_pages import ROOT, Block, Command, blocks, commands, docs_script
from listed_commands import ANSWERS, DRY_ONLY, FRESH, NOT_RUN

from sweep.cli.vectors import main as list_vectors
from sweep.engines import ENGINES
from sweep.inputs.formats import FORMATS
from sweep.inputs.readers import READERS
from sweep.transforms import TRANSFORMS

CommandLine = Callable[..., tuple[int, str, str]]
REGISTRIES: tuple[dict[str, Any], ...] = (TRANSFORMS, ENGINES, READERS, FORMATS)
# Arguments that need the tiny model in the place of another one: their files of vectors have its width.
MODEL_KEYS = ("model", "experiment=", "transform.path", "transform.vector.path")


def sweeps() -> list[Command]:
    """Return the different commands that start a sweep, or check one."""
    found = {frozenset(_apart(command.sweep)): command for command in commands() if command.sweep is not None}
    return [command for command in found.values() if not set(command.words) & {*ANSWERS, "-sc", "vectors"}]


def selections() -> list[Command]:
    """Return the commands that run some of the tests."""
    return [c for c in commands() if c.words[:1] == ["scripts/test"] and set(c.words[1:]) - {"--all"}]


def _apart(arguments: list[str]) -> list[str]:
    """Return the arguments without those that a test replaces."""
    return [argument for argument in arguments if not argument.startswith(("sweep.dir=", "sweep.dry_run="))]


def key(command: Command) -> str:
    return f"{command.block.place} {command.text}"[:100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in that folder; forget afterwards what modules in it have registered."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    modules = set(sys.modules)
    before = [dict(registry) for registry in REGISTRIES]
    yield folder
    for registry, entries in zip(REGISTRIES, before, strict=True):
        # What this package's own modules have registered stays: they are imported once.
        for name in [name for name, value in registry.items() if not _module(value).startswith("sweep.")]:
            if name not in entries:
                del registry[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def _module(registered: Any) -> str:
    return str(getattr(registered, "read", registered).__module__)  # of a class, a function, or a format's function


def arguments(command: Command, folder: Path, *more: str) -> list[str]:
    """Return a command's arguments with a tiny model in the place of one from a hub, and outputs in a folder."""
    given = _apart(command.sweep or [])
    replaced = [argument for argument in given if not argument.startswith(("model=", "model.id="))]
    named = any(argument.startswith(MODEL_KEYS) for argument in given)
    model = [f"model.id={folder / 'my-model'}"] if named else []
    return [*replaced, *model, f"sweep.dir={folder / 'outputs'}", *more]


def test_every_command_is_run_or_listed() -> None:
    unknown = []
    for command in commands():
        words = " ".join(command.words)
        tested = command.sweep is not None or command.words[:1] == ["scripts/test"]
        tested |= words.startswith((".venv/bin/python -m pytest", ".venv/bin/python scripts/docs/update_docs.py"))
        tested |= words.startswith(".venv/bin/python -m sweep.shard")
        if not tested and not words.startswith(tuple(NOT_RUN)):
            unknown.append(f"{command.block.place}: {command.text}")
    assert not unknown, "run them, or add them to NOT_RUN with the reason"


def test_listed_exceptions_occur_in_the_docs() -> None:
    texts = [" ".join(command.words) for command in commands()]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []
    every = " ".join(texts)
    assert [start for start in (*FRESH, *DRY_ONLY) if start not in every] == []


def test_files_that_commands_name_exist() -> None:
    missing = []
    for command in commands():
        for word in command.words:
            if re.match(r"(scripts|tests|docs|conf)/[\w/.-]+$", word) and not (ROOT / word).exists():
                missing.append(f"{command.block.place}: {word}")
    assert not missing


def real() -> list[Command]:
    """Return the sweeps that slow tests run for real."""
    return [c for c in sweeps() if not any(start in word for word in c.words for start in (*DRY_ONLY, *FRESH))]


def checked() -> list[Command]:
    """Return one sweep of each kind: of those that have the same keys and options, the first.

    The others run for real in the slow tests.
    """
    run_for_real = {command.text for command in real()}
    kinds: dict[frozenset[str], Command] = {}
    for command in sweeps():
        given = _apart(command.sweep or [])
        if set(given) & set(FRESH):
            continue
        keys = (word.partition("=")[0] for word in given)
        kind = [key if "." in key else word for key, word in zip(keys, given, strict=True)]
        kinds.setdefault(frozenset(kind if command.text in run_for_real else given), command)
    return [command for kind, command in kinds.items() if not any(kind < other for other in kinds)]


@pytest.mark.parametrize("command", checked(), ids=key)
def test_a_sweep_passes_its_dry_run(command: Command, here: Path, no_engine: None, command_line: CommandLine) -> None:
    code, out, err = command_line(*arguments(command, here, "sweep.dry_run=true"))
    assert code == 0, err
    assert re.search(r"\d+ points", out)


def test_answers_without_a_sweep(command_line: CommandLine) -> None:
    found = {tuple(c.sweep) for c in commands() if c.sweep and set(c.sweep) & set(ANSWERS)}
    assert found == {("--help",), ("--version",)}
    for given in found:
        code, out, _ = command_line(*given)
        assert code == 0 and "sweep" in out


def test_listed_vectors_are_as_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [command for command in commands() if command.sweep and command.sweep[:1] == ["vectors"]]
    assert found
    for command in found:
        with pytest.raises(SystemExit, match=r"^0$"):
            list_vectors((command.sweep or [])[1:])
        assert capsys.readouterr().out in command.block.text


def python_blocks() -> list[Block]:
    """Return the blocks that are not files of their own."""
    return [block for block in blocks("python") if not re.match(r"# [\w/]+\.py\n", block.text)]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.place)
def test_a_python_block_runs(
    block: Block,
    here: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "sweep.load" in block.text and not (here / "outputs" / "sweeps").is_dir():
        small = ["plugins=[sweep.testing.scripted]", "engine=scripted", f"model.id={here / 'my-model'}"]
        small += ["prompts.limit=2", "sampling.max_tokens=4", "transform=scale", "transform.factor=1.5"]
        code, _, err = command_line(*small, f"sweep.dir={here / 'outputs'}")
        assert code == 0, err
    # A block that starts a sweep as a process takes its time only to import.
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(command)
        code, *_ = command_line(*command[3:], f"sweep.dir={here / 'outputs'}")
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__docs__"})
    assert all(command[:3] == [sys.executable, "-m", "sweep"] for command in started)


@pytest.mark.parametrize("block", [b for b in blocks("json", "yaml")], ids=lambda block: block.place)
def test_data_blocks_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        for line in block.text.splitlines():
            json.loads(line)


def test_modules_of_the_docs_pass_their_own_tests(here: Path) -> None:
    import my_judge  # type: ignore[import-not-found]  # noqa: F401  # registers a measure
    import my_negation  # type: ignore[import-not-found]  # written by `folder`
    import test_my_transforms  # type: ignore[import-not-found]

    from sweep.testing import check_measure, check_transform

    test_my_transforms.test_fade()
    check_transform(my_negation.Negate)
    check_measure("divergence/words_kept")


def test_equal_files_in_several_pages_are_equal() -> None:
    texts: dict[str, set[str]] = {}
    for block in blocks("python"):
        if name := re.match(r"# ([\w/]+\.py)\n", block.text):
            texts.setdefault(name[1], set()).add(block.text)
    assert [name for name, found in texts.items() if len(found) > 1] == []


# Slow: for real
@pytest.mark.slow
@pytest.mark.parametrize("command", real(), ids=key)
def test_a_sweep_runs(command: Command, here: Path, command_line: CommandLine, tmp_path: Path) -> None:
    given = arguments(command, here)
    plugins = [word for word in given if word.startswith("plugins=")]
    others = [word for word in given if not word.startswith(("plugins=", "engine=", "sweep.dir="))]
    modules = ["sweep.testing.scripted", *re.findall(r"[\w.]+", plugins[0].partition("=")[2])] if plugins else []
    modules = modules or ["sweep.testing.scripted"]
    short = [f"sweep.dir={tmp_path}", "engine=scripted"]
    if not any(word.startswith("sweep.zip=") and "sampling.max_tokens" in word for word in others):
        short.append("sampling.max_tokens=4")
    if not any(word.startswith(("prompts.limit=", "experiment=")) for word in others):
        short.append("prompts.limit=4")
    if "hydra/sweeper=optuna" in given:
        others = [word for word in others if not word.startswith("hydra.sweeper.n_trials=")] + [
            "hydra.sweeper.n_trials=4"
        ]
    code, out, err = command_line(*others, f"plugins=[{','.join(modules)}]", *short)
    assert code == 0, out + err
    assert list(tmp_path.glob("sweeps/*/points/*.parquet")) or "hydra/launcher=plan" in given


@pytest.mark.slow
def test_shards_of_a_plan(here: Path, command_line: CommandLine, tmp_path: Path) -> None:
    [planned] = [c for c in sweeps() if "hydra/launcher=plan" in c.words]
    scripted = ["plugins=[sweep.testing.scripted]", "engine=scripted", "sampling.max_tokens=4", f"sweep.dir={tmp_path}"]
    assert command_line(*(planned.sweep or []), *scripted)[0] == 0
    [shard] = [c for c in commands() if "sweep.shard" in c.words]
    done = subprocess.run([sys.executable, *shard.words[1:]], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_launcher_of_the_docs(here: Path, tmp_path: Path) -> None:
    [command] = [c for c in sweeps() if set(c.words) & set(FRESH)]
    scripted = ["plugins=[sweep.testing.scripted]", "engine=scripted", "sampling.max_tokens=4", f"sweep.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *(command.sweep or []), *scripted],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sweeps/*/points/*.parquet"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("command", selections(), ids=key)
def test_test_commands_find_tests(command: Command) -> None:
    given = command.words[1:]
    collect = [sys.executable, "-m", "pytest", *given, "-n", "0", "-m", "", "--collect-only"]
    done = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + shlex.join(collect)


@pytest.mark.slow
def test_measures_are_listed(here: Path, command_line: CommandLine, tmp_path: Path) -> None:
    small = ["plugins=[sweep.testing.scripted]", "engine=scripted", "prompts.limit=2", "sampling.max_tokens=4"]
    code, _, err = command_line(
        *small, "transform=scale", "transform.factor=1.5", "scoring=full", f"sweep.dir={tmp_path}"
    )
    assert code == 0, err
    [points] = tmp_path.glob("sweeps/*/report/points.csv")
    with points.open() as file:
        columns = next(csv.reader(file))
    groups = ("quality/", "divergence/", "health/", "perturbation/", "cost/")
    measured = {column for column in columns if column.startswith(groups) and column.count("/") == 1}
    assert measured and measured <= docs_script("measure_tables").measure_names()
