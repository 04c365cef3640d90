"""Numbers of sweeps with the same command."""

from __future__ import annotations

from pathlib import Path

from sweep.app.sweep_folder import numbered


def test_first_restart_gets_number_2(tmp_path: Path) -> None:
    """Only a sweep with a number ignores the answers of other sweeps."""
    assert numbered("abc", tmp_path, restart=False) == "abc"
    assert numbered("abc", tmp_path, restart=True) == "abc.2"
    (tmp_path / "abc.2" / "lease").mkdir(parents=True)
    assert numbered("abc", tmp_path, restart=False) == "abc.2"
    assert numbered("abc", tmp_path, restart=True) == "abc.3"


def test_folders_without_a_lock_are_not_numbered(tmp_path: Path) -> None:
    (tmp_path / "abc.7").mkdir(parents=True)
    (tmp_path / "abc" / "lease").mkdir(parents=True)
    assert numbered("abc", tmp_path, restart=False) == "abc"
    assert numbered("abc", tmp_path, restart=True) == "abc.2"
