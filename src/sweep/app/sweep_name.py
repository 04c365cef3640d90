"""Default name of a sweep, made from its overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sweep.config.combinations import ZIP, scope_of
from sweep.config.overrides import NOT_AXES

LENGTH = 120  # characters of a name
VALUE_LENGTH = 48  # characters of one value in it

STEP = "transform@transform."  # key of a step of a composition, as Hydra spells it

# Keys with paths or hub ids as values, and their labels in a name.
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)  # see `arguments.mark_scoped`
SOURCES = {"model.id": "model", "prompts.path": "prompts"}


def default_name(arguments: Sequence[str], transform: str) -> str:
    """Return a name such as `scale factor=1.2,1.5`: the transform, its parameters, then the other overrides.

    Args:
        arguments: Overrides as typed or as Hydra spells them. Those that only decide where or how a sweep runs are
            omitted.
        transform: Name of the first point's transform, used if no transform was typed.
    """
    pairs = [_split(argument) for argument in arguments if "=" in argument and not argument.startswith("-")]
    steps = [value for key, value in pairs if key.startswith(STEP)]
    named = {key: value for key, value in pairs if key.split(".")[0] not in NOT_AXES and not key.startswith(STEP)}
    typed = named.pop("transform", None)
    head = "+".join(steps) or typed or named.pop("experiment", None) or transform
    parameters = [key for key in named if key.startswith("transform.")]
    others = [key for key in named if not key.startswith("transform.")]
    labels = _labels([*parameters, *others])
    pairs_of = {key.replace("/", "."): value for key, value in pairs}
    zipped = [f"zip={pairs_of[ZIP]}"] if ZIP in pairs_of else []
    words = [_shortened(head), *(f"{label}={_value(key, named[key])}" for key, label in labels.items()), *zipped]
    name = " ".join(words)
    return name if len(name) <= LENGTH else name[: LENGTH - 1] + "…"


def _split(argument: str) -> tuple[str, str]:
    key, _, value = argument.lstrip("+").partition("=")
    if scope_of(key) is not None and (choice := _CHOICE.fullmatch(value)):
        value = choice[1]
    return key.replace("/", "."), value


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """Return a unique short label for each key: its last part, or the whole key if that is ambiguous."""
    short = {key: SOURCES.get(key) or key.rsplit(".", 1)[-1] for key in keys}
    labels = list(short.values())
    return {key: label if labels.count(label) == 1 else key.removeprefix("transform.") for key, label in short.items()}


def _value(key: str, text: str) -> str:
    if key in SOURCES:
        text = ",".join(value.rstrip("/").rsplit("/", 1)[-1] for value in text.split(","))
    return _shortened(text)


def _shortened(text: str) -> str:
    plain = text.strip("'\"") if text[:1] == text[-1:] and text[:1] in "'\"" else text
    return plain if len(plain) <= VALUE_LENGTH else plain[: VALUE_LENGTH - 1] + "…"
