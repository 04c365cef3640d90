"""Command line: dry runs, help, compositions and plugins. Refused configurations: `test_bad_configurations.py`."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import missing
from sweep.app import sweep_app
from sweep.transforms import TRANSFORMS
from tiny_models import make_model, make_tokenizer

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "transforms.md"
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path, no_engine: None, command_line: Sweep) -> Sweep:
    """Run the command line on the tiny model, without an engine; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = [f"sweep.dir={tmp_path / 'outputs'}", f"model.id={tiny}", "prompts.items=[Hi,Ho]"]
        return command_line(*arguments, *missing(arguments, defaults))

    return run


def test_a_dry_run_lists_points_and_starts_nothing(sweep: Sweep, tmp_path: Path) -> None:
    code, out, err = sweep(
        "transform=scale", "transform.factor=1.2,1.5", "sampling.max_tokens=4,8", "sweep.dry_run=true"
    )
    assert code == 0 and err.count("2 prompts, 0 with references\n") == 1, err
    lines = out.splitlines()
    assert (
        lines[0].startswith("engine 1: vllm") and "6 points, 16 requests, 96 prompt tokens" in lines[0]
    )  # with two controls
    assert [line.split(":")[0].strip() for line in lines[1:7]] == [
        "control (max_tokens=4)",
        "factor=1.2, max_tokens=4",
        "factor=1.5, max_tokens=4",
        "control (max_tokens=8)",
        "factor=1.2, max_tokens=8",
        "factor=1.5, max_tokens=8",
    ]
    assert lines[7] == "6 points, 1 engine start, 16 requests"


@pytest.mark.parametrize("search", [False, True])
def test_a_dry_run_leaves_nothing_behind(sweep: Sweep, tmp_path: Path, search: bool) -> None:
    (tmp_path / "there").mkdir()
    swept = ["hydra/sweeper=optuna", "sweep.objective=maximize:quality/chrf"] if search else []
    factors = "interval(1.2,1.5)" if search else "1.2,1.5"
    folder = f"sweep.dir={tmp_path / 'there' / 'not' / 'outputs'}"
    code, _, err = sweep("transform=scale", f"transform.factor={factors}", "sweep.dry_run=true", folder, *swept)
    assert code == 0, err
    assert list((tmp_path / "there").iterdir()) == []


def test_a_dry_run_does_not_change_an_existing_sweep(sweep: Sweep, tmp_path: Path) -> None:
    root = tmp_path / "outputs"

    def files() -> dict[str, str]:
        return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}

    point = ["transform=scale", "transform.factor=1.2"]
    root.mkdir()
    (root / ".id").write_text("0123456789abcdef")
    sweep_id = id_of(sweep, *point, f"sweep.dir={root}")
    folder = root / "sweeps" / sweep_id
    (folder / "lease").mkdir(parents=True)
    (folder / "multirun.yaml").write_text("as: it was typed\n")
    before = files()
    assert sweep(*point, "sweep.dry_run=true")[0] == 0
    assert files() == before


def id_of(sweep: Sweep, *arguments: str) -> str:
    """Return the id of a command's sweep."""
    assert sweep(*arguments, "sweep.dry_run=true")[0] == 0
    return sweep_app.current().id


def test_a_dry_run_of_many_points_lists_the_first_ones(sweep: Sweep) -> None:
    code, out, err = sweep("transform=scale", "transform.factor=range(2,62)", "sweep.dry_run=true")
    assert code == 0, err
    _, *listed, more, last = out.splitlines()
    assert [line.split(":")[0].strip() for line in listed] == ["control", *(f"factor={i}" for i in range(2, 51))]
    assert more == "  … and 11 more" and last == "61 points, 1 engine start, 124 requests"


def test_the_transform_of_the_guide_and_its_test(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("my_transforms.py", "test_my_transforms.py"):
        [code] = re.findall(rf"```python\n(# {file}\n.*?)```", GUIDE.read_text(), re.DOTALL)
        (tmp_path / file).write_text(code)
    monkeypatch.chdir(tmp_path)
    plugin = ["plugins=[my_transforms]", "transform=fade"]
    try:
        code, out, err = sweep(
            *plugin, "transform.decay=0.8,0.9", "transform.span={window: [0, 2]}", "sweep.dry_run=true"
        )
        assert code == 0 and "decay=0.8: 2 requests" in out, err
        code, _, err = sweep(*plugin, "transform.decoy=0.8", "sweep.dry_run=true")
        assert code == 2 and "transform.decoy: there is no such key. Did you mean 'decay'?" in err
        importlib.import_module("test_my_transforms").test_fade()
    finally:
        sys.path.remove(str(tmp_path))
        for module in ("my_transforms", "test_my_transforms"):
            sys.modules.pop(module, None)
        TRANSFORMS.pop("fade", None)


def test_compositions_on_the_command_line(sweep: Sweep) -> None:
    steps = ["transform=scale+noise", "transform.0.factor=1.2,1.5", "transform.1.sigma=0.5"]
    code, out, err = sweep(*steps, "transform.1.span={role: user}", "sweep.dry_run=true")
    assert code == 0, err
    assert [line.split(":")[0].strip() for line in out.splitlines()[1:4]] == ["control", "factor=1.2", "factor=1.5"]


def test_help_explains_how_to_sweep(sweep: Sweep) -> None:
    code, out, _ = sweep("--help")
    assert code == 0
    assert "scripts/sweep transform=scale transform.factor=1.2,1.5" in out
    options = out[out.index("transform: ") :].split("\n\n")[0].split("\n")[0]
    assert {"identity", "noise", "scale", "soft_prompt"} <= set(options.removeprefix("transform: ").split(", "))


LIGHT = """
import sys
from sweep.__main__ import main
try:
    main()
finally:
    print("imported:", *(name for name in ("torch", "vllm", "mlflow", "transformers", "scipy") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "imported"),
    [
        (["--help"], 0, []),
        (["transform=scale", "transform.factor=1.2,1.5", "sweep.dry_run=true"], 0, ["transformers"]),
        (
            ["transform=noise", "hydra/launcher=plan", "hydra.launcher.shards=2", "sweep.dry_run=true"],
            0,
            ["transformers"],
        ),
        (["transform=scael"], 2, []),
        (["transform=scale", "transform.factr=1.2"], 2, []),
        (["transform=scale", "transform.factor=big"], 2, []),
    ],
)
def test_help_and_version_import_no_heavy_modules(
    arguments: list[str], code: int, imported: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", LIGHT, *arguments, f"sweep.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:", *imported]


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_variables_of_the_chat_template_are_set_by_name(tmp_path: Path, sweep: Sweep, plus: str) -> None:
    folder = make_model(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ 'thinking' if enable_thinking else 'no' }}"
    tokenizer.save_pretrained(folder)
    key = f"{plus}prompts.chat_template_kwargs.enable_thinking"
    code, out, _ = sweep(f"model.id={folder}", "sweep.dry_run=true", f"{key}=true,false")
    assert code == 0
    assert "control (enable_thinking=True): 2 requests, 16 prompt tokens" in out
    assert "control (enable_thinking=False): 2 requests, 4 prompt tokens" in out
    code, _, error = sweep(f"model.id={folder}", "sweep.dry_run=true", f"{plus}prompts.chat_template_kwargs.thinkng=1")
    assert (
        code == 2
        and "prompts.chat_template_kwargs: the chat template of" in error
        and "does not read 'thinkng'" in error
    )
