"""The clock of chat templates stands still for a sweep: on resume, in later batches and in shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError
from sweep.inputs.clock import FILE, SweepClock, describe_read
from sweep.inputs.config import PromptsConfig
from sweep.inputs.input_store import InputStore
from sweep.launch import manifest
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point
from tiny_models import TEMPLATE, make_model, make_tokenizer

Configure = Callable[..., SweepConfig]
DAY, NEXT = datetime(2026, 11, 29, 23, 59), datetime(2026, 11, 30, 0, 1)
PLAIN = PromptsConfig(items=["Hi"])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the time of day."""

    def set_to(instant: datetime) -> None:
        monkeypatch.setattr(SweepClock, "_now", lambda self: instant)

    return set_to


def test_clock_is_stored_at_its_first_use(tmp_path: Path, at: Callable[[datetime], None]) -> None:
    at(DAY)
    first = SweepClock(tmp_path / "sweep")
    assert first.used is None and not (tmp_path / "sweep").exists()
    assert first.read(PLAIN) == first.used == DAY
    at(NEXT)
    assert first.read(PLAIN) == SweepClock(tmp_path / "sweep").read(PLAIN) == DAY
    assert SweepClock(tmp_path / "other").read(PLAIN) == NEXT
    assert first.reads == [DAY]


def test_dry_run_does_not_store_the_clock(tmp_path: Path, at: Callable[[datetime], None]) -> None:
    at(DAY)
    assert SweepClock(tmp_path / "sweep", keep=False).read(PLAIN) == DAY
    assert not (tmp_path / "sweep").exists()


def test_configured_date_overrides_the_clock(tmp_path: Path) -> None:
    clock = SweepClock(tmp_path)
    assert clock.read(PromptsConfig(items=["Hi"], date="2027-01-02")) == datetime(2027, 1, 2)
    assert clock.used is None and not (tmp_path / FILE).exists()
    assert list(map(describe_read, clock.reads)) == [
        "The chat template reads the clock: 2027-01-02 is used (prompts.date)."
    ]
    assert describe_read(DAY) == "The chat template reads the clock: 2026-11-29 23:59:00 is used (prompts.date)."


@pytest.mark.parametrize("content", [b"yesterday", b"\xff", b"", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    """None: a pipe, which would be waited for without end."""
    if content is None:
        os.mkfifo(tmp_path / FILE)
    else:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{FILE}: must hold the date and time .* Set prompts\.date"):
        SweepClock(tmp_path).read(PLAIN)


@pytest.mark.parametrize("date", ["today", "2026-13-01", ""])
def test_invalid_date_is_refused(date: str) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.date: must be a date or a date and time, such as 2026-11-29"):
        PromptsConfig(items=["Hi"], date=date)


def dated(configure: Configure, folder: Path, template: str = "{{ strftime_now('%d %B %Y') }}" + TEMPLATE) -> Point:
    if not folder.exists():
        make_model(folder)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return Point(configure(model={"id": str(folder)}))


def fingerprint(point: Point, clock: SweepClock) -> str:
    return Fingerprints(InputStore(clock)).identify([point])[0].fingerprint


def test_date_changes_the_fingerprint_if_the_template_reads_it(configure: Configure, tmp_path: Path) -> None:
    point = dated(configure, tmp_path / "model")
    day, later, after = (
        fingerprint(point, SweepClock(instant=instant)) for instant in (DAY, DAY.replace(hour=1), NEXT)
    )
    assert day == later != after
    plain = dated(configure, tmp_path / "plain", TEMPLATE)
    assert fingerprint(plain, SweepClock(instant=DAY)) == fingerprint(plain, SweepClock(instant=NEXT))


def test_a_resumed_sweep_and_its_shards_have_the_fingerprints_of_its_first_day(
    configure: Configure, tmp_path: Path, at: Callable[[datetime], None]
) -> None:
    point = dated(configure, tmp_path / "model")
    at(DAY)
    first = SweepClock(tmp_path / "sweep")
    own = fingerprint(point, first)
    plan = manifest.write(tmp_path / "plan", [], [], sweep_id="x", command="", parent=None, instant=first.used)
    at(NEXT)
    assert fingerprint(point, SweepClock(tmp_path / "sweep")) == own
    assert fingerprint(point, SweepClock(instant=manifest.read(plan.path).instant, keep=False)) == own
    assert fingerprint(point, SweepClock(tmp_path / "tomorrow")) != own
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged: .*\. Make a new plan\."):
        _ = replace(plan, clock="tomorrow").instant


def test_dry_run_names_the_date(
    command_line: Callable[..., tuple[int, str, str]], configure: Configure, tmp_path: Path
) -> None:
    model = dated(configure, tmp_path / "model").config.model.id
    arguments = [f"model.id={model}", f"sweep.dir={tmp_path / 'out'}", "sweep.dry_run=true", "prompts.items=[Hi]"]
    code, out, _ = command_line(*arguments, "prompts.date=2026-11-29")
    assert code == 0 and "The chat template reads the clock: 2026-11-29 is used (prompts.date)." in out
    code, out, _ = command_line(*arguments, "prompts.chat=false")
    assert code == 0 and "clock" not in out
    assert json.dumps(sorted(path.name for path in (tmp_path / "out").rglob(FILE))) == "[]"


@pytest.mark.parametrize(
    ("template", "chat", "reason"),
    [
        (TEMPLATE, True, "its chat template does not read the clock"),
        ("{{ date_string }}" + TEMPLATE, True, None),
        ("{{ strftime_now('%Y') }}" + TEMPLATE, True, None),
        ("{{ strftime_now('%Y') }}" + TEMPLATE, False, "no prompt is a chat"),
    ],
)
def test_date_without_effect_is_reported(
    command_line: Callable[..., tuple[int, str, str]],
    configure: Configure,
    tmp_path: Path,
    template: str,
    chat: bool,
    reason: str | None,
) -> None:
    model = dated(configure, tmp_path / "model", template).config.model.id
    swept = ["prompts.date=2026-11-29,2026-11-30", f"prompts.chat={str(chat).lower()}"]
    code, _, err = command_line(f"model.id={model}", f"sweep.dir={tmp_path}", "sweep.dry_run=true", *swept)
    assert code == 0
    said = [line for line in err.splitlines() if "prompts.date" in line]
    expected = f"warning: prompts.date has no effect on the model {model!r}: {reason}."
    assert said == ([expected] * 2 if reason else [])
