"""Information about a checkpoint that an engine needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A LoRA adapter as an engine loads it.

    Attributes:
        folder: contains `adapter_config.json` and the tensors.
        rank: largest rank of its matrices.
    """

    folder: Path
    rank: int


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model as an engine loads it.

    Attributes:
        folder: contains the model's files.
        dtype: name of the dtype in which to run it.
        trust_remote_code: whether code from the model's repository may run.
        adapters: adapters that requests may name.
    """

    folder: Path
    dtype: str
    trust_remote_code: bool
    adapters: tuple[AdapterFiles, ...] = ()
