"""Parquet files of prompts: only relevant columns are read, in batches of a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import is_relevant

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

ROWS = 64  # rows per batch
MAX_TEXT = 64 * 2**20  # maximum bytes of one text
MAX_BYTES = 2**30  # maximum bytes of all texts; a file of a few kilobytes can expand to more
MAX_VALUES = 2**27  # maximum values in the lists of a row group

UNREAD = object()  # replaces the values of a column that was not read


class UnreadText:
    """Replaces the texts of a column that was not read."""


def read_parquet(
    file: BinaryIO, name: str, config: PromptsConfig, max_rows: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, entry) for each row. Columns without meaning for prompts hold `UNREAD` or `UnreadText`.

    Args:
        file: the opened file.
        name: the file's name, for errors.
        config: names the keys and the limit.
        max_rows: maximum number of rows if `config.limit` is not set.

    Raises:
        ConfigError: not Parquet, or more rows, values or bytes than the limits.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        text_columns = _text_columns(file)
        table = pyarrow.parquet.ParquetFile(file, read_dictionary=text_columns)
        columns = table.schema_arrow.names
        if duplicate := next((column for column in columns if columns.count(column) > 1), None):
            raise ConfigError(f"{name}: two columns are named {duplicate!r}.")
        relevant = [column for column in columns if is_relevant(column, config)]
        _check_size(table.metadata, relevant, name, config, max_rows)
        unread = {c: UnreadText() if c in text_columns else UNREAD for c in columns if c not in relevant}
        rows = min(ROWS, config.limit or ROWS)
        number = total_bytes = 0
        for batch in table.iter_batches(batch_size=rows, columns=relevant, use_threads=False):
            _check_texts(batch, name, number)
            # A batch without columns converts to an empty list.
            entries = batch.to_pylist() if relevant else [{} for _ in range(batch.num_rows)]
            for entry in entries:
                total_bytes += _size(entry)
                if total_bytes > MAX_BYTES:
                    raise ConfigError(f"{name}:[{number}]: the texts up to this row exceed {MAX_BYTES // 2**30} GiB.")
                yield f"[{number}]", entry | unread
                number += 1
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{name}: not Parquet: {reason}.") from error


def _text_columns(file: BinaryIO) -> list[str]:
    """Return the text columns, which are read as references to their distinct values."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    file.seek(0)
    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    return [field.name for field in schema if field.type in texts]


def _check_size(
    metadata: FileMetaData, relevant: Sequence[str], name: str, config: PromptsConfig, max_rows: int
) -> None:
    if config.limit is None and metadata.num_rows > max_rows:
        raise ConfigError(f"{name}: has {metadata.num_rows:,} rows; the limit is {max_rows:,}. Set prompts.limit.")
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for i in range(group.num_columns):
            column = group.column(i)
            if column.path_in_schema.split(".")[0] in relevant and column.num_values > MAX_VALUES:
                where = f"the column {column.path_in_schema!r} of row group {number}"
                raise ConfigError(f"{name}: {where} has {column.num_values:,} values; the limit is {MAX_VALUES:,}.")
        rows += group.num_rows
        if config.limit is not None and rows >= config.limit:
            break


def _check_texts(batch: Any, name: str, number: int) -> None:
    """Reject rows with a text larger than `MAX_TEXT`, before it is copied for each row."""
    import pyarrow
    import pyarrow.compute

    for column in batch.columns:
        if isinstance(column, pyarrow.DictionaryArray):
            longest = pyarrow.compute.max(pyarrow.compute.binary_length(column.dictionary)).as_py() or 0
            if longest > MAX_TEXT:
                where = f"{name}:[{number}] and the rows after it"
                raise ConfigError(f"{where}: a text has {longest:,} bytes; the limit is {MAX_TEXT:,}.")


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
