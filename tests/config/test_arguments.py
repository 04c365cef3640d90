"""Arguments: values with an equals sign, options between overrides, and completion in three shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sweep.config import arguments as _arguments

Sweep = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("prompts.path=lr=0.1/text.jsonl", "prompts.path='lr=0.1/text.jsonl'"),
        ("prompts.path=a=1/x.jsonl,b.jsonl,c=2/y.jsonl", "prompts.path='a=1/x.jsonl',b.jsonl,'c=2/y.jsonl'"),
        ("+model.id=./a=b", "+model.id='./a=b'"),
        ("sweep.name=a b=c", "sweep.name='a b=c'"),
        ("sweep.name==", "sweep.name='='"),
        ("seed=3", "seed=3"),
        ("prompts.path='lr=0.1/text.jsonl'", "prompts.path='lr=0.1/text.jsonl'"),
        ('prompts.path="lr=0.1/text.jsonl"', 'prompts.path="lr=0.1/text.jsonl"'),
        ("prompts.path=lr\\=0.1", "prompts.path=lr\\=0.1"),
        ("prompts.items=[a=b]", "prompts.items=[a=b]"),
        ("transform.span={role=user}", "transform.span={role=user}"),
        ("--config-dir=a=b", "--config-dir=a=b"),
    ],
)
def test_values_with_an_equals_sign(typed: str, read: str) -> None:
    assert _arguments.quote_equals([typed]) == [read]


def test_quoting_keeps_the_typed_text() -> None:
    [quoted] = _arguments.quote_equals(["prompts.path=lr=0.1/text.jsonl"])
    override = OverridesParser.create().parse_override(quoted)
    assert (override.key_or_group, override.value()) == ("prompts.path", "lr=0.1/text.jsonl")


def test_a_path_with_an_equals_sign(dry: Sweep, tmp_path: Path) -> None:
    for name in ("lr=0.1", "lr=0.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(f"Hi {name}\n")
    paths = f"prompts.path={tmp_path}/lr=0.1/text.txt,{tmp_path}/lr=0.2/text.txt"
    code, out, err = dry("transform=scale", "transform.factor=2", paths, "prompts.items=null")
    assert code == 0, err
    assert "lr=0.1/text.txt" in out and "lr=0.2/text.txt" in out


def test_a_dry_run_for_ray_leaves_nothing_behind(dry: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install .[ray])")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores them
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, _, err = dry("transform=scale", "transform.factor=1.2", "hydra/launcher=ray")
    assert code == 0, err
    assert list(tmp_path.glob("sweep-ray-*")) == []


@pytest.mark.parametrize("option", ["--multirun", "-m"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_multirun_is_allowed_anywhere(dry: Sweep, option: str, place: int) -> None:
    arguments = ["transform=scale", "transform.factor=1.2,1.5"]
    code, out, err = dry(*arguments[:place], option, *arguments[place:])
    assert code == 0, err
    assert out.splitlines()[-1] == "3 points, 1 engine start, 8 requests"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1", "--verbos", "seed=2"], "sweep: Unrecognized arguments: --verbos. See --help and --hydra-help.\n"),
        (["--multi"], "sweep: Unrecognized arguments: --multi. See --help and --hydra-help.\n"),
        (
            ["--cfg=wrong"],
            "sweep: Argument --cfg/-c: invalid choice: 'wrong' (choose from 'job', 'hydra', 'all'). See --help and --hydra-help.\n",
        ),
    ],
)
def test_wrong_options(command_line: Sweep, arguments: list[str], message: str) -> None:
    code, out, err = command_line(*arguments)
    assert (code, out, err) == (2, "", message)


def test_options_of_hydra_are_allowed_between_overrides(command_line: Sweep) -> None:
    code, out, _ = command_line("transform=scale", "--cfg", "job", "transform.factor=1.5")
    assert code == 0
    assert "  factor: 1.5\n" in out


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (f"prompts.path=/tmp/{LONG}", "cannot be read: [Errno 36] File name too long"),
        (f"model.id=/tmp/{LONG}", "the path is too long; each name in it may have up to 255 bytes."),
        (f"sweep.dir=/tmp/{LONG}", "cannot be used: File name too long."),
        (f"experiment={LONG}", "the path is too long; each name in it may have up to 255 bytes."),
        (f"transform={LONG}", "the path is too long; each name in it may have up to 255 bytes."),
        (f"{'.'.join('a' * 600)}=1", "the path is too long; each name in it may have up to 255 bytes."),
        (f"--config-name={LONG}", "the path is too long; each name in it may have up to 255 bytes."),
        (f"plugins=[{LONG}]", "sweep: plugins: the module 'xxx"),
        (f"transform.span={'{a:' * 300}1{'}' * 300}", "The configuration is nested too deeply"),
    ],
)
def test_long_and_deep_arguments_have_short_messages(dry: Sweep, argument: str, message: str) -> None:
    code, out, err = dry(argument)
    assert (code, out) == (2, "")
    assert message in err and len(err) < 600 and len(err.splitlines()) <= 3, err


BASH = """
eval "$(sweep --shell-completion install=bash)"
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1) COMPREPLY=()
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
}
for line in "$@"; do complete_line "$line"; done
complete -p | grep -c 'hydra_bash_completion sweep'
"""
FISH = "sweep --shell-completion install=fish | source; for line in $argv; complete -C $line; end"
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT=; autoload -Uz compinit bashcompinit; compinit -u; bashcompinit'
zpty -w shell 'eval "$(sweep --shell-completion install=zsh)"; echo re""ady'
zpty -r shell answer '*ready*'
for line in "$@"; do
    zpty -w -n shell $'\\C-u'$line$'\\t'
    zpty -r -t shell answer; zpty -r shell answer "*$EXPECTED*" && print -r -- "completed"
done
"""


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """A PATH with a command `sweep`, as in an installation."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sweep"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sweep "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"


def in_shell(path: str, *command: str, **environment: str) -> list[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"PATH": path} | environment
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_completion_in_bash(shell_path: str) -> None:
    folder = shell_path.split(":")[0]
    lines = ["sweep transform=sca", f"{folder}/sweep transform=scale transform.fac", "sweep hydra/launcher=s"]
    wrong = "sweep transform=nonsense see"  # no message may appear on the line that is being typed
    answers = in_shell(shell_path, "bash", "-c", BASH, "bash", *lines, wrong)
    assert answers == ["transform=scale", "transform.factor=", "hydra/launcher=slurm", "", "1"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_completion_in_fish(shell_path: str) -> None:
    lines = ["sweep transform=sca", "sweep transform=scale transform.fac"]
    assert in_shell(shell_path, "fish", "-c", FISH, *lines) == ["transform=scale", "transform.factor="]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.timeout(120)
def test_completion_in_zsh(shell_path: str) -> None:
    command = ["zsh", "-f", "-c", ZSH, "zsh", "sweep transform=scale transform.fac"]
    assert in_shell(shell_path, *command, EXPECTED="transform.factor=") == ["completed"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        (r"prompts.template=Q: {{question}}\nA:", r"Q: {{question}}\nA:"),
        ("prompts.template='{{a}}, {{b}}'", "{{a}}, {{b}}"),
        ("prompts.template={{a}}, {{b}}", "{{a}}, {{b}}"),
        ("prompts.map.reference={{ answer.split('#')[-1] }}", "{{ answer.split('#')[-1] }}"),
        ("prompts.map={prompt: question, reference: answer}", {"prompt": "question", "reference": "answer"}),
    ],
)
def test_templates_need_no_quotes_for_hydra(argument: str, value: object) -> None:
    [translated] = _arguments.to_hydra_syntax([argument])
    parsed = OverridesParser.create().parse_override(translated)
    assert parsed.value() == value and parsed.is_sweep_override() is False


@pytest.mark.parametrize("key", _arguments.OPEN)
@pytest.mark.parametrize("value", ["{new: 1}", "{new: 1},{new: 2}"])
def test_open_mappings_take_new_keys(key: str, value: str) -> None:
    assert _arguments.to_hydra_syntax([f"{key}={value}", f"{key}.new=1"]) == [f"++{key}={value}", f"++{key}.new=1"]
    unchanged = [f"++{key}={value}", f"{key}={{}}", f"{key}=null", "transform.span={role: user}"]
    assert _arguments.to_hydra_syntax(unchanged) == unchanged


def test_a_mapping_in_braces_reaches_the_prompts(dry: Sweep) -> None:
    code, _, err = dry("prompts.items=[{question: Hi}]", "prompts.map={prompt: question}", "sampling.args={min_p: 0.1}")
    assert code == 0, err
