"""PEFT checkpoints: location of the adapter file in a folder, adapter types, and soft prompts.

Valid for PEFT 0.21.2. `adapter_config.json` names the type. PROMPT_TUNING, P_TUNING and CPT save the prompt itself as
`prompt_embeddings`. MULTITASK_PROMPT_TUNING saves its factors. All other types save something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # in the order in which PEFT looks for them
PROMPT = "prompt_embeddings"
FACTORS = ("prefix_task_cols", "prefix_task_rows")
MULTITASK = "MULTITASK_PROMPT_TUNING"
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "CPT", MULTITASK)

_MERGE = (
    "Merge it into the model with PEFT (merge_and_unload, then save_pretrained) and set model.id to the merged model."
)
_CACHED = "It holds keys and values of each layer, which cannot be sent as embeddings. Train PROMPT_TUNING instead."
_OTHER = {
    "PREFIX_TUNING": _CACHED,
    "CARTRIDGE": _CACHED,
    "TRAINABLE_TOKENS": f"It holds replacement rows for tokens of the vocabulary. {_MERGE}",
}
# Types of adapters without a configuration, recognised by their tensor names.
_KINDS = {
    "LORA": re.compile(r"(^|\.)lora_(embedding_)?[AB](\.|$)"),
    "IA3": re.compile(r"(^|\.)ia3_l(\.|$)"),
    "TRAINABLE_TOKENS": re.compile(r"(^|\.)trainable_tokens_delta(\.|$)"),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter that `adapter_config.json` describes.

    Attributes:
        kind: its `peft_type`.
        rows: number of rows of a soft prompt; None if not stated.
        encoder_decoder: whether it belongs to an encoder-decoder model.
    """

    kind: str
    rows: int | None
    encoder_decoder: bool


def adapter_file(folder: Path, config_key: str, others: Sequence[str] = ()) -> Path:
    """Return the file with an adapter's tensors in a folder, or in the only checkpoint below it.

    Args:
        folder: a PEFT checkpoint, or a folder of checkpoints.
        config_key: the configuration key, for errors.
        others: names of other files that the caller has looked for, for errors.

    Raises:
        ConfigError: there is no adapter, or there are several checkpoints.
    """
    if (file := _adapter_in(folder)) is not None:
        return file
    checkpoints = {child.name: file for child in folder.iterdir() if child.is_dir() and (file := _adapter_in(child))}
    if len(checkpoints) == 1:
        return next(iter(checkpoints.values()))
    if checkpoints:
        names = sorted(checkpoints, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split("-")])
        shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        raise ConfigError(
            f"{config_key}: the folder {str(folder)!r} holds {len(checkpoints)} checkpoints: {shown}. "
            f"Choose one, such as {config_key}={folder / names[-1]}."
        )
    files = sorted(child.name for child in folder.iterdir())
    shown = ", ".join(files[:12]) + (" …" if len(files) > 12 else "")
    *first, last = *others, *ADAPTERS
    raise ConfigError(
        f"{config_key}: the folder {str(folder)!r} holds no {', '.join(first)} or {last}. "
        f"It has: {shown or 'no files'}."
    )


def config_of(file: Path) -> Path | None:
    """Return the configuration next to an adapter file; None if the file is not an adapter."""
    config = file.parent / CONFIG
    return config if file.name.startswith("adapter_model") and config.is_file() else None


def read_adapter(file: Path, config_key: str) -> Adapter | None:
    """Return the adapter that the configuration next to a file describes; None if there is none.

    Raises:
        ConfigError: the configuration is damaged.
    """
    config = config_of(file)
    if config is None:
        return None
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        kind, tokens = values["peft_type"], values.get("num_virtual_tokens")
        parts = values.get("num_transformer_submodules") or (2 if values.get("task_type") == "SEQ_2_SEQ_LM" else 1)
        rows = tokens * parts if isinstance(tokens, int) and isinstance(parts, int) else None
        return Adapter(str(kind), rows, parts != 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{config_key}: {config} is not a PEFT configuration; "
            f"expected JSON with a peft_type ({type(error).__name__})."
        ) from error


def require_prompt(adapter: Adapter | None, names: Sequence[str], key: str | None, file: Path, config_key: str) -> None:
    """Reject adapters that are not soft prompts, and tensors of an adapter that are not its prompt.

    Raises:
        ConfigError: names the adapter's type and the remedy.
    """
    key_option = config_key.rpartition(".")[0] + ".key"
    kind = adapter.kind if adapter is not None else _type_from_names(names if key is None else [key])
    _reject_other_types(kind, file, config_key, "a soft prompt")
    if (adapter is not None or is_multitask(names)) and key not in (None, PROMPT):
        raise ConfigError(f"{key_option}: the soft prompt of {file} is {PROMPT}, not {key!r}. Remove the key.")
    if adapter is None:
        return
    if adapter.encoder_decoder:
        raise ConfigError(
            f"{config_key}: {file} is a soft prompt for an encoder-decoder model (task_type SEQ_2_SEQ_LM); "
            "expected one for CAUSAL_LM."
        )
    if PROMPT not in names:
        shown = ", ".join(sorted(names)[:12])
        raise ConfigError(
            f"{config_key}: {file} is of type {adapter.kind}, but has no {PROMPT}. It holds: {shown or 'no tensors'}."
        )
    if adapter.kind == MULTITASK and not is_multitask(names):
        raise ConfigError(f"{config_key}: {file} is of type {MULTITASK}, but has no {' and '.join(FACTORS)}.")


def require_weights(adapter: Adapter | None, names: Sequence[str], file: Path, config_key: str) -> None:
    """Reject adapters where the weights of layers are expected.

    Raises:
        ConfigError: names the adapter's type and the remedy.
    """
    _reject_other_types(
        adapter.kind if adapter is not None else _type_from_names(names), file, config_key, "layers of their own"
    )


def require_rows(adapter: Adapter | None, rows: Tensor, file: Path, config_key: str) -> None:
    """Check that a soft prompt, (n, width), has the number of rows stated in its configuration.

    Raises:
        ConfigError: states both numbers.
    """
    if adapter is not None and adapter.rows is not None and len(rows) != adapter.rows:
        raise ConfigError(
            f"{config_key}: {file} has {len(rows)} rows, but its {CONFIG} says num_virtual_tokens={adapter.rows}."
        )


def is_multitask(names: Sequence[str]) -> bool:
    """Return whether tensor names are those of the factors of soft prompts for several tasks."""
    return all(name in names for name in FACTORS)


def multitask_prompt(read: Callable[[str], Tensor], task: int | None, file: Path, config_key: str) -> Tensor:
    """Return one task's soft prompt, shared × (cols[t] @ rows[t]): (n, width), float32.

    Multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861), as in PEFT's `MultitaskPromptEmbedding.forward`.

    Args:
        read: returns a tensor in float32 by name: the shared prompt (n, width), cols (tasks, n, rank) and rows
            (tasks, rank, width).
        task: t.
        file: the adapter's file, for errors.
        config_key: the configuration key, for errors.

    Raises:
        ConfigError: the task is missing or does not exist, or the shapes of the factors do not match.
    """
    shared, cols, rows = (read(name) for name in (PROMPT, *FACTORS))
    matches = shared.ndim == 2 and cols.ndim == rows.ndim == 3
    matches = matches and cols.shape[:2] == (rows.shape[0], shared.shape[0])
    if not matches or rows.shape[1:] != (cols.shape[2], shared.shape[1]):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (shared, cols, rows))
        raise ConfigError(
            f"{config_key}: the shapes of {PROMPT}, {' and '.join(FACTORS)} in {file} do not match: {shapes}."
        )
    if task is None:
        raise ConfigError(
            f"{config_key}: {file} holds soft prompts of {len(cols)} tasks. "
            f"Choose one: transform=soft_prompt transform.task=0 (to {len(cols) - 1})."
        )
    if task >= len(cols):
        raise ConfigError(f"transform.task: {file} holds tasks 0 to {len(cols) - 1}; got {task}.")
    # A batch of one, as in PEFT: an unbatched product can differ in the last bit.
    prompt: Tensor = shared * (cols[task : task + 1] @ rows[task : task + 1])[0]
    return prompt


def _reject_other_types(kind: str | None, file: Path, config_key: str, expected: str) -> None:
    if kind is not None and kind not in PROMPTS:
        advice = _OTHER.get(kind, f"It changes the model's weights. {_MERGE}")
        raise ConfigError(f"{config_key}: {file} is a PEFT adapter of type {kind}, not {expected}. {advice}")


def _adapter_in(folder: Path) -> Path | None:
    return next((folder / name for name in ADAPTERS if (folder / name).is_file()), None)


def _type_from_names(names: Sequence[str]) -> str | None:
    return next((kind for kind, pattern in _KINDS.items() if any(pattern.search(name) for name in names)), None)
