"""Compositions: transforms one after the other, each on its span, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError, TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Pipeline, Rows, Span, parse_span

SCALE = {"name": "scale", "factor": 2.0, "span": "content"}
NOISE = {"name": "noise", "sigma": 1.0}


def run(config: Any, corpus: PromptSet, prompt_id: str = "hello", seed: int = 0) -> Rows:
    rows = corpus.table.rows(corpus.layout(prompt_id).token_ids)
    return build_pipeline(config).apply(rows, prompt_id, corpus, seed, torch.float32)[0]


def clean(corpus: PromptSet, prompt_id: str = "hello") -> torch.Tensor:
    return corpus.table.rows(corpus.layout(prompt_id).token_ids)


def test_transforms_are_applied_in_order(corpus: PromptSet) -> None:
    twice = run([SCALE, {"name": "normalize", "norm": 3.0}], corpus)
    inside = corpus.numbers(build_pipeline(SCALE).stages[0].span, "hello")
    assert torch.allclose(twice.tensor[inside].norm(dim=1), torch.tensor(3.0))
    swapped = run([{"name": "normalize", "norm": 3.0}, SCALE], corpus)
    assert torch.allclose(swapped.tensor[inside].norm(dim=1), torch.tensor(6.0))


def test_identity_is_neutral_in_a_composition(corpus: PromptSet) -> None:
    assert torch.equal(run([{"name": "identity"}, SCALE], corpus).tensor, run(SCALE, corpus).tensor)


def test_equal_transforms_at_different_places_draw_different_numbers(corpus: PromptSet) -> None:
    once, twice = run(NOISE, corpus).tensor - clean(corpus), run([NOISE, NOISE], corpus).tensor - clean(corpus)
    assert not torch.allclose(twice, 2 * once, atol=1e-3)
    assert torch.equal(run([NOISE, {"name": "identity"}], corpus).tensor, run(NOISE, corpus).tensor)


def test_each_step_keeps_its_span_after_moved_and_inserted_rows(corpus: PromptSet) -> None:
    steps = [
        {"name": "repeat", "times": 2},
        {"name": "reverse", "window": 0},
        {"name": "soft_prompt", "random": 3},
        {"name": "mask_rows", "p": 1.0, "span": {"substring": "e"}},
        {"name": "scale", "factor": 5.0, "span": "injected"},
    ]
    result = run(steps, corpus)
    layout = corpus.layout("hello")
    masked = [i for i, row in enumerate(result.tensor) if not row.any()]
    assert [layout.text[layout.offsets[token][0]] for i in masked for token in result.resolved_origins()[i]] == [
        "e"
    ] * 6
    assert [i for i, stem in enumerate(result.resolved_origins()) if not stem] == [0, 1, 2]
    outside = [i for i, stem in enumerate(result.resolved_origins()) if len(stem) == 1 and i not in masked]
    original = clean(corpus)
    for i in outside:
        [token] = result.resolved_origins()[i]
        assert torch.equal(result.tensor[i], original[token])


def test_runs_of_a_span_are_rearranged_separately(corpus: PromptSet) -> None:
    span = {"part": "content", "exclude": {"substring": " "}}
    result = run({"name": "reverse", "window": 0, "span": span}, corpus)
    layout = corpus.layout("hello")
    content = [s[0] for s in result.resolved_origins() if layout.offsets[s[0]][0] != layout.offsets[s[0]][1]]
    assert "olleH ereht" in "".join(layout.text[slice(*layout.offsets[token])] for token in content)


@given(name=st.sampled_from(["shuffle", "reverse", "roll"]), window=st.integers(2, 6), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_rows_and_their_tokens_move_together(name: str, window: int, seed: int, corpus: PromptSet) -> None:
    parameters = {"shift": 2} if name == "roll" else {}
    result = run({"name": name, "window": window, **parameters}, corpus, "sky", seed)
    original = clean(corpus, "sky")
    assert torch.equal(result.tensor, original[[token for (token,) in result.resolved_origins()]])
    assert sorted(result.resolved_origins()) == [(i,) for i in range(len(original))]


@pytest.mark.parametrize("kind", ["noise", "direction"])
def test_control_changes_each_row_by_the_same_amount(kind: str, corpus: PromptSet) -> None:
    config = {"name": "lerp", "t": 0.5, "text": "abcdefghijk"}
    change = run(config, corpus).tensor - clean(corpus)
    control = run({**config, "control": kind}, corpus).tensor - clean(corpus)
    assert torch.allclose(control.norm(dim=1), change.norm(dim=1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(control, change, atol=1e-3)
    changed = control[change.norm(dim=1) > 0]
    alike = torch.nn.functional.cosine_similarity(changed[:1], changed[1:])
    assert torch.allclose(alike, torch.ones_like(alike), atol=1e-4) == (kind == "direction")


def test_control_direction_is_shared_by_prompts(corpus: PromptSet) -> None:
    config = {**SCALE, "control": "direction"}
    changes = [run(config, corpus, p).tensor - clean(corpus, p) for p in ("hello", "sky")]
    directions = [c[c.norm(dim=1) > 0][0] for c in changes]
    assert torch.allclose(*(d / d.norm() for d in directions), atol=1e-4)


def test_control_of_noise_differs_from_the_noise(corpus: PromptSet) -> None:
    noise, control = (run({**NOISE, "control": c}, corpus).tensor - clean(corpus) for c in (None, "noise"))
    alike = torch.nn.functional.cosine_similarity(noise.flatten(), control.flatten(), dim=0)
    assert abs(float(alike)) < 0.2


def test_control_of_a_reordering_changes_each_row_by_the_same_amount(corpus: PromptSet) -> None:
    change, control = (run({"name": "reverse", "control": c}, corpus).tensor - clean(corpus) for c in (None, "noise"))
    assert torch.allclose(control.norm(dim=1), change.norm(dim=1), rtol=1e-4, atol=1e-6)
    with pytest.raises(TransformError, match="keeps the number of rows"):
        run({"name": "repeat", "times": 2, "control": "noise"}, corpus)


def test_files_and_code_are_fingerprinted_by_content(tmp_path: Path) -> None:
    def identity(file: Path) -> object:
        return build_pipeline({"name": "add_vector", "coefficient": 1.0, "vector": {"path": str(file)}}).identity()

    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        np.save(tmp_path / f"{name}.npy", np.full(64, value, dtype=np.float32))
    a, b, c = (identity(tmp_path / f"{name}.npy") for name in "abc")
    assert a == b and a != c


def test_equal_spans_have_equal_fingerprints(corpus: PromptSet) -> None:
    def identity(span: object) -> object:
        return build_pipeline({**NOISE, "span": span}).identity()

    assert identity({"substring": "a"}) == identity({"part": "content", "substring": "a"})
    assert identity({"window": [0, 5]}) == identity({"window": [None, 5]})
    assert identity({"part": "all", "exclude": ["content", {"positions": [0]}]}) == identity(
        {"part": "all", "exclude": [{"positions": [0]}, "content"]}
    )
    assert identity("content") != identity("all")


def test_every_row_keeps_its_token(corpus: PromptSet) -> None:
    ids = corpus.layout("hello").token_ids
    spoken = {
        "soft_prompt": corpus.tokenize("ab"),
        "inject": corpus.tokenize("cat"),
        "other_prompt": [corpus.layout("sky").token_ids[i] for i in corpus.numbers(Span("content"), "sky")],
    }
    soft = run({"name": "soft_prompt", "text": "ab"}, corpus).token_ids
    assert soft == [*spoken["soft_prompt"], *ids]
    injected = run({"name": "inject", "text": "cat", "span": {"substring": "Hello"}}, corpus).token_ids
    first = corpus.numbers(parse_span({"substring": "Hello"}, "span"), "hello")
    assert injected == [*ids[: first[0]], *spoken["inject"], *ids[first[-1] + 1 :]]
    other = run({"name": "other_prompt"}, corpus).token_ids or ()
    assert [token for token in other if token in spoken["other_prompt"]]
    start = corpus.numbers(Span("content"), "hello")[0]
    assert other[start : start + len(spoken["other_prompt"])] == spoken["other_prompt"]
    assert run({"name": "soft_prompt", "random": 2}, corpus).token_ids == [None, None, *ids]


def test_doses_are_measured_after_the_cast(corpus: PromptSet) -> None:
    pipeline = build_pipeline({"name": "scale", "factor": 1.002})
    rows = clean(corpus)
    [exact] = pipeline.apply(rows, "hello", corpus, 0, torch.float32)[1]
    [rounded] = pipeline.apply(rows.bfloat16().float(), "hello", corpus, 0, torch.bfloat16)[1]
    assert exact is not None and exact.requested == 1.002
    assert exact.achieved == pytest.approx(1.002, rel=1e-5)
    assert rounded is not None and abs(rounded.achieved - 1.002) > 1e-4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "compose"}, "needs steps"),
        ([], "needs steps"),
        ({"name": "compose", "first": NOISE}, "under the keys 0, 1"),
        ([SCALE, {"name": "noise", "sigma": -1}], r"transform\.1\.sigma must be 0 or more"),
        (
            [SCALE, {"name": "noise", "sgma": 1}],
            r"transform\.1: 'sgma' is not a parameter of noise\. Did you mean 'sigma'",
        ),
        ({"name": "noise", "span": {"regexp": "x"}}, r"transform\.span: 'regexp' is not a field of a span"),
        ({"name": "noise", "control": "nois"}, r"transform\.control: 'nois'.*Did you mean 'noise'"),
        ({"name": "nose"}, "Did you mean 'noise'"),
        (None, "transform must be one of"),
    ],
)
def test_bad_compositions_are_refused(config: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_pipeline(config)


def test_numbered_steps_form_a_list(corpus: PromptSet) -> None:
    numbered: dict[str, Any] = {"name": "compose", "1": NOISE, "0": SCALE}
    assert build_pipeline(numbered) == build_pipeline([SCALE, NOISE])
    assert build_pipeline(numbered).name == "scale+noise"
    parameters = build_pipeline(numbered).parameters()
    assert (parameters["transform.0.factor"], parameters["transform.1.name"]) == (2.0, "noise")


def test_exceptions_of_a_transform_name_it(corpus: PromptSet) -> None:
    with pytest.raises(TransformError, match=r"^noise: the span .* is empty"):
        run({**NOISE, "span": {"substring": "zzz"}}, corpus)
    with pytest.raises(TransformError, match=r"^drop_rows: no row of the prompt is left"):
        run({"name": "drop_rows", "p": 1.0, "span": "all"}, corpus)


def test_the_pipeline_of_the_control() -> None:
    assert build_pipeline({"name": "identity"}).is_identity
    assert not build_pipeline({"name": "scale", "factor": 1.0}).is_identity
    assert isinstance(build_pipeline([NOISE]), Pipeline)


def test_parameter_names_are_valid_for_every_tracker() -> None:
    parameters = build_pipeline({"name": "token_mixture", "tokens": {"?": 1.0, "東": 2.0}}).parameters()
    assert parameters["transform.tokens"] == '{"?": 1.0, "東": 2.0}'
    vector = build_pipeline({"name": "ablate", "vector": {"positive": ["a"], "negative": ["b"]}}).parameters()
    assert vector["transform.vector.positive"] == ["a"] and "transform.vector.path" not in vector
