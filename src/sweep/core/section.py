"""Configuration section: base class with a cached digest, by which caches and comparisons identify equal sections."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class Section:
    """Base class of configuration sections, which are frozen dataclasses of plain values.

    Immutable, and shared by points, threads and caches. Threads that need the digest at the same time compute equal
    ones. The digest is not pickled and not one of the fields.
    """

    __slots__ = ("_content_digest",)
    _content_digest: str

    @property
    def content_digest(self) -> str:
        """Digest of the class and the values: equal for equal sections of this process, and computed once for each."""
        try:
            return self._content_digest
        except AttributeError:
            values: Any = asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses
            name = f"{type(self).__module__}.{type(self).__qualname__}"
            object.__setattr__(self, "_content_digest", value_digest([name, values]))
            return self._content_digest


def value_digest(value: Any) -> str:
    """Return a digest of plain values. It tells `1`, `1.0` and `true` apart, and ignores the order of keys."""
    try:
        text = _JSON.encode(value)
    except TypeError:  # keys of several types, or values that are not JSON; reported when the section is read
        text = repr(value)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
