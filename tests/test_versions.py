"""The versions that `scripts/lib/test_versions` tries are those that the project promises."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = [Requirement(text) for text in (*project["dependencies"], *extras["optuna"], *extras["slurm"])]
    return {requirement.name: requirement for requirement in found}


def pins(which: str) -> dict[str, Version]:
    lines = (ROOT / "scripts" / "lib" / "versions" / f"{which}.txt").read_text().splitlines()
    named = (line.split("#")[0].strip().split("==") for line in lines if line.split("#")[0].strip())
    return {name: Version(version) for name, version in named}


def test_lowest_versions_equal_the_declared_bounds() -> None:
    for name, version in pins("lowest").items():
        [lowest] = [Version(part.version) for part in declared()[name].specifier if part.operator == ">="]
        assert version == lowest, name


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_tested_versions_are_allowed(which: str) -> None:
    found = pins(which)
    assert found.keys() == pins("lowest").keys() and len(found) == 9
    assert [name for name, version in found.items() if version not in declared()[name].specifier] == []
