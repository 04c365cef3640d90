"""A broken plugin is told so in a dry run, in a line or three."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import missing
from sweep.transforms import TRANSFORMS

HEAD = "from dataclasses import dataclass, field\nfrom sweep.transforms import Rearrangement, Transform, register\n"
RIGHT = '@register("mine")\n@dataclass(frozen=True, slots=True)\nclass Mine(Transform):\n    decay: float = 0.5\n'
APPLY = "    def apply(self, rows, context):\n        return rows\n"

BROKEN = {
    "no dataclass": (
        '@register("mine")\nclass Mine(Transform):\n    decay: float = 0.5\n' + APPLY,
        "the transform 'mine' (Mine) needs @dataclass(frozen=True, slots=True) below @register",
    ),
    "dataclass above": (
        '@dataclass(frozen=True, slots=True)\n@register("mine")\nclass Mine(Transform):\n    decay: float = 0.5\n'
        + APPLY,
        "the transform 'mine' (Mine) needs @dataclass(frozen=True, slots=True) below @register",
    ),
    "no name": (RIGHT.replace('("mine")', "") + APPLY, "@register needs a name of letters, digits, - and _"),
    "empty name": (RIGHT.replace("mine", "") + APPLY, "such as @register('fade'), not ''"),
    "name of a composition": (RIGHT.replace("mine", "a+b") + APPLY, "such as @register('fade'), not 'a+b'"),
    "name that is taken": (
        RIGHT.replace("mine", "scale") + APPLY,
        "the transform name 'scale' is taken by sweep.transforms.norms.Scale",
    ),
    "no base": (
        RIGHT.replace("(Transform)", "") + APPLY,
        "the transform 'mine' (Mine) must be a class that derives from sweep.transforms.Transform",
    ),
    "function": (
        '@register("mine")\ndef mine(rows, context):\n    return rows\n',
        "the transform 'mine' (mine) must be a class that derives from sweep.transforms.Transform",
    ),
    "not frozen": (
        RIGHT.replace("frozen=True, ", "") + APPLY,
        "TypeError: cannot inherit non-frozen dataclass from a frozen one",
    ),
    "mutable default": (
        RIGHT + "    weights: list = []\n" + APPLY,
        "ValueError: mutable default <class 'list'> for field weights is not allowed: use default_factory",
    ),
    "type that no configuration has": (
        RIGHT + "    weights: set[int] = field(default_factory=set)\n" + APPLY,
        "the transform 'mine' (broken.Mine)",
    ),
    "no apply": (
        RIGHT + APPLY.replace("apply", "aply"),
        "the transform 'mine' (Mine) does not define apply(self, rows, context)",
    ),
    "signature": (
        RIGHT + APPLY.replace(", context", ""),
        "the transform 'mine' (Mine) must define apply(self, rows, context)",
    ),
    "signature of a rearrangement": (
        RIGHT.replace("(Transform)", "(Rearrangement)") + "    def rearrange(self):\n        return 1\n",
        "the transform 'mine' (Mine) must define rearrange(self, rows, context)",
    ),
    "raises on import": (
        "raise KeyError('first\\nsecond')\n",
        "plugins: the module 'broken' cannot be imported: KeyError",
    ),
    "exits on import": ("raise SystemExit(3)\n", "plugins: the module 'broken' cannot be imported: SystemExit: 3"),
    "field's name": (RIGHT + "    span: str = ''\n" + APPLY, "has fields with reserved names: ['span']"),
    "refuses its values": (
        RIGHT + APPLY + "    def __post_init__(self):\n        raise RuntimeError('too\\nmuch')\n",
        "transform: broken.Mine refuses these values: RuntimeError: too",
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(TRANSFORMS)
    yield tmp_path / "broken.py"
    sys.modules.pop("broken", None)
    TRANSFORMS.clear()
    TRANSFORMS.update(before)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugins_are_refused(
    case: str,
    plugin: Path,
    tiny: Path,
    no_engine: None,
    command_line: Callable[..., tuple[int, str, str]],
) -> None:
    body, says = BROKEN[case]
    plugin.write_text(HEAD + body)
    arguments = ["plugins=[broken]", "transform=mine", "sweep.dry_run=true", f"sweep.dir={plugin.parent / 'outputs'}"]
    code, out, err = command_line(*arguments, *missing(arguments, [f"model.id={tiny}", "prompts.items=[Hi]"]))
    assert (code, out) == (2, "")
    assert says in err and len(err.splitlines()) <= 3, err


def test_valid_plugin_is_accepted(
    plugin: Path, tiny: Path, no_engine: None, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    plugin.write_text(HEAD + RIGHT + APPLY)
    code, out, err = command_line(
        *("plugins=[broken]", "transform=mine", "transform.decay=0.25,0.75", "sweep.dry_run=true"),
        *(f"sweep.dir={plugin.parent / 'outputs'}", f"model.id={tiny}", "prompts.items=[Hi]"),
    )
    assert code == 0, err
    assert "decay=0.25: 1 request," in out
