"""Folders of sparse autoencoders (SAEs): their weights, and what their configuration says.

Valid for SAELens 6.54, sparsify, dictionary_learning and the files of Gemma Scope. The decoder has a row for each
feature, or a column in PyTorch's layout of a layer: the direction that the feature writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError

# The weights of a library, with its name, in the order in which they are looked for.
WEIGHTS = {
    "sae_weights.safetensors": "SAELens",
    "sae.safetensors": "sparsify",
    "ae.pt": "dictionary_learning",
    "params.npz": "Gemma Scope",
    "params.safetensors": "Gemma Scope",
}
CONFIGS = ("cfg.json", "config.json")
COLUMNS = "decoder.weight"  # the weight of a PyTorch layer: (width, features)
DECODERS = ("W_dec", COLUMNS)


@dataclass(frozen=True, slots=True)
class Sae:
    """An SAE folder.

    Attributes:
        file: its weights.
        library: the library that wrote it.
        width: width of the activations; None if the configuration does not say.
        features: number of features; None if the configuration does not say.
        note: what it was trained on, such as "SAELens SAE of gpt2-small at blocks.0.hook_resid_pre".
    """

    file: Path
    library: str
    width: int | None
    features: int | None
    note: str


def find(folder: Path, config_key: str) -> Sae | None:
    """Return the SAE in a folder, or the only one in the folders below it; None if there is none.

    Args:
        folder: a folder of an SAE, or of several.
        config_key: the configuration key, for errors.

    Raises:
        ConfigError: there are several SAEs, or the configuration is damaged.
    """
    if (file := _weights_in(folder)) is not None:
        return _read(file, config_key)
    inner = sorted(file.parent for child in folder.iterdir() if child.is_dir() and (file := _weights_in(child)))
    if len(inner) > 1:
        shown = ", ".join(child.name for child in inner[:12]) + (" …" if len(inner) > 12 else "")
        raise ConfigError(
            f"{config_key}: the folder {str(folder)!r} holds {len(inner)} SAEs: {shown}. "
            f"Choose one, such as {config_key}={inner[0]}."
        )
    return find(inner[0], config_key) if inner else None


def decoder(names: list[str]) -> str | None:
    """Return the name of the only decoder among tensor names, which may have a prefix; None if there is not one."""
    found = [name for name in names if name in DECODERS or name.endswith(tuple(f".{end}" for end in DECODERS))]
    return found[0] if len(found) == 1 else None


def is_columns(name: str) -> bool:
    """Return whether a tensor of this name has a column for each feature."""
    return name == COLUMNS or name.endswith(f".{COLUMNS}")


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def _read(file: Path, config_key: str) -> Sae:
    library = WEIGHTS[file.name]
    config = next((path for name in CONFIGS if (path := file.parent / name).is_file()), None)
    values: dict[str, Any] = {}
    if config is not None:
        try:
            loaded = json.loads(config.read_text(encoding="utf-8"))
            if not isinstance(loaded, dict):
                raise TypeError
            values = loaded
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{config_key}: {config} is not the configuration of an SAE; expected a JSON object "
                f"({type(error).__name__})."
            ) from error
    # SAELens 6 puts the origin into `metadata`, dictionary_learning everything into `trainer`.
    for section in ("metadata", "trainer"):
        if isinstance(inner := values.get(section), dict):
            values = values | inner
    model = _first(values, "model_name", "lm_name", "model")
    place = _first(values, "hook_name", "hook_point", "submodule_name")
    note = f"{library} SAE" + (f" of {model}" if model else "") + (f" at {place}" if place else "")
    width, features = _number(values, "d_in", "activation_dim"), _number(values, "d_sae", "num_latents", "dict_size")
    return Sae(file, library, width, features, note)


def _first(values: dict[str, Any], *keys: str) -> str | None:
    return next((value for key in keys if isinstance(value := values.get(key), str) and value), None)


def _number(values: dict[str, Any], *keys: str) -> int | None:
    found = (values.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool) and value), None)
