"""Conformance of transforms: what each must hold to, whoever wrote it.

    from sweep.testing import check_transform

    def test_fade():
        check_transform(Fade)

runs every check on the embedded demo model's table and prompts, at the parameters in `Fade.examples`.  A check that
fails raises an `AssertionError` that says what the transform did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import product
from typing import Any

import torch

from sweep.building import build_pipeline
from sweep.config import ModelConfig, PromptsConfig
from sweep.errors import ConfigError, TransformError
from sweep.inputs.checkpoint import find
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import open_table
from sweep.inputs.encoding import encode
from sweep.inputs.prompts import load
from sweep.transforms import Context, Pipeline, Rearrangement, Rows, Transform

Parameters = Mapping[str, Any]
Check = Callable[[type[Transform], Parameters, Corpus], None]

PROMPTS = ("Why is the sky blue?", "What is the capital of Japan?", "Tell me what an owl says, or a dog.")
SPANS = ({"part": "content", "window": [1, 5]}, {"part": "content", "positions": [1, 3, 4]})  # whole, and with a gap


def check_transform(
    transform: type[Transform], examples: Sequence[Parameters] | None = None, corpus: Corpus | None = None
) -> None:
    """Run all checks on a registered transform.

    Args:
        transform: the class.
        examples: parameters to try it at, in place of its own `examples`.
        corpus: prompts to try it on, in place of three questions to the demo model.

    Raises:
        AssertionError: it does not conform.
    """
    for parameters in transform.examples if examples is None else examples:
        for check in CHECKS:
            check(transform, parameters, corpus or demo_corpus())


@cache
def demo_corpus() -> Corpus:
    """Return three questions, encoded for the demo model in bf16."""
    return fresh_corpus(PROMPTS)


def fresh_corpus(texts: Sequence[str]) -> Corpus:
    """Return prompts for the demo model, whose ids are their texts, with nothing computed yet."""
    checkpoint = find(ModelConfig())
    prompts = load(PromptsConfig(items=[{"id": text, "prompt": text} for text in texts]))
    return Corpus(encode(prompts, checkpoint), open_table(checkpoint), checkpoint)


def neutral_dose_changes_nothing(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """At its neutral dose the rows are bit-equal, and the formula itself gives them back but for rounding."""
    if transform.dose is None:
        return
    at_rest = {**parameters, transform.dose: transform.neutral}
    for prompt_id, rows in _prompts(corpus):
        result = _apply(transform, at_rest, prompt_id, rows, corpus)
        assert torch.equal(result.tensor, rows), (
            f"{transform.name} changes rows at {transform.dose}={transform.neutral}"
        )
        assert result.origins is None
        [stage] = _pipeline(transform, at_rest).stages
        chosen = corpus.numbers(stage.span, prompt_id)
        context = Context(1, 2, corpus, prompt_id, stage.span, [(i,) for i in chosen])
        formula = stage.transform.apply(rows[chosen], context)
        assert formula.shape == rows[chosen].shape, f"{transform.name} made rows of shape {list(formula.shape)}"
        assert formula.dtype == torch.float32, f"{transform.name} returns {formula.dtype}"
        assert torch.allclose(formula, rows[chosen], rtol=1e-4, atol=1e-5), (
            f"{transform.name}: the formula at {transform.dose}={transform.neutral} is not the identity"
        )


def proportional_changes_are_in_proportion(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """If it says that its change is in proportion to its dose, half the dose is half the change, and it is achieved."""
    if not transform.proportional or transform.dose is None:
        return
    [stage] = _pipeline(transform, parameters).stages
    dose = float(getattr(stage.transform, transform.dose))
    for prompt_id, rows in _prompts(corpus):
        whole = _apply(transform, {**parameters, transform.dose: dose}, prompt_id, rows, corpus).tensor - rows
        half = _apply(transform, {**parameters, transform.dose: dose / 2}, prompt_id, rows, corpus).tensor - rows
        assert torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-5), f"{transform.name} is not in proportion"


def examples_change_something(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """At its example parameters it does something to some prompt, as it is or with noise on it."""
    noise = torch.randn(1000, corpus.table.hidden_size, generator=torch.Generator().manual_seed(0))
    for strength in (0.0, corpus.table.std):
        for prompt_id, clean in _prompts(corpus):
            rows = clean + strength * noise[: len(clean)]
            result = _apply(transform, parameters, prompt_id, rows, corpus)
            if result.tensor.shape != rows.shape or not torch.equal(result.tensor, rows):
                return
    raise AssertionError(f"{transform.name} changes nothing at {dict(parameters)}")


def rows_outside_the_span_are_untouched(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """Rows outside the span are bit-equal and in order."""
    for (prompt_id, rows), span in product(_prompts(corpus), SPANS):
        pipeline = _pipeline(transform, {**parameters, "span": span})
        inside = set(corpus.numbers(pipeline.stages[0].span, prompt_id))
        result = _run(pipeline, prompt_id, rows, corpus)
        kept = [i for i, stem in enumerate(result.stems()) if stem and inside.isdisjoint(stem)]
        outside = [i for i in range(len(rows)) if i not in inside]
        assert [result.stems()[i] for i in kept] == [(i,) for i in outside], f"{transform.name} moves rows outside"
        assert torch.equal(result.tensor[kept], rows[outside]), f"{transform.name} changes rows outside its span"


def result_depends_on_its_seed_alone(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """Neither order, company nor the global generator have a say, and the global generator is left alone."""
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    forwards = {p: _apply(transform, parameters, p, rows, corpus).tensor for p, rows in _prompts(corpus)}
    assert torch.equal(torch.random.get_rng_state(), state), f"{transform.name} draws from the global generator"
    torch.manual_seed(99)
    again = Corpus(corpus.prompts, corpus.table, corpus.checkpoint)
    backwards = {
        p: _apply(transform, parameters, p, rows, again).tensor for p, rows in reversed(list(_prompts(corpus)))
    }
    for prompt_id, rows in forwards.items():
        assert torch.equal(rows, backwards[prompt_id]), f"{transform.name} depends on the order of prompts"


def result_has_the_declared_shape(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """It is fp32 and finite, as long as declared, stems from the prompt, and leaves what it is given as it was."""
    for prompt_id, rows in _prompts(corpus):
        before = rows.clone()
        _run(_pipeline(transform, {**parameters, "span": "all"}), prompt_id, rows, corpus)
        assert torch.equal(rows, before), f"{transform.name} changes the rows that it is given"
        pipeline = _pipeline(transform, parameters)
        result = _run(pipeline, prompt_id, rows, corpus)
        assert result.tensor.dtype == torch.float32 and result.tensor.isfinite().all()
        assert result.tensor.shape[1] == rows.shape[1]
        if not issubclass(transform, Rearrangement):
            assert result.tensor.shape == rows.shape and result.origins is None
        assert len(result.tensor) <= pipeline.max_rows(len(rows)), f"{transform.name} makes more rows than it declares"
        assert len(result.stems()) == len(result.tensor)
        assert all(0 <= token < len(rows) for stem in result.stems() for token in stem)


def zero_rows_stay_finite(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """Rows of zeros give no NaN; a transform may refuse them."""
    prompt_id, rows = next(_prompts(corpus))
    try:
        result = _apply(transform, parameters, prompt_id, torch.zeros_like(rows), corpus)
    except TransformError as error:
        assert "raised" not in str(error), f"{transform.name} breaks on rows of zeros: {error}"
        return
    assert result.tensor.isfinite().all(), f"{transform.name} makes NaN or infinity of rows of zeros"


def wrong_parameters_are_refused(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """A parameter that it does not have is refused with those that it has, and NaN with the name of its field."""
    known = [field.name for field in fields(transform)]
    error = _refusal(transform, {**parameters, "no_such_parameter": 1})
    assert all(name in error for name in ("no_such_parameter", *known)), f"the error does not say what exists: {error}"
    [stage] = _pipeline(transform, parameters).stages
    for name in known:
        if isinstance(getattr(stage.transform, name), float):
            error = _refusal(transform, {**parameters, name: math.nan})
            assert name in error, f"the error does not name {name}: {error}"


def _refusal(transform: type[Transform], parameters: Parameters) -> str:
    try:
        _pipeline(transform, parameters)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{transform.name} takes {dict(parameters)}")


def it_can_be_logged_and_made_again(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """Its configuration makes it again, and its parameters stand under their override names."""
    pipeline = _pipeline(transform, parameters)
    assert build_pipeline(pipeline.config()) == pipeline
    assert {"transform.span", "transform.control"} <= set(pipeline.parameters())
    assert pipeline.identity() == _pipeline(transform, parameters).identity()


def it_is_documented(transform: type[Transform], parameters: Parameters, corpus: Corpus) -> None:
    """Its docstring starts with a formula and names every parameter."""
    documentation = transform.__doc__ or ""
    assert documentation.split("\n\n")[0].strip(), f"{transform.name} has no formula in its docstring"
    for field in fields(transform):
        assert f"{field.name}:" in documentation or f"`{field.name}`" in documentation or len(fields(transform)) == 1, (
            f"{transform.name}'s docstring does not say what {field.name} is"
        )


CHECKS: tuple[Check, ...] = (
    neutral_dose_changes_nothing,
    proportional_changes_are_in_proportion,
    examples_change_something,
    rows_outside_the_span_are_untouched,
    result_depends_on_its_seed_alone,
    result_has_the_declared_shape,
    zero_rows_stay_finite,
    wrong_parameters_are_refused,
    it_can_be_logged_and_made_again,
    it_is_documented,
)


def _prompts(corpus: Corpus) -> Iterator[tuple[str, torch.Tensor]]:
    for encoded in corpus.prompts:
        yield encoded.prompt.id, corpus.table.rows(encoded.token_ids)


def _pipeline(transform: type[Transform], parameters: Parameters) -> Pipeline:
    return build_pipeline({"name": transform.name, **parameters})


def _apply(
    transform: type[Transform], parameters: Parameters, prompt_id: str, rows: torch.Tensor, corpus: Corpus
) -> Rows:
    return _run(_pipeline(transform, parameters), prompt_id, rows, corpus)


def _run(pipeline: Pipeline, prompt_id: str, rows: torch.Tensor, corpus: Corpus) -> Rows:
    pipeline.check(corpus)
    return pipeline.apply(rows, prompt_id, corpus, 7, corpus.table.dtype)[0]
