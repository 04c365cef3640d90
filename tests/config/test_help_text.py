"""`--help` explains each configuration key in one line, from the docstrings of the schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from sweep.config import help_text
from sweep.config.help_text import KeyHelp, attributes
from sweep.config.schema import SECTIONS, SweepConfig
from sweep.engines import ServerConfig, TransformersConfig, VLLMConfig
from sweep.engines.transformers.config import DEVICES
from sweep.inputs.config import SPECIAL_TOKENS
from sweep.scoring.attacks import ATTACKS
from sweep.scoring.registry import measures, shown_in
from sweep.scoring.scorers import registered_scorers
from sweep.transforms import CONTROLS, Stage
from sweep.util.paths import conf_dir

Sweep = Callable[..., tuple[int, str, str]]
CLASSES = [*SECTIONS.values(), SweepConfig, Stage, VLLMConfig, ServerConfig, TransformersConfig]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_key_has_an_entry(cls: type) -> None:
    entries = attributes(cls)
    assert [field.name for field in fields(cls) if not entries.get(field.name)] == []


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("model", "dtype", ("auto", "float32", "bfloat16", "float16")),
        ("model", "embedder", ("safetensors", "transformers")),
        ("prompts", "special_tokens", SPECIAL_TOKENS),
        ("scoring", "quality", tuple(name.removeprefix("quality/") for name in registered_scorers())),
        ("scoring", "measures", tuple(m.name for m in measures() if m.configured and not m.name.startswith("health/"))),
        ("scoring", "recovery", ATTACKS),
        ("scoring", "primary", shown_in("primary")),
        ("sweep", "resume", ("true", "false", "force")),
        ("sweep", "on_error", ("continue", "stop")),
    ],
)
def test_allowed_values_are_listed(section: str, key: str, values: tuple[str, ...]) -> None:
    text = attributes(SECTIONS[section])[key]
    assert [value for value in values if value not in text] == []


def test_configuration_files_list_the_measures() -> None:
    quality = {name.removeprefix("quality/") for name in registered_scorers()}
    default, full = (conf_dir().joinpath("scoring", f"{name}.yaml").read_text() for name in ("default", "full"))
    assert [name for name in (*quality, *shown_in("primary")) if name not in default] == []
    assert set(OmegaConf.create(full).quality) == quality - {"regex_match"}


def test_allowed_values_of_engines_and_controls_are_listed() -> None:
    assert all(device in attributes(TransformersConfig)["device"] for device in DEVICES)
    assert all(control in attributes(Stage)["control"] for control in CONTROLS)


@pytest.mark.parametrize("name", ["vllm", "server", "transformers"])
def test_help_has_one_line_for_each_key(command_line: Sweep, name: str) -> None:
    code, out, err = command_line("--help", f"engine={name}", "transform=scale")
    assert (code, err) == (0, "")
    code, composed, _ = command_line("--cfg", "job", f"engine={name}", "transform=scale")
    plain = OmegaConf.to_container(OmegaConf.create(composed))
    assert code == 0 and isinstance(plain, dict)
    keys = [f"{key}.{name}" for key, value in plain.items() if isinstance(value, dict) for name in value]
    keys += [str(key) for key, value in plain.items() if not isinstance(value, dict)]
    keys.remove("scoring.judge")  # the only section within a section
    keys += [f"scoring.judge.{name}" for name in plain["scoring"]["judge"]]
    lines = [line.split("=")[0] for line in out.splitlines()]
    assert len(keys) > 50 and [key for key in keys if lines.count(key) != 1] == []


def test_a_line_says_value_type_and_allowed_values(command_line: Sweep) -> None:
    _, out, _ = command_line("--help", "sampling.top_p=0.5", "transform=noise+add_vector", "prompts.limit=3")
    lines = {line.split("=")[0]: line for line in out.splitlines()}
    assert lines["sampling.top_p"].startswith("sampling.top_p=0.5 ")
    assert "(number) " in lines["sampling.top_p"] and "in (0, 1]" in lines["sampling.top_p"]
    assert "(integer|null) " in lines["prompts.limit"] and "(true|false) " in lines["sweep.dry_run"]
    assert "transform.0.sigma" in lines and "transform.1.vector.path" in lines


def test_values_are_short_and_show_no_secret(command_line: Sweep) -> None:
    code, out, err = command_line("--help", "tracking.uri=http://me:hunter2@host", "sweep.name='for $5 ${seed}'")
    assert code == 0 and "hunter2" not in out and "tracking.uri=http://me:***@host " in out, err
    assert "sweep.name=for $5 ${seed} " in out
    assert str(KeyHelp("prompts.system", "word " * 100, "text", "Text.")).startswith("prompts.system=word word")
    assert len(str(KeyHelp("prompts.system", "word " * 100, "text", "Text."))) < 60


def test_a_class_without_docstring_or_registration_is_listed_without_text() -> None:
    [name, factor, *_] = help_text.key_help("transform", {"name": "nobody", "factor": 2.0})
    assert (name.key, factor.key, factor.kind, factor.text) == ("transform.name", "transform.factor", "", "")


def test_inherited_entries_are_listed_and_other_docstring_sections_are_not() -> None:
    class Base:
        """Base.

        Attributes:
            a: first
                line.
        """

    class Derived(Base):
        """Derived.

        Attributes:
            b: Second.

        Raises:
            c: Not an attribute.
        """

    assert attributes(Derived) == {"a": "first line.", "b": "Second."}
