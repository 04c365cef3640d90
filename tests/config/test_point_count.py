"""Points are counted before they are made, and too many are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import missing
from sweep.config.point_count import MAX_POINTS, check_count, count_values
from sweep.errors import ConfigError

Sweep = Callable[..., tuple[int, str, str]]


def parse(*overrides: str) -> list:
    return [OverridesParser.create().parse_override(override) for override in overrides]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("range(0,1000000000)", 1_000_000_000),
        ("range(1000000000,0,-1)", 1_000_000_000),
        ("range(1,10,4)", 3),
        ("range(1,9,4)", 2),
        ("range(1,0)", 0),
        ("range(0.5,2,0.25)", 6),
        ("range(0,1,0.3)", 4),
        ("shuffle(range(0,100000000))", 100_000_000),
        ("sort(range(0,100000000))", 100_000_000),
        ("1,2,3", 3),
        ("choice(a,b)", 2),
    ],
)
def test_values_are_counted(value: str, count: int) -> None:
    [override] = parse(f"key={value}")
    assert count_values(override) == count
    if count < 100:
        assert len(list(override.sweep_iterator())) == count


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a=range(0,1000001)"], "The sweep has 1,000,001 points (a 1,000,001 values); at most 1,000,000 are allowed."),
        (["a=range(0,1e308)"], "The sweep has more than 10^308 points (a more than 10^308 values)"),
        (["a=range(0,1,1e-300)"], "The sweep has more than 10^299 points"),
        (["a=range(1,2,1e-300)"], "The sweep has more than 10^299 points"),
        (["a=range(0,2000)", "b=range(0,1000)", "c=1,2"], "4,000,000 points (a 2,000, b 1,000, c 2 values)"),
        (["a=range(0,1000000000)", "b=range(1,0)"], "The sweep has 1,000,000,000 points"),
        (["a=range(0,inf)"], "a=range(0,inf) must be a range of finite numbers."),
        (["a=range(0,nan)"], "a=range(0,nan) must be a range of finite numbers."),
        (["a=range(0,3,0.0)"], "a=range(0,3,0.0) has the step 0"),
    ],
)
def test_too_many_points_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_count(parse(*overrides))
    assert message in str(refused.value)


def test_the_maximum_number_of_points_is_allowed() -> None:
    assert MAX_POINTS == 1_000_000
    check_count(parse("a=range(0,1000)", "b=range(0,1000)", "c=5", "d=interval(0,1)"))
    check_count(parse("a=range(0,1000000000)", "a=1,2"))  # of repeated keys the last one counts, as in Hydra


OPTUNA = ["hydra/sweeper=optuna", "sweep.objective=minimize:perturbation/relative_l2"]
FILE = "# @package _global_\nhydra: {sweeper: {params: {seed: 'range(0,1000000000)'}}}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=range(0,1000000000)"], "The sweep has 1,000,000,000 points (seed 1,000,000,000 values)"),
        (["hydra.searchpath=[file://conf]", "experiment=many"], "The sweep has 1,000,000,000 points"),
        (["hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size must be 1 or more, or null; got 0."),
        (["hydra.launcher.workers=1000000000"], "sweep: hydra.launcher.workers must be at most 1,024; got 1000000000."),
        ([*OPTUNA, "seed=range(0,1000000000)"], "The sweep has 1,000,000,000 points"),
        ([*OPTUNA, "seed=1,2", "hydra.sweeper.n_jobs=1000000"], "hydra.sweeper.n_jobs must be at most 10,000"),
        (
            [*OPTUNA, "seed=1,2", "hydra.sweeper.n_trials=1000000000"],
            "hydra.sweeper.n_trials must be at most 1,000,000",
        ),
        (
            [*OPTUNA, "seed=range(0,2000)", "sampling.seed=range(0,2000)", "hydra.sweeper.sampler=grid"],
            "The sweep has 4,000,000 points (seed 2,000, sampling.seed 2,000 values)",
        ),
    ],
)
@pytest.mark.timeout(60)
def test_command_line_refuses_too_many_points_before_composing(
    tiny: Path,
    tmp_path: Path,
    no_engine: None,
    command_line: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "many.yaml").write_text(FILE)
    defaults = [f"model.id={tiny}", "prompts.items=[Hi,Ho]", f"sweep.dir={tmp_path / 'outputs'}", "sweep.dry_run=true"]
    code, out, err = command_line(*arguments, *missing(arguments, defaults))
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) <= 3
