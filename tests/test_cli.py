"""The command line: what is wrong is said in a line or three, with exit code 2, before anything starts."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import missing
from sweep.transforms import TRANSFORMS, catalogue

README = Path(__file__).parents[1] / "README.md"
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path, no_engine: None, command_line: Sweep) -> Sweep:
    """Run the command line on the tiny model, without an engine; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = [f"sweep.dir={tmp_path / 'outputs'}", f"model.id={tiny}", "prompts.items=[Hi,Ho]"]
        return command_line(*arguments, *missing(arguments, defaults))

    return run


def bad(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Return wrong command lines and what their errors must say."""
    (folder / "bad.jsonl").write_text('{"prompt": "fine"}\nnot json\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "file").write_text("")
    (folder / "nomodel").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    mistake, failing = folder / "bad_syntax_plugin.py", folder / "failing_plugin.py"
    mistake.write_text("import torch\nclass (:\n")
    failing.write_text("1 / 0\n")
    scale = ["transform=scale", "transform.factor=1.2,1.5"]
    return {
        "mistyped option": (["transform=scael"], "transform=scael: there is no such option. Did you mean 'scale'?"),
        "mistyped option in a list": (["transform=scale,nosie"], "Did you mean 'noise'?"),
        "mistyped key": (["transform=scale", "transform.factr=1"], "transform.factr: there is no such key. Did you mean 'factor'?"),
        "mistyped key in a list": (["transform=scale", "transform.factr=1,2"], "Did you mean 'factor'?"),
        "mistyped key beside a list": ([*scale, "modle.id=x"], "modle: there is no such key. Did you mean 'model'?"),
        "mistyped section key beside a list": ([*scale, "sampling.max_token=3"], "Did you mean 'max_tokens'?"),
        "mistyped launcher": ([*scale, "hydra/launcher=locl"], "Did you mean 'local'?"),
        "wrong type": (["sampling.max_tokens=many"], "sampling.max_tokens"),
        "wrong type in a list": (["transform=scale", "transform.factor=1,abc"], "transform.factor: Value 'abc'"),
        "wrong type of seed": ([*scale, "seed=abc"], "seed: Value 'abc'"),
        "new parameter": (["transform=scale", "+transform.speed=3"], "'speed' is no parameter of scale"),
        "out of range": (["sampling.temperature=-1"], "sampling.temperature must be 0 or more"),
        "mistyped step": (["transform=scale+nosie"], "transform=nosie: there is no such option. Did you mean 'noise'?"),
        "mistyped key of a step": (["transform=scale+noise", "transform.1.sgma=1,2"], "transform.1.sgma: there is no such key. Did you mean 'sigma'?"),
        "step out of range": (["transform=scale+noise", "transform.1.sigma=-1"], "transform.1.sigma must be 0 or more"),
        "compositions in a list": (["transform=scale+noise,noise"], "cannot stand in a comma list"),
        "mistyped span": (["transform=noise", "transform.span=contant"], "Did you mean 'content'?"),
        "mistyped kind of span": (["transform=noise", "transform.span={substrin: a}"], "Did you mean 'substring'?"),
        "empty span": (["transform=noise", "transform.span={substring: xyz}"], "prompt 'p0000': noise: the span {substring: xyz} is empty"),
        "no such control": (["transform=noise", "transform.control=nose"], "transform.control: 'nose' is no value. Did you mean 'noise'?"),
        "no such vector file": (["transform=add_vector", "transform.vector.path=nowhere.safetensors", "transform.coefficient=1"], "nowhere.safetensors"),
        "no such other prompt": (["transform=lerp", "transform.t=0.5", "transform.other=x"], "there is no prompt 'x'"),
        "too many rows": (["transform=repeat", "transform.times=600"], "engine.max_model_len has room for 511"),
        "half a composition": (["transform=scale+"], "a composition names its steps"),
        "control of nothing": (["transform=identity", "transform.control=noise"], "needs a transform that changes something"),
        "control of another length": (["transform=repeat", "transform.times=2", "transform.control=noise"], "repeat: control=noise needs a transform that keeps the number of rows"),
        "plugin with a mistake": ([f"plugins=[{mistake.stem}]"], f"plugins: {mistake}:2: "),
        "plugin that fails": ([f"plugins=[{failing.stem}]"], "ZeroDivisionError: division by zero"),
        "own transform without its plugin": (["transform=fade"], "plugins=[its_module]"),
        "not finite": (["transform=scale", "transform.factor=nan"], "transform.factor must be a finite number"),
        "bad dtype": (["model.dtype=float8"], "model.dtype: 'float8' is no value"),
        "samples that are all alike": (["sampling.n=4"], "sampling.n above 1 needs sampling.temperature"),
        "engine out of range": (["engine.gpu_memory_utilization=5"], "engine.gpu_memory_utilization must be in (0, 1]"),
        "no such engine": (["engine.name=vlm"], "engine.name: 'vlm' is no value. Did you mean 'vllm'?"),
        "no such plugin": (["plugins=[no_such_module]"], "no_such_module"),
        "unreadable syntax": (["transform.factor=[1,2"], "transform.factor=[1,2"),
        "no such folder": (["model.id=./nowhere"], "there is no folder './nowhere'"),
        "folder that is no model": ([f"model.id={folder / 'nomodel'}"], "it has no config.json"),
        "folder with a broken model": ([f"model.id={folder / 'broken'}"], "has no model that can be loaded"),
        "hub out of reach": (["model.id=no-such-user/no-such-model"], "the hub cannot be reached"),
        "no hub id": (["model.id='a b?'"], "neither a folder nor a hub id"),
        "malformed prompts": ([f"prompts.path={folder / 'bad.jsonl'}"], "bad.jsonl:2: not JSON"),
        "empty prompts file": ([f"prompts.path={folder / 'empty.jsonl'}"], "prompt list is empty"),
        "empty prompt list": (["prompts.items=[]"], "prompt list is empty"),
        "no prompts at all": (["prompts.items=null"], "prompts needs items or a path"),
        "prompt too long": ([f"prompts.items=[{'x' * 600}]"], "'p0000' has 604 tokens; the model's context is 512"),
        "overflow": (["transform=scale", "transform.factor=1,1e39"], "Point factor=1e+39, prompt 'p0000': scale made NaN"),
        "folder that cannot be written": ([*scale, f"sweep.dir={folder / 'file' / 'x'}"], "Not a directory"),
        "swept folder": ([f"sweep.dir={folder / 'a'},{folder / 'b'}"], "cannot be swept"),
        "swept confidence": (["scoring.confidence=0.9,0.95"], "cannot be swept"),
        "empty range": (["transform=scale", "transform.factor=range(1.5,0.5,0.25)"], "The sweep has no points"),
        "more than the context": (["engine.max_model_len=100000"], "more than the model's context of 512"),
        "tracker out of reach": ([*scale, "tracking.uri=http://127.0.0.1:9"], "tracking.uri: http://127.0.0.1:9 cannot be used"),
        "no such kind of tracker": ([*scale, "tracking.uri=carrier-pigeon://x"], "tracking.uri: carrier-pigeon://x cannot be used"),
        "password in a tracker": ([*scale, "tracking.uri=http://me:secret@127.0.0.1:9"], "http://me:***@127.0.0.1:9"),
    }  # fmt: skip


def test_what_is_wrong_is_said_before_anything_starts(
    sweep: Sweep, tmp_path: Path, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for case, (arguments, message) in bad(tmp_path).items():
        with subtests.test(case):
            code, out, err = sweep(*arguments)
            assert code == 2, err
            assert message in err
            assert "Traceback" not in err and "secret" not in err and out == ""
            error = err[err.index("sweep: ") :]
            assert len(error) < 600 and len(error.splitlines()) <= 3, error


def test_a_dry_run_lists_points_and_starts_nothing(sweep: Sweep, tmp_path: Path) -> None:
    code, out, _ = sweep("transform=scale", "transform.factor=1.2,1.5", "sampling.max_tokens=4,8", "sweep.dry_run=true")
    assert code == 0
    lines = out.splitlines()
    assert (
        lines[0].startswith("engine 1: vllm") and "6 points, 16 requests, 96 prompt tokens" in lines[0]
    )  # controls twice
    assert [line.split(":")[0].strip() for line in lines[1:7]] == [
        "control (max_tokens=4)",
        "factor=1.2, max_tokens=4",
        "factor=1.5, max_tokens=4",
        "control (max_tokens=8)",
        "factor=1.2, max_tokens=8",
        "factor=1.5, max_tokens=8",
    ]
    assert lines[7] == "6 points, 1 engine starts, 16 requests"
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_dry_run_of_many_points_lists_the_first_ones(sweep: Sweep) -> None:
    code, out, err = sweep("transform=scale", "transform.factor=range(2,62)", "sweep.dry_run=true")
    assert code == 0, err
    _, *listed, more, last = out.splitlines()
    assert [line.split(":")[0].strip() for line in listed] == ["control", *(f"factor={i}" for i in range(2, 51))]
    assert more == "  … and 11 more" and last == "61 points, 1 engine starts, 124 requests"


def test_the_transform_of_the_readme_and_its_test(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("my_transforms.py", "test_my_transforms.py"):
        [code] = re.findall(rf"```python\n(# {file}\n.*?)```", README.read_text(), re.DOTALL)
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


def test_the_readme_lists_the_transforms_as_they_are() -> None:
    text = README.read_text()
    ours = [cls for cls in TRANSFORMS.values() if cls.__module__.startswith("sweep.")]
    assert catalogue.markdown(ours) in text, "run scripts/update_readme.py"


def test_help_says_how_to_sweep(sweep: Sweep) -> None:
    code, out, _ = sweep("--help")
    assert code == 0
    assert "python -m sweep transform=scale transform.factor=1.2,1.5" in out
    options = out[out.index("transform: ") :].split("\n\n")[0].split("\n")[0]
    assert {"identity", "noise", "scale", "soft_prompt"} <= set(options.removeprefix("transform: ").split(", "))


def test_help_and_wrong_configurations_import_no_heavy_library() -> None:
    probe = (
        "import sys; from sweep import cli; sys.argv = ['sweep', {!r}]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print('HEAVY', [m for m in ('torch', 'vllm', 'mlflow', 'transformers', 'scipy') if m in sys.modules])"
    )
    for argument in ("--help", "transform=scael"):
        done = subprocess.run(
            [sys.executable, "-c", probe.format(argument)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout


LIGHT = """
import sys
from sweep.__main__ import main
try:
    main()
finally:
    print("imported:", *(name for name in ("torch", "vllm", "mlflow") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["transform=scale", "transform.factor=1.2,1.5", "sweep.dry_run=true"], 0),
        (["transform=noise", "hydra/launcher=plan", "hydra.launcher.shards=2", "sweep.dry_run=true"], 0),
        (["transform=scale", "transform.factr=1.2"], 2),
        (["transform=scale", "transform.factor=big"], 2),
    ],
)
def test_quick_answers_import_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, *arguments, f"sweep.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]
