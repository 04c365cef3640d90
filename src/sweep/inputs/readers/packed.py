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

MAX_BYTES = 2**30  # maximum bytes of decompressed contents; a file of a few megabytes can expand to more
BUFFER = 2**20  # bytes
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


class _Limited(io.RawIOBase):
    """A stream that counts its bytes up to `MAX_BYTES`. Owned by the thread that reads it."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self._count = stream, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # no more than needed: the rest of the file may be damaged
        self._count += len(data)
        if self._count > MAX_BYTES:
            limit = f"{MAX_BYTES / 2**30:.3g} GiB"
            raise ConfigError(f"{self._name}: is larger than {limit} without compression. Set prompts.limit.")
        buffer[: len(data)] = data
        return len(data)


def _zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(_Stream(stream), BUFFER))


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
        ConfigError: the contents cannot be read in order, are not what the suffix says, or exceed `MAX_BYTES`.
    """
    if not compression:
        yield file
        return
    if suffix in RANDOM_ACCESS:
        raise ConfigError(f"{name}: {suffix} files are compressed already. Decompress it to {Path(name).stem}.")
    try:
        limited = _Limited(DECOMPRESSORS[compression](file), name)
        yield cast(BinaryIO, io.BufferedReader(limited, BUFFER))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{name}: is damaged, or not a {compression} file: {error}.") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ConfigError(f"{name}: is damaged, or not a {compression} file: {error}.") from error
