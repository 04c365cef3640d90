"""Projectors: linear layers that map an encoder's rows to the width of the model's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.inputs.tensors import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

Layers = Sequence[tuple["Tensor", "Tensor | None"]]


def project(rows: Tensor, path: str) -> Tensor:
    """Return rows after a projector's layers, with GELU in between: (n, width of its last layer).

    Raises:
        ConfigError: the file holds no projector, or one for rows of another width.
    """
    import torch

    layers = _layers(path)
    if layers[0][0].shape[1] != rows.shape[1]:
        raise ConfigError(
            f"transform.projector: {path!r} takes rows of width {layers[0][0].shape[1]}; "
            f"the encoder's are {rows.shape[1]} wide."
        )
    for number, (weight, bias) in enumerate(layers):
        rows = torch.nn.functional.linear(torch.nn.functional.gelu(rows) if number else rows, weight, bias)
    return rows


def _layers(path: str) -> Layers:
    """Return the weights and biases of a projector's layers, first to last."""
    tensors = load_tensors(path, config_key="transform.projector")
    names = [name for name in tensors if name.rpartition(".")[2] == "weight"]
    # Numeric order, so that layer 10 comes after layer 2.
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    layers = [(tensors[name], tensors.get(name[: -len("weight")] + "bias")) for name in names]
    used_tensors = len(layers) + sum(bias is not None for _, bias in layers)
    valid = used_tensors == len(tensors) and all(weight.ndim == 2 for weight, _ in layers)
    valid &= all(bias is None or bias.shape == weight.shape[:1] for weight, bias in layers)
    if not layers or not valid or any(a.shape[0] != b.shape[1] for (a, _), (b, _) in pairwise(layers)):
        shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:8])
        raise ConfigError(
            f"transform.projector: {path!r} holds no projector. Expected one or more successive linear layers, "
            f"each with a weight [out, in] and a bias [out]; found {shown}."
        )
    return layers
