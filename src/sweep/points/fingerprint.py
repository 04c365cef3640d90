"""Fingerprint: content hash of everything that a point's generations depend on.

Points with equal fingerprints are generated once. Only what is listed here counts: paths, number of workers, memory
and tracking do not. `tests/points/test_fingerprint.py` pins the format. Changing the format requires a new `VERSION`,
and all points are then generated again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from sweep.config.schema import SamplingConfig
from sweep.config.scoring_config import ScoringConfig
from sweep.core.section import Section
from sweep.engines import EngineConfig
from sweep.engines.sampling_args import as_text
from sweep.errors import ConfigError
from sweep.inputs import lora
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.input_store import InputStore
from sweep.inputs.tokenization import EncodedPrompt
from sweep.points.point import Point
from sweep.scoring.batch import code_of
from sweep.scoring.scorers import select
from sweep.util.digests import folder_digest
from sweep.util.validators import require

S = TypeVar("S", bound=Section)
T = TypeVar("T")

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

VERSION = 5
SCORING_VERSION = 2  # raise it when a measure changes, so that points are scored again


@dataclass(frozen=True, slots=True)
class PointFingerprint:
    """The content hashes of a point.

    Attributes:
        pieces: parts of `canonical`. Most points of a sweep share the longest ones.
        fingerprint: SHA-256 of `canonical`.
        result_key: hash of fingerprint and scoring. Equal for points with equal generations and scores.
        scorers: canonical JSON of the digests of user-defined scorers, or None if they are not compared.
    """

    pieces: tuple[str, ...]
    fingerprint: str
    result_key: str
    scorers: str | None = None

    @property
    def canonical(self) -> str:
        """JSON of everything that determines the point's generations."""
        return "".join(self.pieces)


class Fingerprints:
    """Computes the fingerprints of points from the inputs that an `InputStore` reads.

    Owned by the main thread.
    """

    def __init__(self, inputs: InputStore | None = None) -> None:
        """Create the fingerprints of a sweep.

        Args:
            inputs: the sweep's inputs, or None for a new store.
        """
        self.inputs = inputs or InputStore()
        self._sampling_text = _by_digest(_sampling_text)
        self._scoring_text = _by_digest(_scoring_text)
        self._scorers_text = _by_digest(scorers_text)
        self._engine_text = _by_digest(_engine_text)
        # By `content_digest` of the model, and of the model and the prompts.
        self._model_texts: dict[str, str] = {}
        self._digests: dict[tuple[str, str], tuple[str, str]] = {}
        self._first: dict[str, Point] = {}
        self._models: dict[str, ModelConfig] = {}
        self._prompts: dict[tuple[str, ...], PromptsConfig] = {}

    def distinct(self, points: Sequence[Point]) -> list[tuple[Point, Point]]:
        """Pair each point with the first point so far that has equal generations and scores.

        In the second points, models and prompts with equal content share one configuration, so that the points share a
        control.

        Raises:
            ConfigError: see `identify`.
        """
        unified = self._unify(points)
        keys = [point_fingerprint.result_key for point_fingerprint in self.identify(unified)]
        return [
            (point, self._first.setdefault(key, same)) for point, same, key in zip(points, unified, keys, strict=True)
        ]

    def identify(self, points: Sequence[Point]) -> list[PointFingerprint]:
        """Return the fingerprint of each point.

        Raises:
            ConfigError: a model, prompts or a scorer cannot be found or read, or a value is not a finite number, or a
                file has changed since it was first read.
        """
        self._read_prompts(points)
        return [self._identity(point) for point in points]

    def _read_prompts(self, points: Sequence[Point]) -> None:
        """Read and render prompts first, so that their errors appear before the weights are read."""
        distinct = {(p.config.model.content_digest, p.config.prompts.content_digest): p for p in points}.values()
        for point in distinct:
            self.inputs.prompts(point.config.prompts)
        for point in distinct:
            self._prompt_digests(point)

    def _identity(self, point: Point) -> PointFingerprint:
        config = point.config
        requests, references = self._prompt_digests(point)
        transform = _text(config.transform.identity(self.inputs.digest), "transform")
        # A swept engine setting counts even if it changes no generation, because its values are compared.
        swept = {key: value for key, value in point.axes if key.startswith("engine.")}
        # Canonical JSON with ascending keys, assembled from parts that many points share.
        sampling, scoring = self._sampling_text(config.sampling), self._scoring_text(config.scoring)
        engine, model = self._engine_text(config.engine), self._model_text(point)
        shared = _shared_members(engine, config.scoring.logprobs, model, requests, sampling)
        varied = _members(
            seed=_text(config.seed), swept=_text(swept, "swept"), transform=transform, version=str(VERSION)
        )
        pieces = ("{", shared, ",", varied, "}")
        fingerprint = _sha256("".join(pieces))
        scorers = self._scorers_text(config.scoring)
        scored_by = _scoring_members(point.role, references, scorers, scoring)
        return PointFingerprint(
            pieces, fingerprint, _sha256(f'[{SCORING_VERSION},"{fingerprint}",{scored_by}]')[:40], scorers
        )

    def _prompt_digests(self, point: Point) -> tuple[str, str]:
        """Return a digest of the prompts as sent to the model, and one of their texts and references for scoring."""
        model, prompts = point.config.model, point.config.prompts
        key = model.content_digest, prompts.content_digest
        if key not in self._digests:
            encoded = self.inputs.encoded(model, prompts)
            self._digests[key] = _requests_digest(encoded), _references_digest(encoded)
        return self._digests[key]

    def _model_text(self, point: Point) -> str:
        """Return the canonical JSON of a point's model. Its files count, its name does not."""
        key = point.config.model.content_digest
        if key not in self._model_texts:
            self._model_texts[key] = self._read_model(point)
        return self._model_texts[key]

    def _read_model(self, point: Point) -> str:
        model = point.config.model
        checkpoint = self.inputs.checkpoint(model)
        cache = point.config.sweep.root / ".cache" / "digests.json"
        content = {
            "files": folder_digest(checkpoint.folder, checkpoint.patterns, cache),
            "dtype": checkpoint.engine_dtype,
            "embedder": model.embedder,
            "trust_remote_code": model.trust_remote_code,
        }
        if (adapter := self.inputs.adapter(model)) is not None:
            content["lora"] = folder_digest(adapter.folder, lora.PATTERNS, cache)
        return _text(content)

    def _unify(self, points: Sequence[Point]) -> list[Point]:
        """Replace models and prompts of equal content by the first such configuration."""
        self._read_prompts(points)
        unified = []
        for point in points:
            config = point.config
            model_text = self._model_text(point)
            model = self._models.setdefault(model_text, config.model)
            prompts = self._prompts.setdefault((model_text, *self._prompt_digests(point)), config.prompts)
            unchanged = model is config.model and prompts is config.prompts
            unified.append(point if unchanged else replace(point, config=replace(config, model=model, prompts=prompts)))
        return unified


def canonical(value: Any) -> str:
    """Return a value as canonical JSON: `1`, `1.0` and `1e0` give the same text, and `-0.0` gives `0`.

    Raises:
        ConfigError: a number is NaN or infinite.
    """
    return _text(value)


@lru_cache(1024)
def _shared_members(engine: str, logprobs: int, model: str, prompts: str, sampling: str) -> str:
    """Return the JSON members that points usually share. Engine, model and sampling are JSON already."""
    return _members(engine=engine, logprobs=_text(logprobs), model=model, prompts=_text(prompts), sampling=sampling)


@lru_cache(1024)
def _scoring_members(role: str, references: str, scorers: str, scoring: str) -> str:
    """Return the inputs of scoring other than generations. Scorers and scoring are JSON already."""
    return f"{_text(role)},[{_text(references)},{scorers}],{scoring}"


def _members(**texts: str) -> str:
    """Return the members of a JSON object without its braces."""
    return ",".join(f'"{key}":{text}' for key, text in texts.items())


def _text(value: Any, key: str = "") -> str:
    """Return the canonical JSON of a value. Errors name the configuration key."""
    return _JSON.encode(_plain(value, key))


def _requests_digest(encoded: Sequence[EncodedPrompt]) -> str:
    """Return a digest of what determines requests: tokens, layout for spans, values, and the ids, which seed."""
    hashed = hashlib.sha256()
    for prompt in encoded:
        layout = prompt.layout
        contents = layout.contents and [(content.role, content.start, content.stop) for content in layout.contents]
        hashed.update(
            _JSON.encode(
                [
                    prompt.prompt.id,
                    prompt.prompt.messages is not None,
                    prompt.prompt.values,
                    layout.text,
                    layout.token_ids,
                    layout.offsets,
                    contents,
                    layout.placeholders,
                ]
            ).encode()
        )
    return hashed.hexdigest()


def _references_digest(encoded: Sequence[EncodedPrompt]) -> str:
    """Return a digest of the prompts' texts, references and choices, which are recorded and scored with the answers."""
    prompts = [one.prompt for one in encoded]
    return _digest([[p.text, p.references, *([p.choices] if p.choices else [])] for p in prompts])


def engine_settings(engine: EngineConfig) -> dict[str, Any]:
    """Return an engine's name and the settings that change generations."""
    return {"name": engine.name, **engine.generation_settings()}


def scorers_text(scoring: ScoringConfig) -> str:
    """Return the canonical JSON of the digests of user-defined measures, by name, as imported by this process."""
    codes = {name: scorer.code for name, scorer in select(scoring.quality).items() if scorer.code is not None}
    return _text(codes | code_of(scoring.measures))


def _sampling_text(sampling: SamplingConfig) -> str:
    values = asdict(sampling)
    args = as_text(values.pop("args"))
    return _text(values | ({"args": args} if args else {}), "sampling")


def _scoring_text(scoring: ScoringConfig) -> str:
    return _text(scoring.score_settings())


def _engine_text(engine: EngineConfig) -> str:
    return _text(engine_settings(engine), "engine")


def _digest(value: Any) -> str:
    return _sha256(canonical(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, float):
        require(math.isfinite(value), key or "a value", "must be a finite number to be part of a fingerprint", value)
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(name): _plain(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, key) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    raise ConfigError(f"{key}: a value of type {type(value).__name__} cannot be part of a fingerprint.")


def _by_digest(function: Callable[[S], T]) -> Callable[[S], T]:
    """Cache a function of a section by the digest of the section."""
    cache: dict[str, T] = {}

    def get(section: S) -> T:
        key = section.content_digest
        if key not in cache:
            cache[key] = function(section)
        return cache[key]

    return get
