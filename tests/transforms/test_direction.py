"""Vectors and subspaces: where they come from, and what adding and removing them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span, Transform
from sweep.transforms.direction import Ablate, AddVector, Clamp, Erase
from sweep.transforms.vectors import VectorSource

WIDTH = 64
ROWS = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
MOOD = VectorSource(positive=["happy", "glad"], negative=["sad", "angry"])
NUMBERS = st.floats(-8, 8).filter(lambda number: abs(number) > 1e-2)


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    return Context(1, 2, corpus, "sky", Span("content"), ())


def from_file(folder: Path, vectors: Tensor, **given: Any) -> VectorSource:
    save_file({"vectors": vectors.contiguous()}, folder / "vectors.safetensors")
    return VectorSource(path=str(folder / "vectors.safetensors"), **given)


def mean_row(corpus: PromptSet, text: str) -> Tensor:
    return corpus.table.rows(corpus.tokenize(text)).mean(0)


def direction(source: VectorSource, corpus: PromptSet) -> Tensor:
    vector = source.vector(corpus)
    return vector / vector.norm()


def test_difference_of_means(corpus: PromptSet) -> None:
    source = VectorSource(positive=["happy", "so glad"], negative=["sad"])
    expected = (mean_row(corpus, "happy") + mean_row(corpus, "so glad")) / 2 - mean_row(corpus, "sad")
    assert torch.allclose(source.vector(corpus), expected, atol=1e-6)


def test_pca_is_the_direction_of_largest_variance(corpus: PromptSet) -> None:
    positive, negative = ["happy", "glad", "merry", "gay"], ["sad", "angry", "gloomy", "low"]
    source = VectorSource(positive=positive, negative=negative, method="pca", rank=3)
    pairs = zip(positive, negative, strict=True)
    differences = torch.stack([mean_row(corpus, a) - mean_row(corpus, b) for a, b in pairs])
    vectors = source.vectors(corpus)
    values, directions = torch.linalg.eigh(differences.T @ differences / len(differences))
    for i in range(3):
        assert abs(float(torch.cosine_similarity(vectors[i], directions[:, -1 - i], dim=0))) == pytest.approx(
            1, abs=1e-4
        )
        assert float(vectors[i].square().sum()) == pytest.approx(float(values[-1 - i]), rel=1e-4)
        assert float((differences @ vectors[i]).sum()) > 0
    swapped = VectorSource(positive=negative, negative=positive, method="pca", rank=3)
    assert torch.allclose(swapped.vectors(corpus), -vectors, atol=1e-5)


def test_pca_of_one_pair_is_its_difference(corpus: PromptSet) -> None:
    pca, mean = (VectorSource(positive=["happy"], negative=["sad"], method=m) for m in ("pca", "mean_difference"))
    assert torch.allclose(pca.vector(corpus), mean.vector(corpus), atol=1e-6)


def test_vectors_of_a_file(corpus: PromptSet, tmp_path: Path) -> None:
    assert torch.equal(from_file(tmp_path, ROWS[:3]).vectors(corpus), ROWS[:3])
    assert torch.equal(from_file(tmp_path, ROWS[:3], rank=1, key="vectors").vector(corpus), ROWS[0])
    assert from_file(tmp_path, ROWS[:3]).files() == (tmp_path / "vectors.safetensors",)


def test_vectors_are_computed_once(corpus: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = VectorSource(positive=["once"], negative=["twice"])
    first = source.vectors(corpus)
    monkeypatch.setattr(type(corpus), "tokenize", lambda *_: pytest.fail("tokenized again"))
    assert torch.equal(VectorSource(positive=["once"], negative=["twice"]).vectors(corpus), first)
    both = from_file(tmp_path, ROWS[:3], rank=2)
    assert both.basis(corpus) is both.basis(corpus)


def test_a_basis_is_orthonormal_and_spans_the_vectors(corpus: PromptSet, tmp_path: Path) -> None:
    basis = from_file(tmp_path, ROWS[:5] * torch.logspace(-4, 4, 5)[:, None]).basis(corpus)
    assert torch.allclose(basis @ basis.T, torch.eye(5), atol=1e-6)
    assert torch.allclose(ROWS[:5] @ basis.T @ basis, ROWS[:5], atol=1e-5)
    assert torch.allclose(basis[0], ROWS[0] / ROWS[0].norm(), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(coefficient=NUMBERS)
def test_adding_moves_the_projection_by_the_coefficient(context: Context, coefficient: float) -> None:
    s = MOOD.vector(context.corpus)
    raw, unit = (AddVector(coefficient, MOOD, normalize=normalize) for normalize in (False, True))
    assert torch.allclose(raw.apply(ROWS, context), ROWS + coefficient * s, atol=1e-5)
    moved = (unit.apply(ROWS, context) - ROWS) @ direction(MOOD, context.corpus)
    assert torch.allclose(moved, torch.full((20,), coefficient), atol=1e-4)
    for transform in (raw, unit):
        after = transform.apply(ROWS, context)
        assert transform.achieved(ROWS, after, context) == pytest.approx(coefficient, rel=1e-3)
        back = AddVector(-coefficient, MOOD, normalize=transform.normalize).apply(after, context)
        assert torch.allclose(back, ROWS, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(coefficient=NUMBERS)
def test_relative_units_are_the_rms_of_what_is_added(context: Context, coefficient: float) -> None:
    of_table = AddVector(coefficient, MOOD, unit="table_std")
    change = of_table.apply(ROWS, context) - ROWS
    rms = change.square().mean(1).sqrt()
    assert torch.allclose(rms, torch.full((20,), abs(coefficient) * context.table.std), rtol=1e-3)
    assert of_table.achieved(ROWS, ROWS + change, context) == pytest.approx(coefficient, rel=1e-3)
    rows = ROWS * torch.logspace(-2, 2, 20)[:, None]
    of_row = AddVector(coefficient, MOOD, unit="row_rms")
    after = of_row.apply(rows, context)
    assert torch.allclose((after - rows).norm(dim=1), abs(coefficient) * rows.norm(dim=1), rtol=1e-3)
    assert of_row.achieved(rows, after, context) == pytest.approx(coefficient, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(coefficient=NUMBERS, unit=st.sampled_from(["absolute", "table_std", "row_rms"]))
def test_renormalizing_keeps_norms_and_turns_the_same_way(context: Context, coefficient: float, unit: str) -> None:
    plain = AddVector(coefficient, MOOD, unit=unit).apply(ROWS, context)
    transform = AddVector(coefficient, MOOD, unit=unit, renormalize=True)
    kept = transform.apply(ROWS, context)
    assert torch.allclose(kept.norm(dim=1), ROWS.norm(dim=1), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(kept, plain, dim=1), torch.ones(20), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(strength=st.floats(-2, 3).filter(lambda s: abs(s) > 1e-2), length=st.floats(1e-3, 1e3))
def test_ablation_does_not_depend_on_the_vectors_length(
    context: Context, tmp_path_factory: pytest.TempPathFactory, strength: float, length: float
) -> None:
    s = ROWS[0] / ROWS[0].norm()
    transform = Ablate(strength, from_file(tmp_path_factory.mktemp("v"), length * s))
    after = transform.apply(ROWS[1:], context)
    assert torch.allclose(after @ s, (1 - strength) * (ROWS[1:] @ s), atol=1e-4)
    across = torch.eye(WIDTH) - torch.outer(s, s)
    assert torch.allclose(after @ across, ROWS[1:] @ across, atol=1e-4)


def test_full_ablation_leaves_nothing_and_is_idempotent(context: Context) -> None:
    once = Ablate(vector=MOOD).apply(ROWS, context)
    assert torch.allclose(once @ direction(MOOD, context.corpus), torch.zeros(20), atol=1e-5)
    assert torch.allclose(Ablate(vector=MOOD).apply(once, context), once, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-50, 50), strength=st.floats(0.05, 1))
def test_clamping_brings_all_rows_to_the_value(context: Context, value: float, strength: float) -> None:
    unit = direction(MOOD, context.corpus)
    transform = Clamp(value=value, vector=MOOD)
    after = transform.apply(ROWS, context)
    assert torch.allclose(after @ unit, torch.full((20,), value), atol=1e-3)
    across = torch.eye(WIDTH) - torch.outer(unit, unit)
    assert torch.allclose(after @ across, ROWS @ across, atol=1e-4)
    part = Clamp(value=value, vector=MOOD, strength=strength)
    assert torch.allclose(part.apply(ROWS, context), ROWS + strength * (after - ROWS), atol=1e-4)


def test_clamping_in_relative_units(context: Context) -> None:
    unit = direction(MOOD, context.corpus)
    of_row = Clamp(value=0.5, vector=MOOD, unit="row_rms").apply(ROWS, context)
    assert torch.allclose(of_row @ unit, 0.5 * ROWS.norm(dim=1), rtol=1e-4)
    of_table = Clamp(value=-2, vector=MOOD, unit="table_std").apply(ROWS, context)
    assert torch.allclose(of_table @ unit, torch.full((20,), -2 * context.table.std * WIDTH**0.5), rtol=1e-4)


def test_clamping_to_zero_is_ablation(context: Context) -> None:
    assert torch.equal(Clamp(vector=MOOD).apply(ROWS, context), Ablate(vector=MOOD).apply(ROWS, context))


def test_erasure_removes_the_subspace(context: Context, tmp_path: Path) -> None:
    vectors, rows = ROWS[:4], ROWS[4:]
    source = from_file(tmp_path, vectors)
    after = Erase(vector=source).apply(rows, context)
    assert float((after @ vectors.T).abs().max()) < 1e-4
    assert torch.allclose(Erase(vector=source).apply(after, context), after, atol=1e-5)
    # No more than the subspace is gone: what was taken lies in it.
    taken = rows - after
    assert int(torch.linalg.matrix_rank(torch.cat([vectors, taken]), tol=1e-3)) == 4
    half = Erase(0.5, source)
    assert torch.allclose(half.apply(rows, context), (rows + after) / 2, atol=1e-6)


def test_erasing_one_vector_is_ablation(context: Context) -> None:
    assert torch.equal(Erase(vector=MOOD).apply(ROWS, context), Ablate(vector=MOOD).apply(ROWS, context))


def test_erased_components_cannot_be_probed(context: Context, tmp_path: Path) -> None:
    """Two classes that a linear probe told apart by their difference look alike to it afterwards."""
    noise = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(400) % 2 * 2.0 - 1
    rows = noise + 2 * labels[:, None] * ROWS[0] / ROWS[0].norm()
    gap = rows[labels > 0].mean(0) - rows[labels < 0].mean(0)
    erased = Erase(vector=from_file(tmp_path, gap)).apply(rows, context)

    def accuracy(data: Tensor) -> float:
        train, test = slice(0, 200), slice(200, 400)
        probe = torch.linalg.lstsq(data[train], labels[train, None]).solution
        return float(((data[test] @ probe)[:, 0].sign() == labels[test]).float().mean())

    assert accuracy(rows) > 0.9
    assert accuracy(erased) < 0.62


@pytest.mark.parametrize(
    "transform", [AddVector(3.0, MOOD, unit="row_rms"), Ablate(1.0, MOOD), Clamp(1.0, MOOD, 1.0, "row_rms")]
)
def test_zero_rows_stay_finite(context: Context, transform: Transform) -> None:
    zeros = torch.zeros(2, WIDTH)
    after = transform.apply(zeros, context)
    assert torch.equal(after, zeros)
    assert transform.achieved(zeros, after, context) is None


@pytest.mark.parametrize("cls", [AddVector, Ablate, Clamp, Erase])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (dict[str, Any](), r"transform\.vector needs either a path, or positive and negative texts"),
        ({"path": "a.npy", "positive": ["a"], "negative": ["b"]}, r"transform\.vector needs either a path"),
        ({"positive": ["a"]}, r"transform\.vector needs positive and negative texts"),
        ({"positive": ["a"], "negative": ["b"], "key": "c"}, r"transform\.vector\.key selects a tensor in a file"),
        (
            {"positive": ["a"], "negative": ["b"], "method": "PCA"},
            r"transform\.vector\.method: .*Did you mean 'pca'|Available",
        ),
        ({"positive": ["a", "c"], "negative": ["b"], "method": "pca"}, r"as many negative texts as positive ones"),
        ({"positive": ["a"], "negative": ["b"], "method": "pca", "rank": 2}, r"at most the number of pairs, 1; got 2"),
        ({"positive": ["a"], "negative": ["b"], "rank": 2}, r"transform\.vector\.rank above 1 needs method=pca"),
        ({"path": "a.npy", "rank": 0}, r"transform\.vector\.rank must be at least 1"),
    ],
)
def test_incomplete_and_contradictory_sources_are_refused(
    cls: Callable[..., Transform], source: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cls(vector=VectorSource(**source))


def test_vectors_that_cannot_be_used(corpus: PromptSet, tmp_path: Path) -> None:
    def check(transform: Transform, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            transform.check(corpus)

    check(Ablate(vector=from_file(tmp_path, ROWS[:2])), r"expected one vector, found 2\. .*row=0 \(to 1\) to use one")
    check(AddVector(1.0, from_file(tmp_path, ROWS[:2])), r"expected one vector, found 2")
    check(Erase(vector=from_file(tmp_path, ROWS[:2], rank=3)), r"holds 2 vectors; got 3")
    check(Erase(vector=from_file(tmp_path, ROWS[[0, 1, 0]])), r"the 3 vectors are not linearly independent")
    check(Erase(vector=from_file(tmp_path, torch.stack([ROWS[0], 1e-3 * ROWS[0]]))), r"not linearly independent")
    check(Ablate(vector=from_file(tmp_path, torch.zeros(1, WIDTH))), r"vector 0 is zero")
    check(
        Ablate(vector=from_file(tmp_path, ROWS[:1, :32])), r"transform\.vector\.path: .* width 32; the model's are 64"
    )
    check(Ablate(vector=VectorSource(path=str(tmp_path / "no.npy"))), r"transform\.vector\.path: there is no file")
    check(Ablate(vector=VectorSource(positive=["same"], negative=["same"])), r"have the same mean")
    check(
        Ablate(vector=VectorSource(positive=["a"], negative=["a"], method="pca")), r"differ in fewer than 1 dimensions"
    )
    check(Ablate(vector=VectorSource(positive=["a"], negative=[""])), r"the text '' has no tokens")


def test_vector_is_configured_in_a_separate_section(corpus: PromptSet) -> None:
    vector = {"positive": ["happy"], "negative": ["sad"]}
    pipeline = build_pipeline({"name": "add_vector", "coefficient": 2, "normalize": True, "vector": vector})
    pipeline.check(corpus)
    ids = corpus.layout("sky").token_ids
    rows = corpus.table.rows(ids)
    result, [dose] = pipeline.apply(rows, "sky", corpus, 0, torch.bfloat16)
    inside = corpus.numbers(Span("content"), "sky")
    outside = [i for i in range(len(ids)) if i not in inside]
    assert torch.equal(result.tensor[outside], rows[outside])
    assert torch.allclose((result.tensor - rows)[inside].norm(dim=1), torch.full((len(inside),), 2.0), rtol=1e-4)
    assert dose is not None and dose.requested == 2
    assert dose.achieved == pytest.approx(2, rel=0.01)
    with pytest.raises(ConfigError, match=r"transform\.vector.*postive"):
        build_pipeline({"name": "add_vector", "vector": {"postive": ["happy"]}})
