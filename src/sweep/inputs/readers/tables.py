"""Tables: Parquet, Arrow and Feather. Only relevant columns are read, in batches of a few rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.readers import base
from sweep.inputs.readers.base import Entries, register_reader
from sweep.inputs.relevance import is_relevant

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

ROWS = 64  # rows per batch
MAX_TEXT = 64 * 2**20  # maximum bytes of one text
MAX_BYTES = 2**30  # maximum bytes of all texts; a file of a few kilobytes can expand to more
MAX_VALUES = 2**27  # maximum values in the lists of a row group

UNREAD = object()  # replaces the values of a column that was not read


class UnreadText:
    """Replaces the texts of a column that was not read."""


@register_reader(".parquet")
def read_parquet(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield (place, entry) for each row. Columns without meaning for prompts hold `UNREAD` or `UnreadText`.

    Raises:
        ConfigError: not Parquet, or more rows, values or bytes than the limits.
    """
    import pyarrow.parquet

    with _reported(name, "Parquet"):
        text_columns = _text_columns(pyarrow.parquet.read_schema(file))
        file.seek(0)
        table = pyarrow.parquet.ParquetFile(file, read_dictionary=text_columns)
        columns = Columns(table.schema_arrow, name, config)
        _check_size(table.metadata, columns.relevant, name, config)
        rows = min(ROWS, config.limit or ROWS)
        batches = table.iter_batches(batch_size=rows, columns=columns.relevant, use_threads=False)
        yield from columns.entries(batches)


@register_reader(".arrow", ".feather")
def read_arrow(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield (place, entry) for each row of an Arrow file or stream, such as Feather and the files of `datasets`.

    Raises:
        ConfigError: not Arrow, or more rows or bytes than the limits.
    """
    from pyarrow import ipc

    with _reported(name, "Arrow"):
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        opened = ipc.open_file(file) if is_file else ipc.open_stream(file)
        columns = Columns(opened.schema, name, config)
        options = ipc.IpcReadOptions(included_fields=[columns.names.index(column) for column in columns.relevant])
        file.seek(0)
        opened = ipc.open_file(file, options=options) if is_file else ipc.open_stream(file, options=options)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else opened
        yield from columns.entries(
            batch.slice(start, ROWS) for batch in batches for start in range(0, batch.num_rows, ROWS)
        )


@contextmanager
def _reported(name: str, form: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{name}: not {form}: {reason}.") from error


class Columns:
    """Columns of a table: those that are read, and what replaces the others in each entry.

    Attributes:
        names: all columns.
        relevant: those that are read.
        unread: what replaces the values of the others.
    """

    def __init__(self, schema: Any, name: str, config: PromptsConfig) -> None:
        """Sort the columns of a table.

        Raises:
            ConfigError: two columns have one name.
        """
        self.names: list[str] = schema.names
        if duplicate := next((column for column in self.names if self.names.count(column) > 1), None):
            raise ConfigError(f"{name}: two columns are named {duplicate!r}.")
        self.relevant = [column for column in self.names if is_relevant(column, config)]
        texts = _text_columns(schema)
        self.unread = {c: UnreadText() if c in texts else UNREAD for c in self.names if c not in self.relevant}
        self._name = name

    def entries(self, batches: Iterable[Any]) -> Entries:
        """Yield the rows of batches that have the relevant columns.

        Raises:
            ConfigError: there are more rows or bytes than the limits.
        """
        number = total_bytes = 0
        for batch in batches:
            _check_texts(batch, self._name, number)
            # A batch without columns converts to an empty list.
            entries = batch.to_pylist() if self.relevant else [{} for _ in range(batch.num_rows)]
            for entry in entries:
                total_bytes += _size(entry)
                if total_bytes > MAX_BYTES:
                    limit = MAX_BYTES // 2**30
                    raise ConfigError(f"{self._name}:[{number}]: the texts up to this row exceed {limit} GiB.")
                yield f"[{number}]", entry | self.unread
                number += 1


def _text_columns(schema: Any) -> list[str]:
    """Return the text columns, which Parquet reads as references to their distinct values."""
    import pyarrow

    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    types = {field.name: field.type for field in schema}
    return [n for n, t in types.items() if (t.value_type if pyarrow.types.is_dictionary(t) else t) in texts]


def _check_size(metadata: FileMetaData, relevant: Sequence[str], name: str, config: PromptsConfig) -> None:
    max_rows = base.MAX_PROMPTS
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
