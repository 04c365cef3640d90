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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.checks import require
from sweep.config import ModelConfig, PromptsConfig
from sweep.disk.digests import folder_digest
from sweep.errors import ConfigError
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs import prompts as prompt_files
from sweep.point import Point

VERSION = 4
SCORING_VERSION = 1  # to be raised when a measure changes, so that points are scored again


@dataclass(frozen=True, slots=True)
class Identity:
    """What a point is.

    Attributes:
        canonical: the JSON text of what determines its generations.
        fingerprint: the SHA-256 of it.
        result_key: equal for points whose generations and scores are the same.
    """

    canonical: str
    fingerprint: str
    result_key: str


def identify(points: Sequence[Point]) -> list[Identity]:
    """Return what each point is, from the contents of its model's, prompts' and transforms' files.

    Raises:
        ConfigError: a model or prompts that cannot be found or read; a value that is not a number.
    """
    model_of = _once(lambda point: _model(point.config.model, point.config.sweep.root), lambda p: p.config.model)
    prompts_of = _once(lambda point: _prompts(point.config.prompts), lambda point: point.config.prompts)
    # Prompts first: a mistake in them need not wait for the weights to be read.
    read = [(point, *prompts_of(point)) for point in points]
    return [_identify(point, model_of(point), asked, references) for point, asked, references in read]


def canonical(value: Any) -> str:
    """Return a value as JSON that is the same for equal values: `1`, `1.0` and `1e0` agree, `-0.0` is `0`.

    Raises:
        ConfigError: a number that is NaN or infinite.
    """
    return json.dumps(_plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _identify(point: Point, model: dict[str, Any], prompts: str, references: str) -> Identity:
    config = point.config
    text = canonical(
        {
            "version": VERSION,
            "model": model,
            "prompts": prompts,
            "transform": config.transform.identity(),
            "sampling": asdict(config.sampling),
            "seed": config.seed,
            "logprobs": config.scoring.logprobs,
            "engine": config.engine.name,
            # What is compared is part of what is compared: engines' settings count where they are swept.
            "swept": {key: value for key, value in point.axes if key.startswith("engine.")},
        }
    )
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    scores = canonical([SCORING_VERSION, fingerprint, point.role, references, asdict(config.scoring)])
    return Identity(text, fingerprint, hashlib.sha256(scores.encode()).hexdigest()[:40])


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


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


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


def _once(make: Callable[[Point], Any], by: Callable[[Point], Any]) -> Callable[[Point], Any]:
    """Return `make`, called once for each value of `by`, which need not be hashable."""
    known: list[tuple[Any, Any]] = []

    def get(point: Point) -> Any:
        wanted = by(point)
        for other, made in known:
            if other == wanted:
                return made
        known.append((wanted, make(point)))
        return known[-1][1]

    return get
