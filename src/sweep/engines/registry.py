"""Registry of engines: maps the name in `engine=<name>` to the configuration class."""

from __future__ import annotations

from typing import TypeVar

from sweep.engines.base import EngineConfig

ENGINES: dict[str, type[EngineConfig]] = {}
T = TypeVar("T", bound="type[EngineConfig]")


def register_engine(config: T) -> T:
    """Register an engine as `engine=<config.name>`; a decorator for its configuration class.

    List the module that calls it in `plugins`. The same class may be registered again, as on a second import.

    Raises:
        ValueError: the class has no name, or another class has the same name.
    """
    name = getattr(config, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{config.__qualname__} has no `name`. Set the class attribute `name: ClassVar[str]`.")
    registered = ENGINES.get(name, config)
    if (registered.__module__, registered.__qualname__) != (config.__module__, config.__qualname__):
        raise ValueError(
            f"The engine name {name!r} is taken by {registered.__module__}.{registered.__qualname__}. "
            "Choose another name."
        )
    ENGINES[name] = config
    return config
