"""Sweep folder: which sweep a command belongs to, and where its files are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sweep.config.schema import ADDED
from sweep.config.scoring_config import SHOWN_ONLY
from sweep.errors import ConfigError
from sweep.inputs.packaged_model import NAME as PACKAGED
from sweep.transforms import TRANSFORMS
from sweep.transforms.pipeline import without_added
from sweep.util import state_files

FOLDER_ID, ID_LENGTH = ".id", 256  # file name; characters that are read of it
UNKNOWN_ID = "<id>"  # shown for a command that only prints the configuration, and opens no folder
# Sections that do not decide which sweep a command belongs to.
OUTSIDE_SWEEP_ID = ("sweep", "tracking", "report", "hydra", "verbose")
# Options of a sweeper that do not either: a search with more trials continues the same search.
SEARCH_LENGTH = ("n_trials", "n_jobs")


def sweeps_folder(root: str) -> Path:
    """Return the folder of all sweeps in `sweep.dir`.

    Raises:
        ConfigError: the path cannot be used.
    """
    try:
        sweeps = Path(root).expanduser().resolve() / "sweeps"
        sweeps.exists()
    except (RuntimeError, ValueError, OSError) as error:  # unknown home, NUL, loop of links, name too long
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"sweep.dir: {root[:120]!r} cannot be used: {reason}.") from error
    return sweeps


def require_regular_file(path: Path) -> None:
    """Raise if a path exists and is not a regular file, such as a link."""
    try:
        state_files.require_own(path)
    except state_files.NotAFile as error:
        raise ConfigError(f"sweep.dir: {path}: {error.strerror}; remove it.") from error
    except OSError:  # reported when the file is written
        return


def missing_paths(folder: Path) -> list[Path]:
    """Return the paths that an invocation creates before all checks are done, and that do not exist yet."""
    root = folder.parents[1]
    files = [folder / "multirun.yaml", folder / "sweep.log", folder / "clock", root / ".tracking.lock"]
    files += [root / ".cache" / name for name in ("digests.json", "digests.lock", f"models/{PACKAGED}.lock")]
    folders = (root / ".cache" / "models", root / ".cache", folder, folder.parent)
    return [path for path in (*files, *folders) if not path.exists()]


def folder_id(root: Path) -> str:
    """Return the random id of `sweep.dir`, which keeps equal commands in two folders apart on one tracker."""
    path, new_id = root / FOLDER_ID, secrets.token_hex(8)
    temporary = root / f"{FOLDER_ID}-{new_id}"
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a new id would hide the sweeps of the folder
        raise ConfigError(f"sweep.dir: {path} is not a regular file. Remove it, or restore the original file.")
    with suppress(OSError):  # a folder that cannot be written is refused later
        if path.is_file() and (existing := _read_id(path)):
            return existing
        root.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(new_id)
            if path.exists():  # empty, after a full disk
                temporary.replace(path)
            else:
                with suppress(FileExistsError):  # another process was first
                    os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return _read_id(path)
    return new_id


def _read_id(path: Path) -> str:
    return state_files.read(path)[:ID_LENGTH].decode("utf-8", "replace").strip()


def make_sweep_id(base: DictConfig, folder: str) -> str:
    """Return the sweep id: a hash of the swept arguments, the base configuration and the folder's id."""
    config = OmegaConf.to_container(
        OmegaConf.masked_copy(base, [str(key) for key in base if key not in OUTSIDE_SWEEP_ID])
    )
    for section, added in ADDED.items():
        values = config.get(section) if isinstance(config, dict) else None
        if isinstance(values, dict):
            unchanged = [key for key, default in added.items() if values.get(key, default) == default]
            for key in (*unchanged, *(SHOWN_ONLY if section == "scoring" else ())):
                values.pop(key, None)
    if isinstance(config, dict):
        config["transform"] = _without_added(config.get("transform"))
        if zipped := OmegaConf.select(base, "sweep.zip"):  # other points than all combinations
            config["zip"] = zipped
    sweeper: Any = OmegaConf.to_container(base.hydra.sweeper) if "hydra" in base else None
    sweeper = sweeper and {key: value for key, value in sweeper.items() if key not in SEARCH_LENGTH}
    swept = [argument for argument in sys.argv[1:] if "=" in argument and not _is_outside_sweep_id(argument)]
    text = json.dumps([config, sweeper, sorted(swept), folder], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_added(transform: Any) -> Any:
    """Return a transform's values, or those of a composition, without keys that later versions added."""
    if not isinstance(transform, dict):
        return transform
    steps = {key: _without_added(value) if str(key).isdecimal() else value for key, value in transform.items()}
    known = TRANSFORMS.get(str(transform.get("name")))
    return steps if known is None else without_added(steps, known.added)


def _is_outside_sweep_id(argument: str) -> bool:
    key = argument.lstrip("+~").partition("=")[0]
    return re.split(r"[./@]", key)[0] in OUTSIDE_SWEEP_ID or key.split(".")[:2] in [
        ["scoring", name] for name in SHOWN_ONLY
    ]


def numbered(sweep_id: str, sweeps: Path, restart: bool) -> str:
    """Return the id, with its number, of the latest sweep; with `restart`, of the next one, which is 2 or more.

    A number tells that the sweep does not reuse answers of other sweeps.
    """
    # Only sweeps that were locked have begun: dry runs and refusals leave folders without a lock.
    begun = [path.parent.name for path in sweeps.glob(f"{sweep_id}*/lease")]
    numbers = [int(match[1] or 1) for name in begun if (match := re.fullmatch(rf"{sweep_id}(?:\.(\d+))?", name))]
    number = max(numbers, default=int(restart)) + restart or 1
    return sweep_id if number == 1 else f"{sweep_id}.{number}"
