"""Tests that a sweep is not resumed with another engine version unless `sweep.resume=force`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.core.provenance import distributions_of
from sweep.errors import ConfigError, EngineError
from sweep.points.point import Point
from sweep.testing.scripted import ScriptedConfig
from sweep.testing.scripted_engine import ScriptedEngine

Configure = Callable[..., SweepConfig]


def sweep(configure: Configure, *factors: float, resume: str = "true") -> SweepRunner:
    points = [
        Point(
            configure(
                transform={"name": "scale", "factor": factor}, engine={"name": "scripted"}, sweep={"resume": resume}
            ),
            (("transform.factor", factor),),
        )
        for factor in factors
    ]
    with SweepRunner(points[0].config, "a", "sweep …", Terminal()) as runner:
        runner.run(points)
    return runner


def release(monkeypatch: pytest.MonkeyPatch, version: str, installed: str | None) -> None:
    """Set the version that the open engine reports, and the one that is known before it is open (None: none)."""
    start = ScriptedEngine.__init__

    def init(self: ScriptedEngine, *arguments: object) -> None:
        start(self, *arguments)  # type: ignore[arg-type]
        self.version = version

    monkeypatch.setattr(ScriptedEngine, "__init__", init)
    monkeypatch.setattr(ScriptedConfig, "installed", classmethod(lambda cls: installed or cls.name))


@pytest.mark.parametrize("known", [True, False])
def test_upgraded_plugin_engine_is_detected(configure: Configure, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """The version is compared before the engine starts if it is known, and otherwise once the engine is open."""
    for version in ("mylib 1.0", "mylib 1.0"):
        release(monkeypatch, version, version if known else None)
        sweep(configure, 2.0)
    release(monkeypatch, "mylib 2.0", "mylib 2.0" if known else None)
    with pytest.raises(
        ConfigError if known else EngineError,
        match=r"this sweep was started with mylib 1\.0, but the installed engine is mylib 2\.0",
    ):
        sweep(configure, 2.0, 3.0)
    assert sweep(configure, 2.0, 3.0, resume="force").engine_starts == 1
    assert sweep(configure, 2.0, 3.0).engine_starts == 0  # nothing is left to do


def test_resume_with_the_same_engine_version_continues(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    release(monkeypatch, "mylib 1.0", None)
    sweep(configure, 2.0)
    assert sweep(configure, 2.0, 3.0).engine_starts == 1


def test_a_plugin_engine_has_the_version_of_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "mylib_dist-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylib-dist\nVersion: 3.1\n")
    (info / "top_level.txt").write_text("mylib\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    distributions_of.cache_clear()
    owner = type("Mine", (ScriptedConfig,), {"name": "mine", "packages": None, "__module__": "mylib.engines"})
    monkeypatch.delattr(ScriptedConfig, "installed")
    assert owner.installed() == "mine 3.1"
    loose = type("Loose", (ScriptedConfig,), {"name": "loose", "packages": None, "__module__": "a_loose_file"})
    assert loose.installed() == "loose"
    assert sys.path[0] == str(tmp_path)
