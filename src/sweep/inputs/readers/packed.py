"""Compressed files: .gz, .zst, .bz2 and .xz around any format that is read from its beginning to its end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sweep.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import NativeFile

RANDOM_ACCESS = (".parquet", ".xlsx", ".xlsm", ".arrow", ".feather")  # compressed by themselves, and read out of order


class _Stream(io.RawIOBase):
    """A decompressing stream of pyarrow as a raw stream of Python. Owned by the thread that reads it."""

    def __init__(self, stream: NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(_Stream(stream), 2**20))


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".zst": _zstd,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def inner_suffix(path: Path) -> tuple[str, str]:
    """Return the suffix of the format and that of the compression, empty if there is none."""
    outer = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), outer) if outer in DECOMPRESSORS else (outer, "")


@contextmanager
def unpacked(file: BinaryIO, name: str, suffix: str, compression: str) -> Iterator[BinaryIO]:
    """Return the decompressed contents of an open file.

    Raises:
        ConfigError: the contents cannot be read in order, or are not what the suffix says.
    """
    if not compression:
        yield file
        return
    if suffix in RANDOM_ACCESS:
        raise ConfigError(f"{name}: {suffix} files are compressed already. Decompress it to {Path(name).stem}.")
    try:
        yield DECOMPRESSORS[compression](file)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{name}: is damaged, or not a {compression} file: {error}.") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ConfigError(f"{name}: is damaged, or not a {compression} file: {error}.") from error
