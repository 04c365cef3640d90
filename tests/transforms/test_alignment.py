"""Alignments of an encoder's layers to the table, against scikit-learn, SciPy and exact cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.scoring.registry import spec
from sweep.transforms import alignment
from sweep.transforms.alignment import PENALTIES, Alignment, Source, fit, solve
from sweep.transforms.text_encoder import versions
from sweep.util.digests import file_digest

WORDS = [
    "the",
    "cat",
    "sees",
    "a",
    "red",
    "house",
    "near",
    "tall",
    "trees",
    "and",
    "blue",
    "water",
    "while",
    "dogs",
    "run",
    "over",
    "green",
    "hills",
]
TEXTS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(6)) for step in range(1, 18)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fit.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    return path


def fitted(tiny: Path, texts: Path, corpus: PromptSet, kind: str, layer: int | None, to: str = "token") -> Alignment:
    return fit(kind, to, Source(tiny, layer, versions(tiny)), texts, file_digest(texts), corpus)


def pairs(tiny: Path, corpus: PromptSet, layer: int, texts: list[str]) -> tuple[Any, Any]:
    """Return states and rows of the same tokens: the model's own tokenizer has one token for each."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    rows, targets = [], []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
        is_text = tokens.pop("special_tokens_mask")[0] == 0
        with torch.no_grad():
            rows.append(model(**tokens, output_hidden_states=True).hidden_states[layer][0][is_text])
        targets.append(corpus.table.rows(tokens["input_ids"][0][is_text]))
    return torch.cat(rows).double().numpy(), torch.cat(targets).double().numpy()


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_layer_0_is_aligned_already(tiny: Path, texts: Path, corpus: PromptSet, kind: str) -> None:
    """Its rows are the table's."""
    found = fitted(tiny, texts, corpus, kind, 0)
    assert found.error < 1e-3 < 0.5 < found.mean_error
    rows = corpus.table.rows(corpus.tokenize(TEXTS[0]))
    assert torch.allclose(found.apply(rows), rows, atol=1e-3 * float(rows.abs().max()))
    assert fitted(tiny, texts, corpus, kind, 0, "next").error > 0.3


def test_ridge_equals_scikit_learns(tiny: Path, texts: Path, corpus: PromptSet) -> None:
    found = fitted(tiny, texts, corpus, "ridge", 1)
    rows, targets = pairs(tiny, corpus, 1, TEXTS)

    def solved(rows: Any, targets: Any) -> Ridge:
        """Return the fit whose generalised cross-validation error is the smallest, from the whole hat matrix."""
        centred = rows - rows.mean(0)
        largest, scores = np.linalg.eigvalsh(centred.T @ centred)[-1], {}
        for factor in PENALTIES:
            gram = centred.T @ centred + largest * factor * np.eye(rows.shape[1])
            hat = centred @ np.linalg.solve(gram, centred.T) + 1 / len(rows)
            scores[factor] = ((targets - hat @ targets) ** 2).sum() / (1 - np.trace(hat) / len(rows)) ** 2
        return Ridge(alpha=largest * min(scores, key=scores.__getitem__)).fit(rows, targets)

    whole = solved(rows, targets)
    assert np.allclose(found.weight, whole.coef_.T, atol=1e-5) and np.allclose(found.bias, whole.intercept_, atol=1e-5)
    held_out = TEXTS[4::5]
    part = solved(*pairs(tiny, corpus, 1, [text for text in TEXTS if text not in held_out]))
    new, true = pairs(tiny, corpus, 1, held_out)
    expected = np.linalg.norm(part.predict(new) - true) / np.linalg.norm(true)
    assert found.error == pytest.approx(expected, rel=1e-3)


def test_procrustes_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    weight, bias = solve("procrustes", torch.from_numpy(rows), torch.from_numpy(targets))
    centred, aims = rows - rows.mean(0), targets - targets.mean(0)
    rotation, strength = orthogonal_procrustes(centred, aims)
    assert np.allclose(weight, rotation * strength / (centred**2).sum())
    assert np.allclose(rows.mean(0) @ weight.numpy() + bias.numpy(), targets.mean(0))


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_directions_that_do_not_vary_are_mapped_to_zero(kind: str) -> None:
    """Also with another width, and with fewer rows than dimensions."""
    rng = np.random.default_rng(0)
    inner = rng.normal(size=(7, 3))
    rows = torch.from_numpy(np.hstack([inner, np.ones((7, 9))]))
    weight, _ = solve(kind, rows, torch.from_numpy(np.hstack([2 * inner, np.zeros((7, 2))])))
    assert torch.allclose(
        weight, 2 * torch.eye(12, 5, dtype=torch.float64) * (torch.arange(12) < 3)[:, None], atol=1e-4
    )


def test_rows_of_any_encoder_can_have_the_tables_size(tiny: Path, corpus: PromptSet) -> None:
    given = {"name": "encoder", "encoder": str(tiny), "text": TEXTS[0], "layer": 1, "align": "rms"}
    pipeline = build_pipeline(given)
    rows = corpus.table.rows(corpus.layout(corpus.prompts[0].prompt.id).token_ids)
    after = pipeline.apply(rows, corpus.prompts[0].prompt.id, corpus, 0, torch.float32)[0]
    new = after.tensor[[i for i, origin in enumerate(after.resolved_origins()) if len(origin) > 1]]
    assert len(new) and torch.allclose(new.square().mean(1).sqrt(), torch.full((len(new),), corpus.table.rms))
    assert pipeline.facts(corpus) == {}


def test_errors_on_held_out_texts_are_measures(tiny: Path, texts: Path, corpus: PromptSet) -> None:
    given = {"name": "encoder", "encoder": str(tiny), "text": TEXTS[0], "align": "ridge", "align_texts": str(texts)}
    pipeline = build_pipeline(given)
    pipeline.check(corpus)
    found = fitted(tiny, texts, corpus, "ridge", None)
    assert pipeline.facts(corpus) == {
        "alignment_error": found.error,
        "alignment_error_of_mean": found.mean_error,
    }
    assert all(spec(f"perturbation/{name}") for name in pipeline.facts(corpus))
    assert texts in list(pipeline.stages[0].transform.files())


def test_a_fit_is_read_from_the_users_cache(
    tiny: Path, texts: Path, corpus: PromptSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that pool processes and later sweeps do not repeat it."""
    first = fitted(tiny, texts, corpus, "ridge", 1)
    assert len(list((cache / "sweep" / "alignments").iterdir())) == 1
    fit.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(alignment, "states", None)
        second = fitted(tiny, texts, corpus, "ridge", 1)
    assert torch.equal(first.weight, second.weight) and second.error == first.error
    [file] = (cache / "sweep" / "alignments").iterdir()
    file.write_bytes(b"damaged")
    fit.cache_clear()
    assert fitted(tiny, texts, corpus, "ridge", 1).error == pytest.approx(first.error)
    texts.write_text("\n".join(TEXTS[::-1]))
    assert fitted(tiny, texts, corpus, "ridge", 1).error != pytest.approx(first.error)
    assert len(list((cache / "sweep" / "alignments").iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n\ntwo\none\n", r"transform\.align_texts: '.*' has 2 different texts; from 5 to 10,000 are allowed"),
        (b"\xff\xfe", r"transform\.align_texts: '.*' cannot be read as text in UTF-8"),
        (None, r"transform\.align_texts: there is no file"),
    ],
)
def test_texts_that_are_refused(
    tiny: Path, tmp_path: Path, corpus: PromptSet, content: bytes | None, message: str
) -> None:
    path = tmp_path / "few.txt"
    if content is not None:
        path.write_bytes(content)
    given = {"name": "encoder", "encoder": str(tiny), "text": "red", "align": "ridge", "align_texts": str(path)}
    with pytest.raises(ConfigError, match=message):
        build_pipeline(given).check(corpus)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"align": "linear"}, r"transform\.align: .* Available: none, rms, ridge, procrustes"),
        ({"align": "ridge"}, r"transform\.align_texts must name a file of texts for align=ridge"),
        ({"align": "ridge", "align_texts": "a", "projector": "p"}, r"transform\.projector excludes align=ridge"),
        ({"align": "ridge", "align_texts": "a", "align_to": "last"}, r"transform\.align_to: .* Available: token, next"),
    ],
)
def test_parameters_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pipeline({"name": "encoder", "encoder": "a", "text": "red", **given})
