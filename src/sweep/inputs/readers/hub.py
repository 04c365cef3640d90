"""Data sets of the Hugging Face hub, local ones of the same layout, and folders written by `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.readers.base import Entries, open_regular
from sweep.inputs.readers.tables import ROWS, Columns, read_arrow
from sweep.util.validators import did_you_mean

SECONDS = 20.0  # limit of the request for a data set's commit


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of the package `datasets` has written a folder."""
    try:
        return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    except (OSError, ValueError):  # a path that is too long or contains a NUL, which is reported as that of a file
        return False


def read_saved(folder: Path, name: str, config: PromptsConfig, split: str | None) -> Entries:
    """Yield (place, entry) for each row of a data set, or of one split of several, that `save_to_disk` has written.

    Raises:
        ConfigError: there are several splits and none is chosen, or a file is missing or damaged.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json", name).get("splits") or []
        folder = folder / _chosen(split, splits, f"prompts.path: {name}")
        name = f"{name}/{folder.name}"
    elif split is not None and (saved := _json(folder / "state.json", name).get("_split")) not in (None, split):
        raise ConfigError(f"prompts.split: {name} holds the split {saved!r}, not {split!r}.")
    files = _json(folder / "state.json", name).get("_data_files") or []
    for file in files:
        path = folder / str(file.get("filename"))
        if path.parent != folder:
            raise ConfigError(f"{name}: state.json names a file outside of the folder.")
        with open_regular(path) as opened:
            for place, entry in read_arrow(opened, f"{name}/{path.name}", config):
                yield f"{path.name}{place}", entry


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            value = json.loads(file.read(2**24))
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts.path: {name}/{path.name} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"prompts.path: {name}/{path.name} must hold a mapping.")
    return value


def _chosen(split: str | None, splits: list[str], where: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise ConfigError(f"{where} has several splits ({', '.join(splits)}). Set prompts.split to one of them.")
    if split not in splits:
        raise ConfigError(f"{where} has no split {split!r}. {did_you_mean(split, splits)}")
    return split


def resolve_revision(config: PromptsConfig) -> str | None:
    """Return the commit of a data set on the hub; what is configured if the hub is not reachable or not used."""
    assert config.dataset is not None
    if Path(config.dataset).expanduser().is_dir():
        if config.revision is not None:
            raise ConfigError("prompts.revision: a local folder has no revisions. Remove it.")
        return None
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return config.revision
    try:
        return HfApi().dataset_info(config.dataset, revision=config.revision, timeout=SECONDS).sha
    except RevisionNotFoundError as error:
        raise ConfigError(f"prompts.revision: {config.dataset} has no revision {config.revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"prompts.dataset: there is no folder and no data set on the hub named {config.dataset!r}. "
            "Private and gated ones need a login (hf auth login)."
        ) from error
    except Exception:  # no connection, a proxy, a mirror without this call: `datasets` may have it in its cache
        return config.revision


def read_dataset(config: PromptsConfig, split: str | None, revision: str | None) -> Entries:
    """Yield (place, entry) for each row of `prompts.dataset`.

    Args:
        config: names the data set and the keys.
        split: the split, which may be a slice such as test[:100]; None for the only one.
        revision: commit of a data set on the hub.

    Raises:
        ConfigError: the package `datasets` is missing, or the data set, its configuration or its split.
    """
    assert config.dataset is not None
    folder = Path(config.dataset).expanduser()
    if is_saved(folder):
        yield from read_saved(folder, config.dataset, config, split)
        return
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("prompts.dataset needs the package datasets: pip install '.[datasets]'.") from error
    path = str(folder.resolve()) if folder.is_dir() else config.dataset
    with _reported(config, split):
        shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            loaded = datasets.load_dataset(path, config.dataset_config, split=split, revision=revision)
        finally:
            if not shown:
                datasets.enable_progress_bars()
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_chosen(None, list(loaded), f"prompts.dataset: {config.dataset}")]
    if config.limit is not None:
        loaded = loaded.select(range(min(config.limit, len(loaded))))
    columns = Columns(loaded.features.arrow_schema, config.dataset, config)
    tables = loaded.select_columns(columns.relevant).with_format("arrow").iter(batch_size=ROWS)
    if not columns.relevant:
        yield from ((f"[{i}]", dict(columns.unread)) for i in range(len(loaded)))
        return
    yield from columns.entries(tables)


@contextmanager
def _reported(config: PromptsConfig, split: str | None) -> Iterator[None]:
    """Report what `datasets` raises in one line that names the key."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split("\n\n")[0].split())
        key = "prompts.dataset"
        if "BuilderConfig" in text or "onfig name is missing" in text:
            key = "prompts.dataset_config"
            text = " ".join(str(error).split("\nExample")[0].split())
        elif "split" in text.lower() and split is not None:
            key = "prompts.split"
        raise ConfigError(f"{key}: {config.dataset} cannot be read: {text[:400].rstrip('.')}.") from error
