"""Tests that the table of fingerprint keys is complete and correct, and equals the one in the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import PROMPTS
from lora_adapters import make_adapter
from sweep.config.schema import SweepConfig
from sweep.inputs import prompt_files
from sweep.points import fingerprint_keys
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point
from sweep.scoring.batch import Item, register_measure
from tiny_models import TEMPLATE, make_model, make_tokenizer

Configure = Callable[..., SweepConfig]


def letters(items: Sequence[Item]) -> list[int]:
    """Return the number of characters."""
    return [len(item.answer.text) for item in items]


# For each key, a value that differs from the base configuration, and other keys that it needs to have an effect.
VALUES: dict[str, Any] = {
    "model.id": "",  # a copy
    "model.revision": "main",
    "model.dtype": "bfloat16",
    "model.trust_remote_code": True,
    "model.embedder": "transformers",
    "model.lora": "",  # an adapter
    "prompts.items": [{"id": "hello", "prompt": "Other"}],
    "prompts.path": "",  # a file of other prompts
    "prompts.format": "prompt",
    "prompts.dataset": "c/d",
    "prompts.dataset_config": "main",
    "prompts.split": "test",
    "prompts.revision": "v1",
    "prompts.chat": False,
    "prompts.system": "Be brief.",
    "prompts.limit": 1,
    "prompts.id_key": "number",
    "prompts.prompt_key": "other",
    "prompts.reference_key": "answer",
    "prompts.choices_key": "choices",
    "prompts.map": {"prompt": "other"},
    "prompts.template": "Q: {{prompt}}",
    "prompts.shots": 2,
    "prompts.shots_from": "",  # a file of examples
    "prompts.shots_seed": 1,
    "prompts.placeholders": ["x"],
    "prompts.special_tokens": "escape",
    "prompts.chat_template": "",  # a file
    "prompts.template_kwargs": {"enable_thinking": False},
    "prompts.chat_template_kwargs": {"enable_thinking": False},
    "prompts.continue_final_message": True,
    "prompts.date": "2027-01-01",
    "sampling.max_tokens": 9,
    "sampling.temperature": 0.5,
    "sampling.top_p": 0.5,
    "sampling.top_k": 5,
    "sampling.repetition_penalty": 1.5,
    "sampling.seed": 1,
    "sampling.n": 2,
    "sampling.stop": ["."],
    "sampling.ignore_eos": True,
    "sampling.args": {"min_p": 0.1},
    "scoring.logprobs": 5,
    "scoring.confidence": 0.9,
    "scoring.nearest_rows": 0,
    "scoring.recovery": ["nearest"],
    "scoring.noise_floor": False,
    "scoring.teacher_forced": True,
    "scoring.reference_logprob": True,
    "scoring.choices": ["General", "Major"],
    "scoring.target_delimiter": "",
    "scoring.quality": ["chrf"],
    "scoring.strip_reasoning": True,
    "scoring.reasoning_tags": ["[THINK]", "[/THINK]"],
    "scoring.measures": ["health/letters_for_fingerprints"],
    "scoring.similarity_model": "nowhere/nothing",
    "scoring.judge": {"url": "http://127.0.0.1:9/v1", "timeout": 5.0},
    "scoring.primary": "contains",
    "scoring.correct": "contains",
    "scoring.pass_at": [1],
    "scoring.equivalence": 0.05,
    "tracking.uri": "sqlite:////tmp/x.db",
    "tracking.experiment": "other",
    "tracking.traces": True,
    "tracking.patience": 1.0,
    "tracking.in_process": False,
    "sweep.dir": "/tmp/elsewhere",
    "sweep.name": "x",
    "sweep.zip": "transform.factor+seed",
    "sweep.dry_run": True,
    "sweep.show_prompt": 1,
    "sweep.resume": "false",
    "sweep.on_error": "stop",
    "sweep.max_failures": 1,
    "sweep.objective": "maximize:quality/contains",
    "sweep.helpers": 1,
    "sweep.gpu_scoring": False,
    "report.baseline": "control",
    "report.contrasts": [["1", "control"]],
    "report.tolerance": 0.1,
    "report.effect": "divergence/token_agreement",
    "seed": 1,
    "verbose": True,
    "plugins": ["json"],
    "transform.*": {"name": "scale", "factor": 1.6},
}
NEEDS = {"sampling.n": {"temperature": 1.0}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of a model whose template reads a variable and the clock."""
    folders = []
    for name in ("one", "two"):
        folder = make_model(tmp_path_factory.mktemp(name) / "model")
        tokenizer = make_tokenizer()
        tokenizer.chat_template = (
            "{{ strftime_now('%Y-%m-%d') }}{% if enable_thinking is defined %}!{% endif %}" + TEMPLATE
        )
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


def test_every_key_is_listed() -> None:
    assert list(fingerprint_keys.KEYS) == list(dict.fromkeys(fingerprint_keys.KEYS))
    assert set(fingerprint_keys.KEYS) == set(fingerprint_keys.configured_keys())
    assert set(VALUES) == set(fingerprint_keys.KEYS)


@pytest.mark.parametrize("key", fingerprint_keys.KEYS)
def test_listed_keys_match_the_fingerprint(
    configure: Configure,
    models: tuple[Path, Path],
    tmp_path: Path,
    registered: None,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_measure("health/letters_for_fingerprints")(letters)
    items = [
        entry | {"other": "Otherwise {x}", "number": i, "answer": "none", "choices": ["a", "b"]}
        for i, entry in enumerate(PROMPTS)
    ]
    base: dict[str, Any] = {
        "model": {"id": str(models[0])},
        "prompts": {"items": items, "date": "2026-11-29"},
        "transform": {"name": "scale", "factor": 1.5},
        "sampling": {"max_tokens": 8} | NEEDS.get(key, {}),
        "seed": 0,
    }
    if key == "prompts.special_tokens":
        base["prompts"]["items"] = ["Hi<eos>"]
    section, _, name = key.partition(".")
    value = VALUES[key]
    if key == "model.id":
        value = str(models[1])
    elif key == "model.lora":
        value = str(make_adapter(models[0], tmp_path / "adapter", ["q_proj"]))
    elif key == "prompts.path":
        (path := tmp_path / "p.txt").write_text("Other\n")
        value = str(path)
    elif key == "prompts.chat_template":
        (path := tmp_path / "template.jinja").write_text("{{ strftime_now('%Y') }}{{ messages[0].content }}")
        value = str(path)
    elif key == "prompts.format":
        base["prompts"]["items"] = [{"prompt": "Hi", "messages": [{"role": "user", "content": "Hi there"}]}]
    elif key in ("prompts.dataset", "prompts.dataset_config", "prompts.split", "prompts.revision"):
        base["prompts"]["dataset"] = "a/b"
        monkeypatch.setattr(prompt_files, "resolve_revision", lambda config: None)
        monkeypatch.setattr(prompt_files, "read_dataset", _named_rows)
    elif key.startswith("prompts.shots"):
        base["prompts"]["items"] = [{"prompt": text, "reference": text} for text in "abcdefgh"]
        if key != "prompts.shots":
            base["prompts"]["shots"] = 1
        if key == "prompts.shots_from":
            (path := tmp_path / "shots.jsonl").write_text('{"prompt": "x", "reference": "y"}')
            value = str(path)
    elif key == "prompts.continue_final_message":
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
        base["prompts"]["items"] = [{"messages": chat}]
    elif key == "prompts.placeholders":
        base["prompts"]["prompt_key"] = "other"
    changed = dict(base)
    changed[section] = value if name in ("", "*") else base.get(section, {}) | {name: value}
    one, other = (
        Fingerprints().identify([Point(replace(configure(), **_parsed(configure, c)))])[0].fingerprint
        for c in (base, changed)
    )
    assert (one != other) is fingerprint_keys.KEYS[key].changes_generations


def _named_rows(config: Any, split: str | None, revision: str | None) -> Iterator[tuple[str, Any]]:
    yield "[0]", {"prompt": f"{config.dataset} {config.dataset_config} {split}"}


def _parsed(configure: Configure, changes: dict[str, Any]) -> dict[str, Any]:
    config = configure(**{section: dict(v) if isinstance(v, dict) else v for section, v in changes.items()})
    return {section: getattr(config, section) for section in changes}


def test_the_docs_show_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "fingerprint.md"
    assert fingerprint_keys.markdown() in page.read_text("utf-8")
