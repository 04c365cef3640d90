"""Locations of the configuration, the demo model and the user's cache, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

from sweep.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
DEMO_MODEL = PACKAGE / "demo_model"


def conf_dir() -> Path:
    """Return `$SWEEP_CONF`, else `sweep/conf` of the wheel, else `conf` of the checkout.

    Raises:
        ConfigError: none of them contains a `config.yaml`.
    """
    override = os.environ.get("SWEEP_CONF")
    candidates = [Path(override)] if override else [PACKAGE / "conf", PACKAGE.parents[1] / "conf"]
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    raise ConfigError(f"No config.yaml in {' or '.join(map(str, candidates))}. Set $SWEEP_CONF to its folder.")


def user_cache() -> Path | None:
    """Return this project's folder in `$XDG_CACHE_HOME`, else in `~/.cache`; None if the home folder is unknown."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sweep"
    except RuntimeError:
        return None
