"""The wheel and the source distribution: built, installed, and run from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist"), folder=ROOT)
    [wheel], [sdist] = (list((tmp_path / "dist").glob(f"*{kind}")) for kind in (".whl", ".tar.gz"))
    assert wheel.name.startswith("prompt_embedding_sweep-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"sweep/conf/config.yaml", "sweep/demo_model/config.json", "sweep/report/report.html.jinja"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "conf/config.yaml", "src/sweep/__main__.py", "tests/conftest.py", "README.md"} <= inside

    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env"), folder=tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", folder=tmp_path).strip())
    zipfile.ZipFile(wheel).extractall(own)  # as pip does with a pure wheel
    # The libraries are those of this environment: installing them again would take minutes.
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = run(python, "-c", "import sweep; print(sweep.__file__)", folder=elsewhere)
    assert Path(found.strip()).is_relative_to(own)
    assert run(python, "-m", "sweep", "--version", folder=elsewhere).startswith("sweep 0.")
    said = run(
        *(python, "-m", "sweep", "plugins=[sweep.testing.scripted]", "engine=scripted"),
        *("transform=scale", "transform.factor=1.2", "prompts.limit=2", "sampling.max_tokens=4"),
        folder=elsewhere,
    )
    assert "factor=1.2" in said and list(elsewhere.glob("outputs/sweeps/*/report/report.html"))


def run(*command: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SWEEP_CONF")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
