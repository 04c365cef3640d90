"""Measures of quality against cases worked out by hand, the published definitions and sacrebleu."""

from __future__ import annotations

import math
import random
import re
import time
from pathlib import Path

import pytest
import sacrebleu

from sweep.errors import ConfigError
from sweep.scoring import scorers, text
from sweep.scoring.registry import spec


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1.0),
        ("an apple a day", "Apple day.", 1, 1.0),
        ("It is Paris, of course.", "Paris", 0, 2 * (1 / 5) * 1 / (1 / 5 + 1)),
        ("cat cat dog", "cat dog dog", 0, 2 / 3),
        ("red", "blue", 0, 0.0),
        ("the", "A.", 1, 1.0),
        ("", "blue", 0, 0.0),
    ],
)
def test_squad(answer: str, reference: str, exact: int, f1: float) -> None:
    assert text.normalised_exact_match(answer, [reference]) == exact
    assert text.token_f1(answer, [reference]) == pytest.approx(f1)


def test_articles_within_words_are_kept() -> None:
    assert text.normalise("The theatre, an  anthem\n& a sofa") == "theatre anthem sofa"


def test_only_ascii_punctuation_is_removed() -> None:
    assert text.normalise("É‘a’ – «the» \ud800;ß.") == "é‘ ’ – « » \ud800ß"


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("so 3 + 4 = 7 apples.", "7", 1),
        ("7, not 8", "7", 0),
        ("1,234,567.50 in all", "1234567.5", 1),
        ("1,2345", "12345", 0),
        ("1,2345", "2345", 1),
        ("1\u202f000", "1000", 1),
        ("it is -5", "5", 0),
        ("it is −5 °C", "-5", 1),
        ("-$1,000", "-1000", 1),
        ("$1,000", "1000", 1),
        ("from 10-5", "5", 1),
        ("0.5", ".50", 1),
        ("1e-3", "0.001", 1),
        ("50%", "0.5", 1),
        ("50 percent", "50", 1),
        ("0.5", "50 %", 1),
        ("50%", "0.5%", 0),
        ("50", "0.5", 0),
        ("0%", "0", 1),
        ("30 m2 of H2O", "30", 1),
        ("H25", "25", 0),
        ("The 5th.", "5", 1),
        ("48/2 = 24, so 48 + 24 = 72.", "Natalia sold 48/2 = 24 clips in May.\n#### 72", 1),
        ("24", "Natalia sold 48/2 = 24 clips in May.\n#### 72", 0),
        ("1234567", "1234568", 0),
        ("none", "7", 0),
        ("7", "none", 0),
        ("-0", "0", 1),
    ],
)
def test_numeric_match(answer: str, reference: str, equal: int) -> None:
    assert text.numeric_match(answer, [reference]) == equal


def test_numeric_tolerance_is_relative() -> None:
    assert text.numeric_match("3.14", ["3.14159"]) == 0
    assert text.numeric_match("3.14", ["3.14159"], tolerance=1e-3) == 1
    assert text.numeric_match("3.14e9", ["3.14159e9"], tolerance=1e-3) == 1
    assert text.numeric_match("0.001", ["0.002"], tolerance=1e-2) == 0


def test_regex_match() -> None:
    assert text.regex_match("It is Paris.", [r"(?i)\bpARIS\b"]) == 1
    assert text.regex_match("It is Parish.", [r"\bParis\b"]) == 0
    assert text.regex_match("one\ntwo", ["^two$"]) == 0
    with pytest.raises(ConfigError, match=r"'\(open' is not a regular expression: missing \)"):
        text.check_pattern("(open")
    with pytest.raises(ConfigError, match="not a regular expression"):
        text.check_pattern(r"\p{L}")  # which `regex` would take


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [("a{e}", "a{e}"), ("a{e}", "b"), (r"x_{i}\{\d{2}\}", "x_{i}{42}"), ("[{]d}{1}", "{d}"), ("a{}b", "a{}b"), ("a{,2}b{1,}", "aabb"), (r"\N{DIGIT ONE}{2}", "11"), (r"\\{s<=1}", "\\{s<=1}"), ("(?i)paris(?!h)", "PARIS"), ("(?s)one.two", "one\ntwo"), ("(?m)^two$", "one\ntwo"), (r"two\Z", "two\n")],
)  # fmt: skip
def test_regex_match_agrees_with_pythons_re(pattern: str, answer: str) -> None:
    assert text.regex_match(answer, [pattern]) == (re.search(pattern, answer) is not None)


def test_slow_pattern_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "REGEX_SECONDS", 0.1)
    assert text.regex_match("a" * 60, ["(a|aa)+$"]) == 1
    began = time.thread_time()
    with pytest.raises(text.ScorerError, match=re.escape("'(a|aa)+$' takes more than 0.1 s on one answer")):
        text.regex_match("a" * 60 + "!", ["(a|aa)+$"])
    assert time.thread_time() - began < 5


ANSWER, REFERENCE = "The quick brown fox jumps over the lazy dog.", "A quick brown fox jumped over the lazy dog."


def test_chrf_and_bleu_equal_sacrebleus() -> None:
    chrf = sacrebleu.sentence_chrf(ANSWER, [REFERENCE]).score / 100
    bleu = sacrebleu.sentence_bleu(ANSWER, [REFERENCE]).score / 100
    assert 0.3 < chrf < 1 and 0.3 < bleu < 1
    assert (text.chrf(ANSWER, [REFERENCE]), text.bleu(ANSWER, [REFERENCE])) == (chrf, bleu)
    assert text.chrf("", [REFERENCE]) == text.bleu("", [REFERENCE]) == 0
    assert text.chrf("Paris", ["Paris"]) == text.bleu("Paris", ["Paris"]) == 1  # shorter than four words


def test_chrf_and_bleu_equal_sacrebleus_exactly() -> None:
    draw = random.Random(0)
    words = ["the", "owl", "says", "it.", "it's", "£3.50", "naïve", "日本語", "👩\u200d👧", "\n", "a-b", "&amp;", ""]
    texts = [" ".join(draw.choices(words, k=draw.randrange(40))) for _ in range(40)]
    texts += ["", " ", "a", "ab", "abcdefg", "so it goes " * 100]
    for answer in texts:
        for reference in texts:
            chrf = min(sacrebleu.sentence_chrf(answer, [reference]).score / 100, 1)
            bleu = min(sacrebleu.sentence_bleu(answer, [reference]).score / 100, 1)
            assert (text.chrf(answer, [reference]), text.bleu(answer, [reference])) == (chrf, bleu)


@pytest.mark.parametrize("name", ["normalised_exact_match", "contains", "token_f1", "numeric_match", "chrf", "bleu"])
def test_best_reference_counts_at_any_position(name: str) -> None:
    scorer, good, bad = scorers.registered_scorers()[f"quality/{name}"], "quick brown fox 7", "nothing of the kind, 8"
    alone = scorer(good, [good])
    assert alone == 1 > scorer(good, [bad])
    assert scorer(good, [bad, good]) == scorer(good, [good, bad]) == alone
    assert math.isnan(scorer(good, []))
    assert spec(scorer.name).yes_or_no == (name in ("normalised_exact_match", "contains", "numeric_match"))


MODULE = """
import math

class Box:
    @staticmethod
    def inner(generation, references):
        return generation == references[0]

def words(generation):
    return len(generation.split())

def optional(generation, references=()):
    return len(references)

def both(generation: str, references) -> float:
    return generation.count(references[0])

def many(*texts):
    return len(texts)

def keyword(generation, *, references):
    return 1.0

def broken(generation):
    raise RuntimeError("no\\nsuch luck")

def textual(generation):
    return "much"

chrf = both
NUMBER = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_bad.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_users_scorers(own: str) -> None:
    words = scorers.load_scorer(f"{own}:words")
    assert (words.name, words.needs_reference, words("a b c", [])) == ("quality/words", False, 3.0)
    optional = scorers.load_scorer(f"{own}.optional")
    assert (optional.needs_reference, optional("a", []), optional("a", ["b"])) == (False, 0, 1)
    both = scorers.load_scorer(f"{own}:both")
    assert (both.needs_reference, both("aXbX", ["X"])) == (True, 2)
    assert math.isnan(both("aXbX", []))
    assert scorers.load_scorer(f"{own}:Box.inner")("a", ["a"]) == 1
    assert scorers.load_scorer(f"{own}:many")("a", []) == 2
    chosen = scorers.select(["exact_match", "quality/token_f1", f"{own}:words"])
    assert list(chosen) == ["quality/exact_match", "quality/token_f1", "quality/words"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("words", "Write module:function"),
        ("{}:", "Write module:function"),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("{}:wrods", "cannot be loaded: AttributeError"),
        ("{}_bad:f", "_bad.py:1: "),
        ("{}:NUMBER", "is not a function but int"),
        ("{}:keyword", r"keyword\(generation, \*, references\) must take \(generation, references\)"),
    ],
)
def test_invalid_scorer_is_refused(own: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scorers.load_scorer(path.format(own))


def test_names_are_checked(own: str) -> None:
    with pytest.raises(ConfigError, match=r"'exact_mach' is not a quality measure\. Did you mean 'exact_match'"):
        scorers.select(["exact_mach"])
    with pytest.raises(ConfigError, match="two measures are named 'quality/chrf'"):
        scorers.select(["chrf", f"{own}:chrf"])


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "RuntimeError: no$"), ("textual", "ValueError: could not convert")]
)
def test_a_scorer_that_fails_is_named(own: str, name: str, message: str) -> None:
    with pytest.raises(text.ScorerError, match=f"{own}:{name} failed with {message}"):
        scorers.load_scorer(f"{own}:{name}")("a", [])
