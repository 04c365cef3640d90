"""Conformance tests for transforms.

    from sweep.testing import check_transform

    def test_fade():
        check_transform(Fade)

This test runs every check with the embedding table of the bundled demo model, at the parameters in `Fade.examples`. A
failed check raises an `AssertionError` that describes what the transform did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import product
from typing import Any

import torch

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError, TransformError
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.prompts import load
from sweep.inputs.tokenization import encode
from sweep.transforms import Context, Pipeline, Rearrangement, Rows, Transform
from sweep.transforms.inversion import span_rows, undo_rotations

Parameters = Mapping[str, Any]
Check = Callable[[type[Transform], Parameters, PromptSet], None]

PROMPTS = ("Why is the sky blue?", "What is the capital of Japan?", "Tell me what an owl says, or a dog.")
SPANS = ({"part": "content", "window": [1, 5]}, {"part": "content", "positions": [1, 3, 4]})  # the second has a gap


def check_transform(
    transform: type[Transform], examples: Sequence[Parameters] | None = None, corpus: PromptSet | None = None
) -> None:
    """Run all checks on a registered transform.

    Args:
        transform: the class.
        examples: parameters to check; None: the transform's `examples`.
        corpus: prompts to transform; None: three questions for the demo model.

    Raises:
        AssertionError: a check failed.
    """
    for parameters in transform.examples if examples is None else examples:
        for check in CHECKS:
            check(transform, parameters, corpus or demo_corpus())


@cache
def demo_corpus() -> PromptSet:
    """Return three questions, encoded for the demo model in bfloat16."""
    return fresh_corpus(PROMPTS)


def fresh_corpus(texts: Sequence[str]) -> PromptSet:
    """Return new prompts for the demo model without cached data; their ids are their texts."""
    checkpoint = find(ModelConfig())
    prompts = load(PromptsConfig(items=[{"id": text, "prompt": text} for text in texts]))
    return PromptSet(encode(prompts, checkpoint), open_table(checkpoint), checkpoint)


def neutral_dose_changes_nothing(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """At the neutral dose the rows are bit-equal, and the formula returns them up to rounding."""
    if transform.dose is None:
        return
    neutral = {**parameters, transform.dose: transform.neutral}
    for prompt_id, rows in _prompts(corpus):
        result = _apply(transform, neutral, prompt_id, rows, corpus)
        assert torch.equal(result.tensor, rows), (
            f"{transform.name} changes rows at {transform.dose}={transform.neutral}"
        )
        assert result.origins is None
        [stage] = _pipeline(transform, neutral).stages
        numbers = corpus.numbers(stage.span, prompt_id)
        context = Context(1, 2, corpus, prompt_id, stage.span, [(i,) for i in numbers])
        formula = stage.transform.apply(rows[numbers], context)
        expected = list(rows[numbers].shape)
        assert list(formula.shape) == expected, (
            f"{transform.name} returned rows of shape {list(formula.shape)}, expected {expected}"
        )
        assert formula.dtype == torch.float32, f"{transform.name} returned {formula.dtype}, expected torch.float32"
        assert torch.allclose(formula, rows[numbers], rtol=1e-4, atol=1e-5), (
            f"{transform.name}: the formula at {transform.dose}={transform.neutral} is not the identity"
        )


def half_dose_makes_half_the_change(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """If a transform declares `proportional`, half the dose leads to half the change."""
    if not transform.proportional or transform.dose is None:
        return
    [stage] = _pipeline(transform, parameters).stages
    dose = float(getattr(stage.transform, transform.dose))
    for prompt_id, rows in _prompts(corpus):
        whole = _apply(transform, {**parameters, transform.dose: dose}, prompt_id, rows, corpus).tensor - rows
        half = _apply(transform, {**parameters, transform.dose: dose / 2}, prompt_id, rows, corpus).tensor - rows
        assert torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-5), (
            f"{transform.name} declares proportional=True, but half of {transform.dose}={dose} is not half the change"
        )


def examples_change_something(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """At its example parameters the transform changes at least one prompt, with or without added noise."""
    noise = torch.randn(1000, corpus.table.hidden_size, generator=torch.Generator().manual_seed(0))
    for strength in (0.0, corpus.table.std):
        for prompt_id, clean in _prompts(corpus):
            rows = clean + strength * noise[: len(clean)]
            result = _apply(transform, parameters, prompt_id, rows, corpus)
            if result.tensor.shape != rows.shape or not torch.equal(result.tensor, rows):
                return
    raise AssertionError(f"{transform.name} changes nothing at {dict(parameters)}")


def rows_outside_the_span_are_untouched(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """Rows outside the span are bit-equal and in order."""
    for (prompt_id, rows), span in product(_prompts(corpus), SPANS):
        pipeline = _pipeline(transform, {**parameters, "span": span})
        inside = set(corpus.numbers(pipeline.stages[0].span, prompt_id))
        result = _run(pipeline, prompt_id, rows, corpus)
        kept = [i for i, source in enumerate(result.resolved_origins()) if source and inside.isdisjoint(source)]
        outside = [i for i in range(len(rows)) if i not in inside]
        assert [result.resolved_origins()[i] for i in kept] == [(i,) for i in outside], (
            f"{transform.name} moves rows outside its span"
        )
        assert torch.equal(result.tensor[kept], rows[outside]), f"{transform.name} changes rows outside its span"


def result_depends_only_on_seed(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """The result does not depend on other prompts or their order, and the global generator is not used."""
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    forwards = {p: _apply(transform, parameters, p, rows, corpus).tensor for p, rows in _prompts(corpus)}
    assert torch.equal(torch.random.get_rng_state(), state), f"{transform.name} draws from the global generator"
    torch.manual_seed(99)
    copy = PromptSet(corpus.prompts, corpus.table, corpus.checkpoint)
    backwards = {p: _apply(transform, parameters, p, rows, copy).tensor for p, rows in reversed(list(_prompts(corpus)))}
    for prompt_id, rows in forwards.items():
        assert torch.equal(rows, backwards[prompt_id]), f"{transform.name} depends on the order of prompts"


def result_has_the_declared_shape(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """The result is finite float32, has the declared shape, and the input is not modified."""
    for prompt_id, rows in _prompts(corpus):
        before = rows.clone()
        _run(_pipeline(transform, {**parameters, "span": "all"}), prompt_id, rows, corpus)
        assert torch.equal(rows, before), f"{transform.name} changes its input in place"
        pipeline = _pipeline(transform, parameters)
        result = _run(pipeline, prompt_id, rows, corpus)
        assert result.tensor.dtype == torch.float32 and result.tensor.isfinite().all()
        assert result.tensor.shape[1] == rows.shape[1]
        if not issubclass(transform, Rearrangement):
            assert result.tensor.shape == rows.shape and result.origins is None
        assert len(result.tensor) <= pipeline.max_rows(len(rows)), (
            f"{transform.name} returned {len(result.tensor)} rows, but declares at most {pipeline.max_rows(len(rows))}"
        )
        assert len(result.resolved_origins()) == len(result.tensor)
        assert all(0 <= token < len(rows) for source in result.resolved_origins() for token in source)


def zero_rows_stay_finite(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """Rows of zeros do not lead to NaN; a transform may reject them."""
    prompt_id, rows = next(_prompts(corpus))
    try:
        result = _apply(transform, parameters, prompt_id, torch.zeros_like(rows), corpus)
    except TransformError as error:
        assert "raised" not in str(error), f"{transform.name} raised an exception on rows of zeros: {error}"
        return
    assert result.tensor.isfinite().all(), f"{transform.name} returns NaN or infinity for rows of zeros"


def wrong_parameters_are_rejected(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """The error for an unknown parameter lists the existing ones; the error for NaN names the parameter."""
    names = [field.name for field in fields(transform)]
    error = _rejection(transform, {**parameters, "no_such_parameter": 1})
    assert all(name in error for name in ("no_such_parameter", *names)), (
        f"the error for an unknown parameter does not list the existing ones: {error}"
    )
    [stage] = _pipeline(transform, parameters).stages
    for name in names:
        if isinstance(getattr(stage.transform, name), float):
            error = _rejection(transform, {**parameters, name: math.nan})
            assert name in error, f"the error does not name the parameter {name}: {error}"


def _rejection(transform: type[Transform], parameters: Parameters) -> str:
    try:
        _pipeline(transform, parameters)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{transform.name} accepts the invalid parameters {dict(parameters)}")


def configuration_round_trips(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """The configuration of a pipeline creates an equal pipeline, and parameters have their override names."""
    pipeline = _pipeline(transform, parameters)
    assert build_pipeline(pipeline.config()) == pipeline
    assert {"transform.span", "transform.control"} <= set(pipeline.parameters())
    assert pipeline.identity() == _pipeline(transform, parameters).identity()


def undone_rotations_restore_rows(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """`undo_rotation` returns None, or the rows before the transform up to rounding."""
    pipeline = _pipeline(transform, parameters)
    for prompt_id, rows in _prompts(corpus):
        result = _run(pipeline, prompt_id, rows, corpus)
        if len(result.tensor) != len(rows):
            return
        numbers = span_rows(pipeline, result, prompt_id, corpus)
        undone = undo_rotations(pipeline, result.tensor[numbers], numbers, result, prompt_id, corpus, 7)
        assert undone is None or torch.allclose(undone, rows[numbers], rtol=1e-3, atol=1e-4), (
            f"{transform.name}: undo_rotation does not return the rows before the transform"
        )


def parameters_are_documented(transform: type[Transform], parameters: Parameters, corpus: PromptSet) -> None:
    """The docstring starts with a formula and names every parameter."""
    documentation = transform.__doc__ or ""
    assert documentation.split("\n\n")[0].strip(), f"{transform.name} has no formula in its docstring"
    for field in fields(transform):
        assert f"{field.name}:" in documentation or f"`{field.name}`" in documentation or len(fields(transform)) == 1, (
            f"the docstring of {transform.name} does not document the parameter {field.name}"
        )


CHECKS: tuple[Check, ...] = (
    neutral_dose_changes_nothing,
    half_dose_makes_half_the_change,
    examples_change_something,
    rows_outside_the_span_are_untouched,
    result_depends_only_on_seed,
    result_has_the_declared_shape,
    zero_rows_stay_finite,
    wrong_parameters_are_rejected,
    configuration_round_trips,
    undone_rotations_restore_rows,
    parameters_are_documented,
)


def _prompts(corpus: PromptSet) -> Iterator[tuple[str, torch.Tensor]]:
    for encoded in corpus.prompts:
        yield encoded.prompt.id, corpus.table.rows(encoded.token_ids)


def _pipeline(transform: type[Transform], parameters: Parameters) -> Pipeline:
    return build_pipeline({"name": transform.name, **parameters})


def _apply(
    transform: type[Transform], parameters: Parameters, prompt_id: str, rows: torch.Tensor, corpus: PromptSet
) -> Rows:
    return _run(_pipeline(transform, parameters), prompt_id, rows, corpus)


def _run(pipeline: Pipeline, prompt_id: str, rows: torch.Tensor, corpus: PromptSet) -> Rows:
    pipeline.check(corpus)
    return pipeline.apply(rows, prompt_id, corpus, 7, corpus.table.dtype)[0]
