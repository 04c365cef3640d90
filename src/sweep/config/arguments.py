"""Command-line arguments before Hydra reads them: translation to Hydra's syntax, and checks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from sweep.config.combinations import scope_of, unscoped
from sweep.config.dataclass_reader import COMPOSE
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS
from sweep.util.paths import conf_dir
from sweep.util.validators import did_you_mean

# Hydra's own modes. Every other command line is a sweep, even of a single point.
NOT_A_SWEEP = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"),
    *("--run", "-r", "--experimental-rerun"),
)
# Mappings whose keys are chosen by the user.
OPEN = ("prompts.chat_template_kwargs", "prompts.template_kwargs", "prompts.map", "engine.args", "sampling.args")
SWEEP = ("--multirun", "-m")  # the default
TEMPLATES = ("prompts.template", "prompts.map.")  # values that may be Jinja templates, whose braces Hydra cannot read

# Values with an equals sign and otherwise plain text: no quotes, brackets, functions, interpolations or escapes.
_PLAIN = re.compile(r"[^'\"\[\]{}()$\\]*=[^'\"\[\]{}()$\\]*")
_QUOTED_WORD = re.compile(r"'[\w.+-]*'")


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask for a sweep, not for help or another of Hydra's modes."""
    return not any(argument.partition("=")[0] in NOT_A_SWEEP for argument in arguments)


def is_completion(arguments: Sequence[str]) -> bool:
    """Return whether a shell asks for completions of a command line."""
    return any(argument in ("--shell-completion", "-sc") for argument in arguments) and any(
        argument.startswith("query=") for argument in arguments
    )


def without_multirun(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without `--multirun`, which is the default."""
    return [argument for argument in arguments if argument not in SWEEP]


def to_hydra_syntax(arguments: Sequence[str]) -> list[str]:
    """Return the arguments in Hydra's syntax.

    Raises:
        ConfigError: See `expand_compositions`.
    """
    return quote_equals(quote_templates(open_mappings(mark_scoped(expand_compositions(arguments)))))


def mark_scoped(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with parameters of one of several transforms as lists: `transform.scale.factor=choice(2)`.

    Hydra does not look for the keys of lists in the configuration that all points share. Without a sweep, a parameter
    of the chosen transform gets its plain key.
    """
    chosen = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == "transform"]
    marked = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        scope = scope_of(key)
        if scope is not None and not is_sweep(arguments):
            argument = f"{unscoped(key)}{equals}{value}" if [scope[0]] == chosen else argument
        elif scope is not None and (override := _parse(argument)) is not None and not override.is_sweep_override():
            quoted = _QUOTED_WORD.fullmatch(value)  # functions of Hydra's grammar lose quotes, such as those of 'null'
            argument = f'{key}=choice("{value}")' if quoted else f"{key}=choice({value})"
        marked.append(argument)
    return marked


def open_mappings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `++` before mappings whose keys are chosen by the user, and before their keys.

    Hydra requires `+` for a new key and refuses it for an existing one. `++` is valid for both.
    """
    return [f"++{argument}" if _adds_keys(argument) else argument for argument in arguments]


def _adds_keys(argument: str) -> bool:
    key, _, value = argument.partition("=")
    inside = key.startswith(tuple(f"{name}." for name in OPEN))
    return inside or (key in OPEN and "{" in value and value != "{}")


def quote_equals(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with quotes around values that contain an equals sign: `prompts.path=lr=0.1/text.jsonl`.

    Hydra cannot read such values without quotes. Values that it can read, or that are not plain text, stay unchanged.
    """
    return [_quoted(argument) for argument in arguments]


def quote_templates(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with quotes around Jinja templates that have none: `prompts.template=Q: {{question}}`."""
    return [_quoted_template(argument) for argument in arguments]


def _quoted_template(argument: str) -> str:
    key, _, value = argument.partition("=")
    template = key.lstrip("+").startswith(TEMPLATES) and ("{{" in value or "{%" in value)
    if not template or _parse(argument) is not None:
        return argument
    escaped = value.replace("'", "\\'")
    quoted = f"{key}='{escaped}'"
    return argument if _parse(quoted) is None else quoted


def _quoted(argument: str) -> str:
    key, _, value = argument.partition("=")
    if argument.startswith("-") or not _PLAIN.fullmatch(value) or _parse(argument) is not None:
        return argument
    quoted = ",".join(f"'{choice}'" if "=" in choice else choice for choice in value.split(","))
    return argument if _parse(f"{key}={quoted}") is None else f"{key}={quoted}"


def _parse(argument: str) -> Override | None:
    """Return the parsed override; None if Hydra cannot read it, which it reports later."""
    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, RecursionError):
        return None


def list_override(key: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of `key=[a,b]` or `key=a` on a command line; empty if it is missing or cannot be read."""
    for argument in arguments:
        if argument.partition("=")[0].lstrip("+") == key:
            if (override := _parse(argument)) is None:
                return []
            value = override.value()
            return [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry is not None]
    return []


def expand_compositions(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `transform=a+b` in Hydra's syntax: one option for each step, in a package of its own.

    Raises:
        ConfigError: A composition is part of a comma list, which Hydra cannot express, or a step has no name.
    """
    expanded = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "transform" or "+" not in value:
            expanded.append(argument)
            continue
        if "," in value:
            raise ConfigError(f"{argument}: a comma list cannot contain compositions. Run one sweep for each.")
        if not all(value.split("+")):
            raise ConfigError(f"{argument}: a step of the composition has no name. Example: transform=scale+noise.")
        steps = [f"+transform@transform.{index}={name}" for index, name in enumerate(value.split("+"))]
        expanded += [f"transform={COMPOSE}", *steps]
    return expanded


def check_values(arguments: Sequence[str]) -> None:
    """Refuse values on which Hydra fails without naming the argument.

    Raises:
        ConfigError: A group's option is not a name, or a range has the step 0.
    """
    for argument in arguments:
        if (override := _parse(argument)) is None:
            continue
        value = override.value()
        if isinstance(value, RangeSweep) and not value.step:
            raise ConfigError(f"{argument}: the step of a range must not be 0.")
        group = conf_dir() / override.key_or_group
        choices = value.list if isinstance(value, ChoiceSweep) else [value]
        not_a_name = any(choice is None or isinstance(choice, (int, float, dict)) for choice in choices)
        is_transform = override.key_or_group == "transform"  # its options are registered classes, not files
        if (is_transform or group.is_dir()) and not override.is_delete() and not_a_name:
            options = sorted(TRANSFORMS) if is_transform else sorted(path.stem for path in group.glob("*.yaml"))
            raise ConfigError(f"{argument}: there is no such option. {did_you_mean('', options)}")
