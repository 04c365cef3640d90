"""Points of a sweep: zipped lists, and parameters of one of several transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.app.sweep_name import default_name
from sweep.config import arguments as _arguments
from sweep.config.combinations import combine, scope_of, unscoped, zip_groups
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS

Sweep = Callable[..., tuple[int, str, str]]


def points(*arguments: str, zipped: str | None = None, transform: str = "identity") -> list[str] | None:
    """Return the points of a command line, each as one text."""
    parsed = OverridesParser.create().parse_overrides(_arguments.to_hydra_syntax(arguments))
    combined = combine(parsed, zipped, transform)
    return None if combined is None else [" ".join(point) for point in combined]


TWO = ("transform=scale,noise", "transform.scale.factor=1.2,1.5", "transform.noise.sigma=0.5")


@pytest.mark.parametrize(
    ("arguments", "zipped", "expected"),
    [
        (["a.x=1,2", "b=3,4"], "a.x+b", ["a.x=1 b=3", "a.x=2 b=4"]),
        (["a.x=1,2", "b=range(3,5)", "c=5,6"], "b+a.x", ["b=3 a.x=1 c=5", "b=3 a.x=1 c=6", "b=4 a.x=2 c=5", "b=4 a.x=2 c=6"]),
        (["a=1,2", "b=3,4", "c=5,6", "d=7,8"], "a+b c+d", ["a=1 b=3 c=5 d=7", "a=1 b=3 c=6 d=8", "a=2 b=4 c=5 d=7", "a=2 b=4 c=6 d=8"]),
        (["a=1,1,2", "b=3,4,5", "a=1,2"], "a+b", "got a 2, b 3"),
        (["a=1", "b=3,4"], "a+b", "sweep.zip: zipped keys need equally many values; got a 1, b 2."),
        (["transform.factor=1,2"], "transform.facto+b", "sweep.zip: transform.facto is not swept. Did you mean 'transform.factor'?"),
        (["engine.args.max_num_batched_tokens=2048,4096", "transform.factor=1,2"], "transform.factor+engine.args.max_num_batched_tokens", ["transform.factor=1 ++engine.args.max_num_batched_tokens=2048", "transform.factor=2 ++engine.args.max_num_batched_tokens=4096"]),
        (["sampling.args={min_p: 0.1},{min_p: 0.2}", "seed=1,2"], "seed+sampling.args", ["seed=1 ++sampling.args={min_p:0.1}", "seed=2 ++sampling.args={min_p:0.2}"]),
        (["+transform@transform.0=a,b", "seed=1,2"], "seed+transform@transform.0", ["seed=1 +transform@transform.0=a", "seed=2 +transform@transform.0=b"]),
        ([*TWO[:2], "transform.noise.sigma=1,2"], "transform.scale.factor+transform.noise.sigma", "sweep.zip: no transform has two of transform.scale.factor, transform.noise.sigma, so no values are paired."),
        (TWO[:2], "transform+transform.scale.factor", "sweep.zip: transform and transform.scale.factor cannot be zipped."),
        (["transform=scale,noise", "model=x,y"], "transform+model", ["transform=scale model=x", "transform=noise model=y"]),
    ],
)  # fmt: skip
def test_zipped_lists(arguments: list[str], zipped: str, expected: list[str] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as raised:
            points(*arguments, zipped=zipped)
        assert expected in str(raised.value)
    else:
        assert points(*arguments, zipped=zipped) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (TWO, ["transform=scale transform.factor=1.2", "transform=scale transform.factor=1.5", "transform=noise transform.sigma=0.5"]),
        ((*TWO, "seed=0,1"), [f"transform={t} seed={s}" for t in ("scale transform.factor=1.2", "scale transform.factor=1.5", "noise transform.sigma=0.5") for s in (0, 1)]),
        (["transform=noise", "transform.noise.unit=row_rms"], ["transform=noise transform.unit=row_rms"]),
        (["transform=scale,scale", "transform.scale.factor=2"], ["transform=scale transform.factor=2"]),
        (["transform=scale,identity", "transform.scale.span={role: user}"], ["transform=scale transform.span={role:user}", "transform=identity"]),
        (["transform=add_vector,scale", "transform.add_vector.vector.row=3"], ["transform=add_vector transform.vector.row=3", "transform=scale"]),
        (["transform=scale", "transform.noise.sigma=1"], "transform.noise.sigma: the sweep has no transform noise (transform=scale)."),
        (["transform=scale+noise", "transform.scale.factor=1"], "Parameters of a composition have the number of their step: transform.0.factor."),
        (["transform=scale,noise", "transform.factor=1", "transform.scale.factor=2"], "transform.scale.factor and transform.factor set the same parameter of scale."),
    ],
)  # fmt: skip
def test_parameters_of_one_of_several_transforms(arguments: list[str], expected: list[str] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as raised:
            points(*arguments)
        assert expected in str(raised.value)
    else:
        assert points(*arguments) == expected


def test_a_quoted_word_stays_a_text() -> None:
    arguments = ["transform=add_vector,scale", "transform.add_vector.vector.key='null'"]
    assert points(*arguments) == ["transform=add_vector transform.vector.key='null'", "transform=scale"]


def test_the_transform_of_a_file_of_the_configuration_counts() -> None:
    assert points("transform.scale.factor=1,2", transform="scale") == ["transform.factor=1", "transform.factor=2"]


def test_a_zip_with_parameters_of_one_transform() -> None:
    zipped = "transform.scale.factor+sampling.max_tokens"
    assert points(*TWO, "sampling.max_tokens=4,8", zipped=zipped) == [
        "transform=scale transform.factor=1.2 sampling.max_tokens=4",
        "transform=scale transform.factor=1.5 sampling.max_tokens=8",
        "transform=noise sampling.max_tokens=4 transform.sigma=0.5",
        "transform=noise sampling.max_tokens=8 transform.sigma=0.5",
    ]


def test_other_sweeps_are_left_to_hydra() -> None:
    assert points("transform=scale,noise", "seed=0,1") is None
    assert points("transform.factor=1,2", transform="scale") is None


@pytest.mark.parametrize("text", ["a", "a+", "+", "a+b c", "a+b a+c", "a+a"])
def test_groups_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.zip: "):
        zip_groups(text)


def test_too_many_points_are_refused_before_they_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"The sweep has 20,000,000,000 points"):
        points("a=range(100000)", "b=range(100000)", "c=1,2", "d=1,2", zipped="c+d")


def test_no_parameter_is_taken_for_a_transform() -> None:
    assert scope_of("transform.scale.factor") == ("scale", "factor") and scope_of("+transform.noise.sigma") == (
        "noise",
        "sigma",
    )
    for key in (
        "transform.scale",
        "transform.vector.row",
        "transform.span.role",
        "transform.0.factor",
        "model.scale.x",
        "transform@transform.0",
    ):
        assert scope_of(key) is None and unscoped(key) == key
    assert {name for name in TRANSFORMS if scope_of(f"transform.{name}.x") is None} == set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), min_size=2, max_size=4), st.data())
def test_a_zip_is_a_part_of_the_product(lists: list[list[int]], data: st.DataObject) -> None:
    keys = [f"k{index}" for index in range(len(lists))]
    arguments = [f"{key}={','.join(map(str, values))}" for key, values in zip(keys, lists, strict=True)]
    first, second = data.draw(st.lists(st.sampled_from(keys), min_size=2, max_size=2, unique=True))
    lengths = {key: len(values) for key, values in zip(keys, lists, strict=True)}
    if lengths[first] != lengths[second]:
        with pytest.raises(ConfigError, match="equally many values"):
            points(*arguments, zipped=f"{first}+{second}")
        return
    found = points(*arguments, zipped=f"{first}+{second}") or []
    total = 1
    for key in keys:
        total *= lengths[key] if key != second else 1
    assert len(found) == len(set(found)) == total
    for point in found:
        chosen = {word.partition("=")[0]: int(word.partition("=")[2]) for word in point.split()}
        places = [lists[keys.index(key)].index(chosen[key]) for key in (first, second)]
        assert chosen.keys() == set(keys) and places[0] == places[1]


def test_names_of_sweeps() -> None:
    typed = _arguments.to_hydra_syntax([*TWO, "sweep.zip=a+b"])
    assert typed[2] == "transform.noise.sigma=choice(0.5)"
    assert default_name(typed, "scale") == "scale,noise factor=1.2,1.5 sigma=0.5 zip=a+b"
    plain = _arguments.to_hydra_syntax(["--cfg", "job", "transform=scale", "transform.scale.factor=2"])
    assert plain[-1] == "transform.factor=2"


def test_a_plan_names_points_and_zips(dry: Sweep) -> None:
    code, out, err = dry(*TWO, "sampling.max_tokens=4,8", "sweep.zip=transform.scale.factor+sampling.max_tokens")
    assert code == 0, err
    assert "Zipped: transform.scale.factor with sampling.max_tokens\n" in out
    for name in (
        "transform=scale, factor=1.2, max_tokens=4",
        "transform=scale, factor=1.5, max_tokens=8",
        "transform=noise, max_tokens=8, sigma=0.5",
    ):
        assert f"  {name}: 2 requests" in out
    assert out.splitlines()[-1] == "6 points, 1 engine start, 16 requests"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transform=scale,noise", "transform.factor=1,2"], "It is a parameter of one of the transforms: set transform.scale.factor.\n"),
        (["transform=scale,noise", "sweep.zip=a+b,c+d"], "sweep: sweep.zip cannot be swept. Separate groups of keys by spaces: sweep.zip='a+b c+d'.\n"),
        (["hydra/sweeper=optuna", "sweep.objective=maximize:quality/contains", *TWO], "optuna searches the parameters of one transform. Use transform=scale and transform.factor.\n"),
        (["hydra/sweeper=optuna", "sweep.objective=maximize:quality/contains", "seed=1,2", "sweep.zip=a+b"], "sweep.zip pairs the values of lists, but hydra/sweeper=optuna chooses its own."),
    ],
)  # fmt: skip
def test_refusals_of_the_command_line(dry: Sweep, arguments: list[str], message: str) -> None:
    code, out, err = dry(*arguments)
    assert (code, out) == (2, "") and message in err


def test_two_groups_and_batches(dry: Sweep) -> None:
    code, out, err = dry("transform=noise", "transform.sigma=1,2", "seed=3,4", "sampling.max_tokens=4,8", "sampling.seed=5,6", "sweep.zip=transform.sigma+seed sampling.max_tokens+sampling.seed", "hydra.sweeper.max_batch_size=3")  # fmt: skip
    assert code == 0, err
    assert out.count("sigma=1, seed=3, max_tokens=") == out.count("sigma=2, seed=4, max_tokens=") == 2
    assert "Zipped: transform.sigma with seed\nZipped: sampling.max_tokens with sampling.seed\n" in out
