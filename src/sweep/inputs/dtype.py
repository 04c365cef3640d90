"""The dtype of a checkpoint, determined as in Transformers: from its configuration, else from its first tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sweep.errors import ConfigError
from sweep.inputs import weights
from sweep.inputs.tensor_files import unreadable

DTYPES = ("float32", "bfloat16", "float16")
_SAFETENSORS_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype and its source.

    Attributes:
        name: such as `bfloat16`.
        source: where it was found, such as `config.json`; for messages.
    """

    name: str
    source: str

    def __str__(self) -> str:
        """Return the dtype for a plan, such as `bfloat16 from config.json`."""
        return f"{self.name} from {self.source}"


def find(config: Any, folder: Path, model: str) -> Dtype:
    """Return the dtype in which a checkpoint runs.

    The order is: outer configuration, text configuration, first floating-point tensor, float32. The first tensor is
    that of the first file, in the order of names. Tensors with 8 and 4 bits do not count.

    Args:
        config: the outer `transformers` configuration.
        folder: the checkpoint's folder.
        model: the model's name, for errors.

    Raises:
        ConfigError: models cannot be run in this dtype, or the weights cannot be read.
    """
    dtype = _from_config(config) or _from_weights(folder, model) or Dtype("float32", "default")
    if dtype.name not in DTYPES:
        raise ConfigError(
            f"model.id: {model!r} has the dtype {dtype.name[:40]!r} ({dtype.source}), which engines do not run. "
            f"Set model.dtype to one of {', '.join(DTYPES)}."
        )
    return dtype


def _from_config(config: Any) -> Dtype | None:
    text = config.get_text_config()
    for source, name in ((config, "config.json"), (text, "the text configuration in config.json")):
        if (dtype := getattr(source, "dtype", None)) is not None:
            return Dtype(str(dtype).removeprefix("torch."), name)
    return None


def _from_weights(folder: Path, model: str) -> Dtype | None:
    with weights.translate_errors(model):
        if files := weights.files(folder, model):
            with safe_open(files[0], framework="numpy") as tensors:  # does not import PyTorch
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if (dtype := _SAFETENSORS_NAMES.get(tensors.get_slice(name).get_dtype())) is not None:
                        return Dtype(dtype, f"the first tensor, {name}")
            return None
        return _from_pickle(folder, model)


def _from_pickle(folder: Path, model: str) -> Dtype | None:
    import torch

    file = weights.pickle_file(folder, model)
    if file is None:
        return None
    try:
        tensors = torch.load(file, map_location="meta", weights_only=True)
        if not isinstance(tensors, Mapping):
            raise TypeError(f"it holds a {type(tensors).__name__}, expected tensors by name")
    except Exception as error:  # PyTorch raises almost any exception type for a broken file
        raise unreadable(error, file, "", "model.id") from error
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        short = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_floating_point() and not short.startswith(("float8_", "float4_")):
            return Dtype(short, f"the first tensor, {name}")
    return None
