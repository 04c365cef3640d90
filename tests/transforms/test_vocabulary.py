"""Rows drawn to the rows of tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweep.config.dataclass_reader import build
from sweep.errors import ConfigError, TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import TRANSFORMS, Context, Span
from sweep.transforms.vocabulary import METRICS, Anchor, KnnBlend, NearestToken, TokenMixture


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    return Context(1, 2, corpus, "sky", Span("content"), ())


@pytest.fixture(scope="module")
def tokens(corpus: PromptSet) -> Tensor:
    """The whole table."""
    return corpus.table.rows(range(corpus.table.size))


@pytest.fixture(scope="module")
def clean(corpus: PromptSet) -> Tensor:
    """A prompt's own rows."""
    return corpus.table.rows(corpus.layout("sky").token_ids)


@pytest.fixture(scope="module")
def noisy(clean: Tensor) -> Tensor:
    """The same with noise, and a row of zeros."""
    rows = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([rows, torch.zeros(1, 64)])


def reference_distances(rows: Tensor, tokens: Tensor, metric: str) -> Tensor:
    if metric == "l2":
        return torch.cdist(rows.double(), tokens.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(rows.double()[:, None], tokens.double()[None], dim=-1)
    return -rows.double() @ tokens.double().T


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_token_is_the_nearest_row_of_the_table(
    context: Context, noisy: Tensor, tokens: Tensor, metric: str
) -> None:
    after = NearestToken(metric=metric).apply(noisy, context)
    distances = reference_distances(noisy, tokens, metric)
    for row, of_row in zip(after, distances, strict=True):
        (same,) = (tokens == row).all(1).nonzero()
        assert float(of_row[same]) == pytest.approx(float(of_row.min()), abs=1e-5)


def test_nearest_token_keeps_tokens_and_is_idempotent(context: Context, clean: Tensor, noisy: Tensor) -> None:
    assert torch.equal(NearestToken().apply(clean, context), clean)
    assert torch.equal(NearestToken(metric="cosine").apply(2 * clean, context), clean)
    once = NearestToken().apply(noisy, context)
    assert not torch.equal(once, noisy)
    assert torch.equal(NearestToken().apply(once, context), once)


@settings(max_examples=20)
@given(strength=st.floats(0, 1))
def test_strength_moves_along_a_straight_line(context: Context, noisy: Tensor, strength: float) -> None:
    for part, whole in (
        (NearestToken(strength), NearestToken(1.0)),
        (KnnBlend(strength), KnnBlend(1.0)),
        (TokenMixture({"a": 1.0, "b": 2.0}, strength), TokenMixture({"a": 1.0, "b": 2.0})),
    ):
        expected = (1 - strength) * noisy + strength * whole.apply(noisy, context)
        assert torch.allclose(part.apply(noisy, context), expected, atol=1e-6)


@settings(max_examples=25)
@given(k=st.integers(1, 300), temperature=st.floats(0.01, 100), metric=st.sampled_from(METRICS), unit=st.booleans())
def test_knn_blend_mixes_the_nearest_tokens(
    context: Context, noisy: Tensor, tokens: Tensor, k: int, temperature: float, metric: str, unit: bool
) -> None:
    after = KnnBlend(1.0, k, temperature, metric, "table_std" if unit else "absolute").apply(noisy, context)
    length = float(tokens.std(correction=0)) * 64**0.5 if unit else 1.0
    scale = {"l2": length, "cosine": 1.0, "dot": length**2}[metric]
    distances, ids = reference_distances(noisy[:-1], tokens, metric).topk(min(k, 272), largest=False)
    shares = (-distances / (temperature * scale)).softmax(1)
    expected = torch.stack([share @ tokens[chosen].double() for share, chosen in zip(shares, ids, strict=True)])
    assert torch.allclose(after[:-1].double(), expected, atol=1e-3)
    assert after.isfinite().all()


def test_knn_blend_has_two_ends(context: Context, noisy: Tensor, tokens: Tensor) -> None:
    nearest = NearestToken().apply(noisy, context)
    assert torch.equal(KnnBlend(1.0, k=1).apply(noisy, context), nearest)
    assert torch.allclose(KnnBlend(1.0, k=8, temperature=1e-4).apply(noisy, context)[:-1], nearest[:-1], atol=1e-5)
    everything = KnnBlend(1.0, k=272, temperature=1e6).apply(noisy, context)
    assert torch.allclose(everything, tokens.mean(0).expand_as(noisy), atol=1e-5)


@settings(max_examples=20)
@given(epsilon=st.floats(1e-3, 10), unit=st.sampled_from(["absolute", "table_std"]))
def test_anchor_sets_the_distance_to_the_nearest_token(
    context: Context, noisy: Tensor, tokens: Tensor, epsilon: float, unit: str
) -> None:
    after = Anchor(epsilon, unit).apply(noisy, context)
    nearest = NearestToken().apply(noisy, context)
    distance = epsilon * (float(tokens.std(correction=0)) * 8 if unit == "table_std" else 1)
    assert torch.allclose((after - nearest).norm(dim=1), torch.full((len(noisy),), distance), rtol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(after - nearest, noisy - nearest)
    assert torch.allclose(cosines, torch.ones(len(noisy)), atol=1e-4)


def test_anchor_keeps_tokens_and_is_the_projection_at_0(context: Context, clean: Tensor, noisy: Tensor) -> None:
    assert torch.equal(Anchor(0.5).apply(clean, context), clean)
    assert torch.equal(Anchor(0.0).apply(noisy, context), NearestToken().apply(noisy, context))
    assert not Anchor(0.0).is_neutral


def test_mixture_of_one_token_equals_its_row(context: Context, noisy: Tensor, tokens: Tensor) -> None:
    (a,) = context.corpus.tokenize("a")
    for weights in ({"a": 0.3}, {"a": 7.0, "b": 0.0}, {"a": 1e-60}):
        assert torch.equal(TokenMixture(weights).apply(noisy, context), tokens[a].expand_as(noisy))


@settings(max_examples=20)
@given(weights=st.lists(st.floats(0, 100), min_size=3, max_size=3).filter(lambda w: sum(w) > 1e-3))
def test_mixtures_are_weighted_means_of_their_tokens(context: Context, tokens: Tensor, weights: list[float]) -> None:
    ids = [context.corpus.tokenize(text)[0] for text in "xyz"]
    after = TokenMixture(dict(zip("xyz", weights, strict=True))).apply(torch.zeros(4, 64), context)
    expected = torch.tensor(weights).double() @ tokens[ids].double() / sum(weights)
    assert torch.allclose(after.double(), expected.expand(4, -1), atol=1e-6)


def test_texts_of_several_tokens_are_refused_by_naming_them(context: Context, corpus: PromptSet) -> None:
    ids = corpus.tokenize("ab")
    transform = TokenMixture({"a": 1.0, "ab": 1.0})
    with pytest.raises(TransformError, match=rf"'ab' must be one token of the model, but is 2: \[{ids[0]}, {ids[1]}\]"):
        transform.apply(torch.zeros(1, 64), context)
    with pytest.raises(ConfigError, match=r"transform\.tokens: the text 'ab' must be one token"):
        transform.check(corpus)
    TokenMixture({"a": 1.0}).check(corpus)


def test_token_mixture_is_read_from_a_configuration() -> None:
    made = build("transform", {"name": "token_mixture", "tokens": {" a": 1, "b": 0.5}}, TRANSFORMS)
    assert made == TokenMixture({" a": 1.0, "b": 0.5})
    with pytest.raises(ConfigError, match="tokens"):
        build("transform", {"name": "token_mixture", "tokens": {"a": "much"}}, TRANSFORMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestToken(1.5), r"transform\.strength must be in \[0, 1\]"),
        (lambda: NearestToken(metric="l1"), r"transform\.metric: 'l1'"),
        (lambda: KnnBlend(-0.5), r"transform\.alpha must be in \[0, 1\]"),
        (lambda: KnnBlend(0.5, k=0), r"transform\.k must be 1 or more"),
        (lambda: KnnBlend(0.5, temperature=0.0), r"transform\.temperature must be more than 0"),
        (lambda: KnnBlend(0.5, unit="row_rms"), r"transform\.unit: 'row_rms'"),
        (lambda: Anchor(-1.0), r"transform\.epsilon must be 0 or more"),
        (lambda: Anchor(float("nan")), r"transform\.epsilon must be a finite number"),
        (lambda: Anchor(1.0, "std"), r"transform\.unit: 'std'"),
        (lambda: TokenMixture(), r"transform\.tokens must name at least one token"),
        (lambda: TokenMixture({"a": -1.0}), r"transform\.tokens\.a must be 0 or more"),
        (lambda: TokenMixture({"a": float("inf")}), r"transform\.tokens\.a must be a finite number"),
        (lambda: TokenMixture({"a": 0.0}), r"transform\.tokens must have a positive sum"),
        (lambda: TokenMixture({"a": 1.0}, 2.0), r"transform\.strength must be in \[0, 1\]"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
