"""Sources of prompts: `prompts.items`, a file, several files of a pattern, a saved folder, or a data set."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.format_names import check_format, check_used, file_suffix
from sweep.inputs.readers import READERS, Entries
from sweep.inputs.readers.base import open_regular
from sweep.inputs.readers.hub import is_saved, read_dataset, read_saved, resolve_revision
from sweep.inputs.readers.packed import DECOMPRESSORS, inner_suffix, unpacked
from sweep.util.paths import conf_dir

# Files of known programs that are not read, by suffix, and what to do.
CONVERSIONS = {
    ".eval": "is a log of Inspect AI in its own format. Convert it with `inspect log convert --to json`",
    ".xls": "is a workbook of old Excel. Save it as .xlsx",
    ".ods": "is a workbook of LibreOffice. Save it as .xlsx",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where prompts come from.

    Attributes:
        name: name for messages; empty for `prompts.items`.
        entries: iterator over (place, entry).
    """

    name: str
    entries: Entries


@dataclass(frozen=True, slots=True)
class PromptFile:
    """An existing prompt file.

    Attributes:
        name: as written in the configuration.
        path: the regular file.
    """

    name: str
    path: Path

    def suffix(self, config: PromptsConfig) -> str:
        """Return the suffix whose reader reads the file."""
        return file_suffix(config) or inner_suffix(self.path)[0]

    def entries(self, config: PromptsConfig) -> Entries:
        """Yield (place, entry) for each entry; the place is a line number, or `[i]` in JSON, YAML and tables.

        Raises:
            ConfigError: the suffix is unknown, the file cannot be read or has another format than its suffix says, or a
                limit of `readers.base` is exceeded.
        """
        suffix, compression = self.suffix(config), inner_suffix(self.path)[1]
        reader = READERS.get(suffix)
        if reader is None:
            if advice := CONVERSIONS.get(suffix):
                raise ConfigError(f"prompts.path: {self.path.name!r} {advice}.")
            raise ConfigError(
                f"prompts.path: {self.path.name!r} has an unknown suffix. Use one of {', '.join(READERS)}, "
                f"compressed or not ({', '.join(DECOMPRESSORS)}), or set prompts.format."
            )
        name = self.path.name
        try:
            with open_regular(self.path) as file, unpacked(file, name, suffix, compression) as contents:
                yield from reader(contents, name, config)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
        except RecursionError as error:
            raise ConfigError(f"{name}: cannot be read: it is nested too deeply.") from error
        except ValueError as error:  # for example, a number with thousands of digits
            raise ConfigError(f"{name}: cannot be read: {str(error).splitlines()[0]}.") from error
        except OSError as error:
            raise ConfigError(f"prompts.path: {name!r} cannot be read: {error.strerror or error}.") from error


def open_source(config: PromptsConfig, path: str | None = None, split: str | None = None) -> Source:
    """Return the source of a configuration's prompts.

    Args:
        config: the configuration.
        path: file to read instead of `prompts.path`.
        split: split to read instead of `prompts.split`.

    Raises:
        ConfigError: see `find_prompt_files`, `resolve_revision`, `check_format` and `check_used`.
    """
    check_format(config)
    own = path is None and config.shots_from is None  # a file of examples may use what the prompts do not
    split = config.split if path is None and split is None else split
    if path is None and config.dataset is not None:
        if own:
            check_used(config, None, "prompts.dataset")
        revision = resolve_revision(config)
        version = f"revision {revision[:12]}" if revision else None
        details = ", ".join(part for part in (config.dataset_config, split, version) if part)
        name = f"{config.dataset} ({details})" if details else config.dataset
        entries = read_dataset(config, split, revision)
        return Source(name, ((f"{config.dataset}:{place}", entry) for place, entry in entries))
    path = path or config.path
    if path is None:
        if own:
            check_used(config, None, "prompts.items")
        return Source("", ((f"prompts.items[{i}]", entry) for i, entry in enumerate(config.items or [])))
    folder = Path(path).expanduser()
    if is_saved(folder):
        if own:
            check_used(config, None, path)
        saved = read_saved(folder, path, config, split)
        return Source(path, ((f"{path}:{place}", entry) for place, entry in saved))
    files = find_prompt_files(path)
    for file in files if own else ():
        check_used(config, file.suffix(config), file.path.name)
    return Source(path, _all_entries(files, config))


def open_shots(config: PromptsConfig) -> Source | None:
    """Return the source of few-shot examples; None if they are the other prompts.

    Raises:
        ConfigError: see `open_source`.
    """
    named = config.shots_from
    if named is None:
        return None
    unlimited = replace(config, limit=None)
    is_path = glob.has_magic(named) or inner_suffix(Path(named))[0] in READERS or Path(named).expanduser().exists()
    if is_path and not (config.dataset and "[" in named):
        return open_source(unlimited, path=named)
    if config.dataset is None and (config.path is None or not is_saved(Path(config.path).expanduser())):
        raise ConfigError(
            f"prompts.shots_from: {named!r} is neither a file nor a split, because the prompts are not a data set. "
            "Set the path of a file."
        )
    return open_source(unlimited, split=named)


def _all_entries(files: Sequence[PromptFile], config: PromptsConfig) -> Entries:
    for file in files:
        for place, entry in file.entries(config):
            yield f"{file.name}:{place}", entry


def find_prompt_files(name: str) -> list[PromptFile]:
    """Return the prompt file at a path, or the files of a pattern in the order of their names.

    A path is relative to the working directory, or to the configuration's `prompts` folder.

    Raises:
        ConfigError: the path does not exist, or is a folder, pipe or device, or no file matches the pattern.
    """
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [path, conf_dir() / "prompts" / path]
    try:
        for candidate in candidates:
            if candidate.is_file():
                return [PromptFile(name, candidate)]
        if file_type := next((_file_type(candidate) for candidate in candidates if candidate.exists()), None):
            advice = " Set prompts.dataset, or a pattern such as data/*.parquet." if file_type == "a folder" else ""
            raise ConfigError(f"prompts.path: {name!r} is {file_type}; it must be a file.{advice}")
        if glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if files := [PromptFile(str(match), match) for match in matches if match.is_file()]:
                return files
            raise ConfigError(f"prompts.path: no file matches {name!r}.")
    except (OSError, ValueError) as error:  # the path is too long, or contains a NUL
        raise ConfigError(f"prompts.path: {name[:200]!r} cannot be read: {error}.") from error
    raise ConfigError(f"prompts.path: there is no file {name!r}.")


def _file_type(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a pipe, which can be read only once" if path.is_fifo() else "a device or socket"
