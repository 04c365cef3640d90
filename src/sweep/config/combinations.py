"""Points of a sweep: all combinations of values, lists that are zipped, and parameters of one of several transforms.

Hydra's sweeper only knows the product of all lists. `sweep.zip` names lists that are read in parallel, and
`transform.NAME.PARAMETER` sets a parameter at the points whose transform is NAME.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import product

from hydra.core.override_parser.types import Override

from sweep.config.point_count import check_product, count_values
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS
from sweep.util.validators import did_you_mean

ZIP = "sweep.zip"
EXAMPLE = f"Example: {ZIP}=transform.factor+sampling.max_tokens"


def zip_groups(text: str | None) -> list[list[str]]:
    """Return the groups of keys in `sweep.zip`: keys joined by +, groups separated by spaces.

    Raises:
        ConfigError: a group has fewer than two keys, or a key occurs twice.
    """
    groups = [group.split("+") for group in (text or "").split()]
    for group in groups:
        if len(group) < 2 or not all(group):
            raise ConfigError(f"{ZIP}: {'+'.join(group)!r} must be at least two keys joined by +. {EXAMPLE}.")
    keys = [key for group in groups for key in group]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"{ZIP}: {twice[0]} occurs twice. A key can be zipped once.")
    return groups


def describe_zip(text: str | None) -> Iterator[str]:
    """Yield a sentence for each group of `sweep.zip`."""
    for first, *others in zip_groups(text):
        yield f"Zipped: {first} with {', '.join(others)}"


def scope_of(key: str) -> tuple[str, str] | None:
    """Return transform and parameter of a key such as `transform.scale.factor`; None for any other key."""
    group, _, rest = key.lstrip("+").partition(".")
    name, _, parameter = rest.partition(".")
    if group != "transform" or not parameter or name not in TRANSFORMS or _is_parameter(name):
        return None
    return name, parameter


def unscoped(key: str) -> str:
    """Return the key that a point's configuration has: `transform.factor` for `transform.scale.factor`."""
    scope = scope_of(key)
    return key if scope is None else f"{_prefix(key)}transform.{scope[1]}"


def combine(overrides: Sequence[Override], zipped: str | None, transform: str) -> list[list[str]] | None:
    """Return the overrides of each point; None if all lists are simply combined, as Hydra's sweeper does.

    Args:
        overrides: the overrides of the command. The last one of a key counts.
        zipped: value of `sweep.zip`.
        transform: the transform, unless an override chooses it.

    Raises:
        ConfigError: zipped lists differ in length, a parameter belongs to no chosen transform, or there are too many
            points.
    """
    last = {override.get_key_element().lstrip("+"): override for override in overrides}
    prefixes = {key: _prefix(override.get_key_element()) for key, override in last.items()}
    groups = zip_groups(zipped)
    scopes = {key: scope[0] for key in last if (scope := scope_of(key)) is not None}
    if ZIP in last and last[ZIP].is_sweep_override():
        raise ConfigError(f"{ZIP} cannot be swept. Separate groups of keys by spaces: {ZIP}='a+b c+d'.")
    if not groups and not scopes:
        return None
    counts = {key: count_values(override) if override.is_discrete_sweep() else 1 for key, override in last.items()}
    _check_zips(groups, last, counts)
    choices = list(dict.fromkeys(_texts(last["transform"]))) if "transform" in last else [transform]
    _check_scopes(scopes, choices, list(last))
    _check_pairs(groups, scopes, choices)
    followers = {key: group for group in groups for key in group}
    of_choice = {choice: _dimensions(choice, last, followers, scopes) for choice in choices}
    for dimensions in of_choice.values():
        check_product({keys[0]: counts[keys[0]] for keys in dimensions})
    values = {key: _texts(override) for key, override in last.items()}
    points = []
    for choice, dimensions in of_choice.items():
        points += [
            [line for cell in cells for line in cell]
            for cells in product(*(_cells(keys, values, choice, prefixes) for keys in dimensions))
        ]
    check_product({"all transforms": len(points)})
    return points


def _prefix(key: str) -> str:
    """Return the `+` or `++` before a key."""
    return key[: len(key) - len(key.lstrip("+"))]


def _is_parameter(name: str) -> bool:
    """Return whether a transform's name is also a section of parameters, such as `transform.vector.path`."""
    sections = (field for transform in TRANSFORMS.values() for field in fields(transform) if field.name == name)
    return any(is_dataclass(field.default_factory) or field.default_factory is dict for field in sections)


def _texts(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _check_zips(groups: Sequence[Sequence[str]], last: Mapping[str, Override], counts: Mapping[str, int]) -> None:
    lists = [key for key, override in last.items() if override.is_sweep_override()]
    for group in groups:
        for key in group:
            if key not in last:
                raise ConfigError(f"{ZIP}: {key} is not swept. {did_you_mean(key, lists)}")
        if len({counts[key] for key in group}) > 1:
            found = ", ".join(f"{key} {counts[key]}" for key in group)
            raise ConfigError(f"{ZIP}: zipped keys need equally many values; got {found}.")


def _check_scopes(scopes: Mapping[str, str], choices: Sequence[str], keys: Sequence[str]) -> None:
    for key, name in scopes.items():
        if name not in choices:
            chosen = ",".join(choices)
            hint = " Parameters of a composition have the number of their step: transform.0.factor." * (
                chosen == "compose"
            )
            raise ConfigError(f"{key}: the sweep has no transform {name} (transform={chosen}).{hint}")
        if unscoped(key) in keys:
            raise ConfigError(f"{key} and {unscoped(key)} set the same parameter of {name}. Remove one.")


def _check_pairs(groups: Sequence[Sequence[str]], scopes: Mapping[str, str], choices: Sequence[str]) -> None:
    for group in groups:
        scoped = [key for key in group if key in scopes]
        if scoped and "transform" in group:
            raise ConfigError(f"{ZIP}: transform and {scoped[0]} cannot be zipped. Remove one.")
        if all(sum(scopes.get(key, choice) == choice for key in group) < 2 for choice in choices):
            raise ConfigError(f"{ZIP}: no transform has two of {', '.join(group)}, so no values are paired. {EXAMPLE}.")


def _dimensions(
    choice: str, keys: Mapping[str, Override], followers: Mapping[str, list[str]], scopes: Mapping[str, str]
) -> list[list[str]]:
    """Return the keys of points with a transform: each alone, zipped ones together."""
    dimensions: list[list[str]] = []
    for key in keys:
        together = [other for other in followers.get(key, [key]) if scopes.get(other, choice) == choice]
        if together and together not in dimensions:
            dimensions.append(together)
    return dimensions


def _cells(
    keys: Sequence[str], values: Mapping[str, Sequence[str]], choice: str, prefixes: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """Return the overrides of each value of a key, or of each tuple of values of zipped keys."""
    cells = []
    for texts in zip(*(values[key] for key in keys), strict=True):
        pairs = list(zip(keys, texts, strict=True))
        if all(key != "transform" or text == choice for key, text in pairs):
            cells.append(tuple(f"{prefixes[key]}{unscoped(key)}={text}" for key, text in pairs))
    return list(dict.fromkeys(cells))
