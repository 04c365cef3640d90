"""What a point's generations depend on, and nothing else: its content, from which its fingerprint is made.

Equal fingerprints need not be generated twice, wherever the files lie, whoever runs them and however fast.  What is
listed here is an allow-list: paths, workers, memory and tracking do not count.  `tests/test_identity.py` holds the form
still; a change of it needs a new `VERSION`, and everything is generated anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sweep.checks import require
from sweep.config import ModelConfig, PromptsConfig
from sweep.disk.digests import folder_digest
from sweep.errors import ConfigError
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs import prompts as prompt_files
from sweep.point import Point
from sweep.scoring.scorers import select

T = TypeVar("T")

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

VERSION = 4
SCORING_VERSION = 2  # to be raised when a measure changes, so that points are scored again


@dataclass(frozen=True, slots=True)
class Identity:
    """What a point is.

    Attributes:
        pieces: of `canonical`; most points of a sweep share the longest ones.
        fingerprint: the SHA-256 of `canonical`.
        result_key: equal for points whose generations and scores are the same.
    """

    pieces: tuple[str, ...]
    fingerprint: str
    result_key: str

    @property
    def canonical(self) -> str:
        """The JSON text of what determines the point's generations."""
        return "".join(self.pieces)


class Contents:
    """What points are, from the contents of their models', prompts', transforms' and scorers' files, each read once."""

    def __init__(self) -> None:
        self._model_of = _once(lambda point: _model(point.config.model, point.config.sweep.root))
        self._model_name = _once(lambda point: canonical(self._model_of(point, point.config.model)))
        self._prompts_of = _once(lambda point: _prompts(point.config.prompts))
        self._scorers_of = _once(lambda point: _text(_scorers(point.config.scoring.quality)))
        self._sampling_text = _by_object(lambda point: _text(asdict(point.config.sampling), "sampling"))
        self._scoring_text = _by_object(lambda point: _text(asdict(point.config.scoring), ""))
        self._first: dict[str, Point] = {}
        self._models: dict[str, ModelConfig] = {}
        self._prompts: dict[object, PromptsConfig] = {}

    def distinct(self, points: Sequence[Point]) -> list[tuple[Point, Point]]:
        """Return each point with the first one ever that is the same in all that is generated and scored.

        Models and prompts that are equal in content are one configuration in the latter, so that their points share a
        control.

        Raises:
            ConfigError: as of `identify`.
        """
        unified = self._unify(points)
        keys = [identity.result_key for identity in self.identify(unified)]
        return [
            (asked, self._first.setdefault(key, own)) for asked, own, key in zip(points, unified, keys, strict=True)
        ]

    def identify(self, points: Sequence[Point]) -> list[Identity]:
        """Return what each point is.

        Raises:
            ConfigError: a model, prompts or a scorer that cannot be found or read; a value that is not a number.
        """
        for point in points:  # a mistake in prompts need not wait for the weights to be read
            self._prompts_of(point, point.config.prompts)
        return [self._identity(point) for point in points]

    def _identity(self, point: Point) -> Identity:
        config = point.config
        asked, references = self._prompts_of(point, config.prompts)
        model, transform = self._model_name(point, config.model), _text(config.transform.identity(), "transform")
        # What is compared is part of what is compared: engines' settings count where they are swept.
        swept = {key: value for key, value in point.axes if key.startswith("engine.")}
        # The canonical JSON of all of it, put together of texts that many points have in common; keys ascend.
        sampling, scoring = self._sampling_text(point, config.sampling), self._scoring_text(point, config.scoring)
        shared = _shared(config.engine.name, config.scoring.logprobs, model, asked, sampling)
        own = _members(seed=_text(config.seed), swept=_text(swept, "swept"), transform=transform, version=str(VERSION))
        pieces = ("{", shared, ",", own, "}")
        fingerprint = _sha256("".join(pieces))
        judged = _judged(point.role, references, self._scorers_of(point, config.scoring.quality), scoring)
        return Identity(pieces, fingerprint, _sha256(f'[{SCORING_VERSION},"{fingerprint}",{judged}]')[:40])

    def _unify(self, points: Sequence[Point]) -> list[Point]:
        unified = []
        for point in points:
            config = point.config
            own = self._prompts.setdefault(self._prompts_of(point, config.prompts), config.prompts)
            model = self._models.setdefault(self._model_name(point, config.model), config.model)
            same = model is config.model and own is config.prompts
            unified.append(point if same else replace(point, config=replace(config, model=model, prompts=own)))
        return unified


def canonical(value: Any) -> str:
    """Return a value as JSON that is the same for equal values: `1`, `1.0` and `1e0` agree, `-0.0` is `0`.

    Raises:
        ConfigError: a number that is NaN or infinite.
    """
    return _text(value)


@lru_cache(1024)
def _shared(engine: str, logprobs: int, model: str, prompts: str, sampling: str) -> str:
    """Return those members of the canonical JSON that points have in common; model and sampling are JSON already."""
    return _members(
        engine=_text(engine), logprobs=_text(logprobs), model=model, prompts=_text(prompts), sampling=sampling
    )


@lru_cache(1024)
def _judged(role: str, references: str, scorers: str, scoring: str) -> str:
    """Return what decides a point's scores beside its generations; scorers and scoring are JSON already."""
    return f"{_text(role)},[{_text(references)},{scorers}],{scoring}"


def _members(**texts: str) -> str:
    """Return the inside of a JSON object of its members' texts."""
    return ",".join(f'"{key}":{text}' for key, text in texts.items())


def _text(value: Any, key: str = "") -> str:
    """Return `canonical(value)` of what stands under a key, which errors are to name."""
    return _JSON.encode(_plain(value, key))


def _model(model: ModelConfig, root: Path) -> dict[str, Any]:
    found = checkpoints.find(model)
    # A folder of the user's is known by what is in it, not by where it lies.
    named = model.id if not Path(model.id).expanduser().is_dir() else None
    return {
        "id": named,
        "revision": model.revision,
        "files": folder_digest(found.folder, checkpoints.PATTERNS, root / ".cache" / "digests.json"),
        "dtype": model.dtype,
        "embedder": model.embedder,
        "trust_remote_code": model.trust_remote_code,
    }


def _prompts(config: PromptsConfig) -> tuple[str, str]:
    """Return digests of what prompts ask, and of what counts as right."""
    prompts = prompt_files.load(config)
    asked = [asdict(prompt) for prompt in prompts]
    for own in asked:
        own.pop("references")
    kept = sorted(config.placeholders)
    return _digest([asked, kept, config.chat, config.system]), _digest([prompt.references for prompt in prompts])


def _scorers(names: Sequence[str]) -> dict[str, str]:
    """Return the digests of users' own scorers, by name."""
    return {name: scorer.code for name, scorer in select(names).items() if scorer.code is not None}


def _digest(value: Any) -> str:
    return _sha256(canonical(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, float):
        require(math.isfinite(value), key or "a value", "must be a finite number to be part of a point", value)
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(name): _plain(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, key) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    raise ConfigError(f"{key}: {type(value).__name__} cannot be part of a point.")


def _once(make: Callable[[Point], T]) -> Callable[[Point, Any], T]:
    """Return `make`, called once for each value of its second argument, which need not be hashable."""
    known: list[tuple[Any, T]] = []

    def get(point: Point, wanted: Any) -> T:
        for other, made in known:
            if other is wanted or other == wanted:
                return made
        known.append((wanted, make(point)))
        return known[-1][1]

    return get


def _by_object(make: Callable[[Point], T]) -> Callable[[Point, Any], T]:
    """Return `make`, called once for each object that its second argument is; for what points share."""
    known: dict[int, tuple[Any, T]] = {}  # the objects too, lest another one get their id

    def get(point: Point, wanted: Any) -> T:
        if id(wanted) not in known:
            known[id(wanted)] = wanted, make(point)
        return known[id(wanted)][1]

    return get
