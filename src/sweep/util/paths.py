"""Where the configuration and the embedded model lie, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import os
from pathlib import Path

from sweep.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
DEMO_MODEL = PACKAGE / "demo_model"


def conf_dir() -> Path:
    """Return `$SWEEP_CONF`, else the wheel's `sweep/conf`, else the checkout's `conf`.

    Raises:
        ConfigError: none of them holds a `config.yaml`.
    """
    named = os.environ.get("SWEEP_CONF")
    candidates = [Path(named)] if named else [PACKAGE / "conf", PACKAGE.parents[1] / "conf"]
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    raise ConfigError(f"No config.yaml in {' or '.join(map(str, candidates))}; $SWEEP_CONF names the folder to use.")
