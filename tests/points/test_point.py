"""Tests of points: names, controls and axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conftest import compose
from hydra_plugins.sweep_launchers.local import LocalLauncher
from sweep.config.loader import parse
from sweep.config.overrides import Override
from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError
from sweep.points.point import Point, make_points, with_controls

Configure = Callable[..., SweepConfig]


def read(*lines: str) -> list[Override]:
    return list(map(Override.read, lines))


def scale(factor: float) -> dict[str, object]:
    return {"name": "scale", "factor": factor}


def test_names_contain_only_swept_values(tiny: Path, tmp_path: Path) -> None:
    jobs = [
        (
            read("transform=scale", f"transform.factor={f}", "sweep.dir=x"),
            parse(compose(tiny, tmp_path, transform=scale(float(f)))),
        )
        for f in ("1.2", "1.50")
    ]
    assert [point.name for point in make_points(jobs)] == ["factor=1.2", "factor=1.5"]
    assert make_points(jobs)[1].axes == (("transform.factor", 1.5),)
    assert [point.name for point in make_points(jobs[:1])] == ["factor=1.2"]


def test_names_keep_all_digits(tiny: Path, tmp_path: Path) -> None:
    jobs = [(read(f"seed={i}"), parse(compose(tiny, tmp_path, seed=i))) for i in (1234567, 1234568)]
    assert [point.name for point in make_points(jobs)] == ["seed=1234567", "seed=1234568"]


def test_keys_with_the_same_last_part_have_distinct_names(tiny: Path, tmp_path: Path) -> None:
    jobs = [(read(f"seed={i}", f"sampling.seed={i}"), parse(compose(tiny, tmp_path, seed=i))) for i in (0, 1)]
    assert make_points(jobs)[1].name == "seed=1, sampling.seed=1"


def test_control_is_always_added(configure: Configure) -> None:
    points = [Point(configure(transform=scale(f))) for f in (1.2, 1.5)]
    ordered = with_controls(points)
    assert [point.role for point in ordered] == ["control", "point", "point"]
    assert ordered[0].config.transform.name == "identity" and ordered[0].name == "control"
    asked = with_controls([*points, Point(configure())])
    assert [point.role for point in asked] == ["control", "point", "point"]


def test_each_sampling_has_its_own_control(configure: Configure) -> None:
    points = [
        Point(configure(transform=scale(f), sampling={"max_tokens": n}), (("sampling.max_tokens", float(n)),))
        for n in (4, 8)
        for f in (1.2, 1.5)
    ]
    ordered = with_controls(points)
    assert [p.name for p in ordered if p.is_control] == ["control (max_tokens=4)", "control (max_tokens=8)"]
    assert [p.role for p in with_controls(points, done_controls=[points[0].control_key])].count("control") == 1


def test_points_share_an_engine_unless_model_or_engine_differ(configure: Configure) -> None:
    points = [Point(configure(transform=scale(f))) for f in (1.2, 1.5)]
    points.append(Point(configure(engine={"name": "vllm", "max_num_seqs": 4})))
    points.append(Point(configure(sampling={"max_tokens": 3})))
    specs = [point.engine_spec for point in points]
    assert specs[0] == specs[1] == specs[3] != specs[2]


def test_output_locations_cannot_be_swept(tiny: Path, tmp_path: Path) -> None:
    jobs = [(read(f"sweep.dir={d}"), parse(compose(tiny, tmp_path, sweep={"dir": d}))) for d in ("a", "b")]
    with pytest.raises(ConfigError, match="cannot be swept"):
        make_points(jobs)


def test_steps_of_a_composition_that_are_swept_are_axes(configure: Configure) -> None:
    config = configure(transform=scale(1.2))
    jobs = [(read(f"+transform@transform.0={name}", "transform.0.seed=1"), config) for name in ("scale", "noise")]
    assert [point.axes for point in make_points(jobs)] == [(("transform.0.name", n),) for n in ("scale", "noise")]
    assert make_points(jobs[:1])[0].axes == (("transform.0.seed", 1.0),)  # a single job is identified by its parameters


def test_a_batch_has_all_keys_that_the_command_sweeps() -> None:
    launcher = LocalLauncher()
    sweeper = {"max_batch_size": 2, "params": {"seed": "0,1"}}
    task = ["transform=scale", "transform.factor=1,2", "prompts.limit=range(1,3)", "+transform@transform.0=a,b"]
    launcher._config = OmegaConf.create({"hydra": {"sweeper": sweeper, "overrides": {"task": task}}})
    keys = launcher._swept_keys()
    assert keys == ("seed", "transform.factor", "prompts.limit", "+transform@transform.0")
    launcher._config.hydra.sweeper.max_batch_size = None  # then there is one batch
    assert launcher._swept_keys() == ()


def test_a_key_has_numbers_only_if_all_its_values_are_numbers(configure: Configure) -> None:
    jobs = [(read(f"transform.factor={value}"), configure()) for value in ("1.50", "2")]
    assert [point.axes for point in make_points(jobs)] == [(("transform.factor", 1.5),), (("transform.factor", 2.0),)]
    jobs.append((read("transform.factor=null"), configure()))
    assert [axes for (axes,) in (point.axes for point in make_points(jobs))] == [
        ("transform.factor", text) for text in ("1.50", "2", "null")
    ]


def test_a_later_override_of_a_key_replaces_an_earlier_one(configure: Configure) -> None:
    jobs = [(read("seed=7", "transform=scale", f"seed={i}"), configure()) for i in (1, 2)]
    assert [point.axes for point in make_points(jobs)] == [(("seed", 1.0),), (("seed", 2.0),)]
