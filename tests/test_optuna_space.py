"""Tests of the space, samplers and objectives of `hydra/sweeper=optuna`, without a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.sweep_sweepers._space import read_space
from hydra_plugins.sweep_sweepers._study import Study, StudyFile
from sweep.config.objective import Objective
from sweep.errors import ConfigError, SweepError


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_find_an_optimum_without_changing_global_seeds(tmp_path: Path, sampler: str) -> None:
    given = ["x=interval(-1,1)", "k=range(0,5)", "kind=choice(a,b)"]
    space = read_space(OverridesParser.create().parse_overrides(given))
    objective = Objective.parse("maximize:quality/f1")
    before = torch.random.get_rng_state()

    def search(path: Path, rounds: list[int]) -> Study:
        file = StudyFile(path)
        study = Study(file, space, objective, sampler, 0)
        file.open()
        for asked in (study.resume(), *map(study.ask, rounds)):
            values = [1 - p["x"] ** 2 - abs(p["k"] - 3) / 4 - (p["kind"] == "a") for p in (a.params for a in asked)]
            study.tell(asked, [{"quality/f1": value} for value in values])
        return study

    study = search(tmp_path / "whole", [4] * 5)
    best = study.best()
    assert best is not None and best.measure > 0.5 and "kind=b" in best.overrides
    search(tmp_path / "halves", [4] * 2)
    assert search(tmp_path / "halves", [4] * 3).best() == best
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "kind", "values"),
    [
        ("interval(0.5,3)", "FloatDistribution", ["0.5", "3.0"]),
        ("tag(log,interval(0.001,1))", "FloatDistribution", ["0.001", "1.0"]),
        ("int(interval(1,5))", "IntDistribution", ["1", "5"]),
        ("range(1,6,2)", "IntDistribution", ["1", "5"]),
        ("range(5,0,-2)", "IntDistribution", ["1", "5"]),
        ("range(0.1,0.5,0.1)", "FloatDistribution", ["0.1", "0.4"]),
        ("1,2.5,2.5", "CategoricalDistribution", ["1", "2.5"]),
        ("choice(a,'b c')", "CategoricalDistribution", ["a", "b\\ c"]),
    ],
)
def test_hydra_overrides_define_the_space(given: str, kind: str, values: list[str]) -> None:
    overrides = OverridesParser.create().parse_overrides(["transform=scale", f"transform.factor={given}"])
    space = read_space(overrides)
    [axis] = space.axes
    assert space.fixed == ("transform=scale",)
    assert type(axis.distribution).__name__ == kind and axis.ends == values


def test_numbers_are_formatted_as_hydra_does() -> None:
    def axis(given: str):  # type: ignore[no-untyped-def]
        return read_space(OverridesParser.create().parse_overrides([f"a={given}"])).axes[0]

    assert axis("range(0.1,0.5,0.1)").format(0.3) == "0.30000000000000004"
    assert axis("interval(0.5,3)").format(1.2345678) == "1.2346"
    assert axis("interval(1000,30000)").format(1234.5678) == "1235.0"
    assert axis("interval(1,1.0001)").format(1.0000123456) == "1.000012346"
    assert axis("tag(log,interval(1e-5,1))").format(0.000123456789) == "0.000123457"


def test_objective_values_and_errors() -> None:
    measures = {"quality/f1": 0.4, "control/quality/f1": 0.9}
    assert Objective.parse("minimize:quality/f1").value(measures) == 0.4
    assert Objective.parse("closest:quality/f1:0.5").value(measures) == pytest.approx(0.1)
    assert Objective.parse("closest:quality/f1:50%").value(measures) == pytest.approx(0.05)
    assert Objective.parse("closest:quality/f1:50%").value({"quality/f1": 0.4}) is None
    assert Objective.parse("maximize:quality/f1").direction == "maximize"
    assert Objective.parse("maximize:quality/f1").value({"quality/f1": float("nan")}) is None
    with pytest.raises(SweepError, match="the control does not have the measure") as raised:
        Objective.parse("closest:quality/f1:50%").check_known([{"quality/f1": 0.4}])
    assert not isinstance(raised.value, ConfigError)
