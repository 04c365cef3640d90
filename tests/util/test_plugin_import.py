"""Plugins are modules, or entry points of installed packages, and nothing else is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweep.util.plugins import import_plugin


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with the entry point `judges`."""
    for name, text in (("judges_module", ""), ("needs_more", "import no_such_module\n")):
        (tmp_path / f"{name}.py").write_text(text)
    metadata = tmp_path / "judges-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: judges\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sweep.plugins]\njudges = judges_module\nneeds_more = judges_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "judges_module", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["judges", "judges_module"])
def test_a_plugin_is_an_entry_point_or_a_module(installed: Path, name: str) -> None:
    assert "judges_module" not in sys.modules
    import_plugin(name)
    assert Path(str(sys.modules["judges_module"].__file__)) == installed / "judges_module.py"


@pytest.mark.parametrize(("name", "missing"), [("judge", "judge"), ("needs_more", "no_such_module")])
def test_what_is_missing_is_named(installed: Path, name: str, missing: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{missing}'"):
        import_plugin(name)
    assert "judges_module" not in sys.modules
