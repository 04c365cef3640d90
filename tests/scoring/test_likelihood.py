"""Likelihood measures: values by hand and as lm-evaluation-harness defines them, and whole sweeps against Transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweep import load
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.given_answers import GivenAnswer, GivenAnswers
from sweep.points.point import Point
from sweep.scoring.forced import answer_scores, control_scores
from sweep.scoring.likelihood import likelihood_scores

Configure = Callable[..., SweepConfig]


def given(references: Sequence[str] = (), choices: Sequence[str] = (), right: Sequence[int] = ()) -> GivenAnswers:
    """Return given answers with as many tokens as words, each text a sequence of its own."""
    answers = [GivenAnswer(t, t, k, len(t.split())) for k, t in enumerate((*references, *choices))]
    sequences = tuple((k,) * answer.tokens for k, answer in enumerate(answers))
    return GivenAnswers(sequences, tuple(answers[: len(references)]), tuple(answers[len(references) :]), tuple(right))


def test_measures_of_references_by_hand() -> None:
    one = likelihood_scores(given(["a b c ü"]), [-0.5])
    assert one == {
        "likelihood/reference_logprob": -2.0,
        "likelihood/reference_logprob_per_token": -0.5,
        "likelihood/reference_logprob_per_byte": -0.25,  # ü has two bytes
        "likelihood/reference_perplexity": pytest.approx(math.exp(0.5)),
    }
    # The best of several counts, in each measure by itself: the short one in the sum, the long one per token.
    two = likelihood_scores(given(["a b c d e f", "a"]), [-0.5, -2.0])
    assert two["likelihood/reference_logprob"] == -2.0
    assert two["likelihood/reference_logprob_per_token"] == -0.5
    assert two["likelihood/reference_logprob_per_byte"] == pytest.approx(-3 / 11)
    assert two["likelihood/reference_perplexity"] == pytest.approx(math.exp(0.5))


def test_measures_of_choices_by_hand() -> None:
    # Probabilities 0.2, 0.1 and 0.3, of which the first two are right.
    scores = likelihood_scores(given(choices=["a", "b", "c"], right=[0, 1]), [math.log(p) for p in (0.2, 0.1, 0.3)])
    assert scores["likelihood/choice_probability"] == pytest.approx(0.5)
    assert scores["likelihood/choice_log_odds"] == pytest.approx(0.0)
    assert scores["likelihood/acc"] == 0.0
    assert likelihood_scores(given(), []) == {}
    assert "likelihood/reference_logprob" not in scores


def test_impossible_answers_have_no_log_odds_of_nan() -> None:
    scores = likelihood_scores(given(choices=["a", "b"], right=[0]), [-math.inf, -math.inf])
    assert "likelihood/choice_log_odds" not in scores and "likelihood/choice_probability" not in scores


def test_impossible_answers_have_no_infinite_scores() -> None:
    """An infinite score would make its point fail, as it has no mean over prompts."""
    assert likelihood_scores(given(["a b"]), [-math.inf]) == {}
    assert answer_scores(-math.inf) == {} == control_scores([-1.0, -math.inf], [-math.inf])
    scores = likelihood_scores(given(choices=["a", "b"], right=[0]), [-math.inf, -1.0])
    assert scores == {"likelihood/choice_probability": 0, "likelihood/acc": 0, "likelihood/acc_norm": 0}
    either = likelihood_scores(given(["a", "b"]), [-math.inf, -1.0])
    assert either["likelihood/reference_logprob"] == -1  # the best of several


def lm_eval_accuracies(lls: Sequence[float], choices: Sequence[str], gold: Sequence[int]) -> tuple[float, float]:
    """Return acc and acc_norm: `argmax(lls)` and `argmax(lls / number of characters)` among the right positions."""
    by_character = [value / len(choice) for value, choice in zip(lls, choices, strict=True)]
    first = [max(range(len(lls)), key=values.__getitem__) for values in (list(lls), by_character)]
    return float(first[0] in gold), float(first[1] in gold)


def test_accuracies_are_those_of_lm_evaluation_harness() -> None:
    chance = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        choices = [" ".join("x" * int(n) for n in chance.integers(1, 9, chance.integers(1, 6))) for _ in range(4)]
        gold = sorted({int(i) for i in chance.integers(0, 4, 2)})
        means = chance.normal(-2, 1, 4)
        answers = given(choices=choices, right=gold)
        sums = [mean * answer.tokens for mean, answer in zip(means, answers.choices, strict=True)]
        scores = likelihood_scores(answers, list(means))
        expected = lm_eval_accuracies(sums, choices, gold)
        assert (scores["likelihood/acc"], scores["likelihood/acc_norm"]) == expected
        outcomes.add(expected)
    assert len(outcomes) == 4  # the two accuracies differ in both directions


ITEMS = [
    {
        "id": "sky",
        "prompt": "Why is the sky blue?",
        "reference": ["Rayleigh", "It is."],
        "choices": ["Rayleigh", "Sea"],
    },
    {"id": "two", "prompt": "1 + 1 =", "reference": "2", "choices": ["3", "2", "22"]},
    {"id": "open", "prompt": "Tell me more"},
    {"id": "position", "prompt": "Yes?", "reference": 1, "choices": ["no", "yes"]},
]


def likelihood_points(configure: Configure, **changes: Any) -> list[Point]:
    prompts = {"items": ITEMS, "choices_key": "choices"} | changes.pop("prompts", {})
    scoring = {"reference_logprob": True, "noise_floor": False} | changes.pop("scoring", {})
    sampling = {"max_tokens": 4, "ignore_eos": True}
    return [
        Point(
            configure(
                transform={"name": "scale", "factor": f}, prompts=prompts, scoring=scoring, sampling=sampling, **changes
            ),
            (("transform.factor", f),),
        )
        for f in (0.5, 3.0)
    ]


def run(points: Sequence[Point], sweep_id: str = "given") -> SweepRunner:
    with SweepRunner(points[0].config, sweep_id, "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not runner.problems
    return runner


@pytest.fixture
def swept(configure: Configure, on_shared_engine: Engine) -> SweepRunner:
    """A sweep of two factors on vLLM with references and choices."""
    return run(likelihood_points(configure))


def test_likelihoods_equal_those_of_transformers(
    swept: SweepRunner, checkpoint: Checkpoint, table: EmbeddingTable
) -> None:
    rows = load(swept.folder).set_index(["name", "prompt_id"])
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)

    def logprobs(prompt: str, answer: str, factor: float) -> list[float]:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
        after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        inputs = torch.cat([table.rows(ids) * factor, table.rows(after)])
        with torch.inference_mode():
            steps = model(inputs_embeds=inputs[None]).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
        return [float(step[token]) for step, token in zip(steps, after, strict=True)]

    texts = {"sky": (["Rayleigh", "It is."], 0), "two": (["2"], 1), "position": (["yes"], 1)}
    for name, factor in (("control", 1.0), ("factor=0.5", 0.5), ("factor=3", 3.0)):
        assert rows.loc[(name, "open")].filter(like="likelihood/").isna().all()
        assert rows.loc[(name, "open"), "given_logprobs"] == "{}"
        for item in ITEMS:
            if item["id"] not in texts:
                continue
            row, (references, gold) = rows.loc[(name, item["id"])], texts[str(item["id"])]
            found = [logprobs(str(item["prompt"]), text, factor) for text in references]
            best = max(map(sum, found))
            assert row["likelihood/reference_logprob"] == pytest.approx(best, abs=1e-3)
            per_token = max(sum(steps) / len(steps) for steps in found)
            assert row["likelihood/reference_logprob_per_token"] == pytest.approx(per_token, abs=1e-3)
            assert row["likelihood/reference_perplexity"] == pytest.approx(math.exp(-per_token), rel=2e-3)
            choices = [str(choice) for choice in item["choices"]]
            sums = [sum(logprobs(str(item["prompt"]), text, factor)) for text in choices]
            others = torch.tensor([value for i, value in enumerate(sums) if i != gold]).logsumexp(0)
            assert row["likelihood/choice_log_odds"] == pytest.approx(sums[gold] - float(others), abs=2e-3)
            listed = json.loads(row["given_logprobs"])
            assert list(listed) == list(dict.fromkeys([*references, *choices]))
            assert [listed[text] for text in choices] == pytest.approx(sums, abs=1e-3)
            share = float(torch.tensor(sums).softmax(0)[gold])
            assert row["likelihood/choice_probability"] == pytest.approx(share, abs=1e-3)
            expected = lm_eval_accuracies(sums, choices, [gold])
            assert (row["likelihood/acc"], row["likelihood/acc_norm"]) == expected


def test_differences_from_the_control_are_in_nats(swept: SweepRunner) -> None:
    points = load(swept.folder, points=True).set_index("name")
    rows = load(swept.folder).set_index(["name", "prompt_id"])["likelihood/reference_logprob"]
    change = (rows.loc["factor=3"] - rows.loc["control"]).mean()
    assert points.loc["factor=3", "likelihood/reference_logprob/difference"] == pytest.approx(change)
    assert abs(change) > 0.01
    assert 0 < points.loc["factor=3", "likelihood/reference_logprob/q"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": {"items": ["Hi"], "choices_key": None}}, "no prompt has a reference"),
        (
            {"prompts": {"items": [{"prompt": "Hi", "choices": ["a", "b"]}]}, "scoring": {"reference_logprob": False}},
            "prompts.choices_key: no prompt has both choices and a reference",
        ),
        (
            {"prompts": {"items": [{"prompt": "Hi", "reference": "c", "choices": ["a", "b"]}]}},
            r"Prompt 'p0000': none of its references \('c'\) is one of its choices \('a', 'b'\)",
        ),
        (
            {"prompts": {"items": [{"prompt": "Hi", "reference": ["a", "b"], "choices": ["a", "b"]}]}},
            "all of its choices",
        ),
        ({"prompts": {"items": [{"prompt": "Hi", "choices": ["a"]}]}}, "'choices' must be a list of two or more"),
        ({"prompts": {"items": [{"prompt": "Hi", "choices": ["a", True]}]}}, "the boolean true. Put it in quotes"),
        ({"prompts": {"items": [{"prompt": "Hi", "choices": ["a", " a"]}]}}, "has 'a' more than once"),
        ({"prompts": {"items": [{"prompt": "Hi", "choices": "a or b"}]}}, "must be a list of two or more texts"),
        ({"prompts": {"items": [{"prompt": "Hi", "reference": "x" * 600}], "choices_key": None}}, "do not fit"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_engine(
    configure: Configure, no_engine: None, changes: dict[str, Any], message: str
) -> None:
    points = likelihood_points(configure, **changes)
    with pytest.raises(ConfigError, match=message), SweepRunner(points[0].config, "x", "", Terminal()) as runner:
        runner.run(points)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ({"choices": ["a"]}, "scoring.choices must be a list of two or more texts; got 1"),
        ({"choices": ["a", " "]}, "scoring.choices has an empty text"),
        ({"primary": "likelihood/exactness"}, "not a measure"),
    ],
)
def test_wrong_settings_are_refused(configure: Configure, scoring: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(scoring=scoring)


def test_a_primary_likelihood_needs_its_answers(configure: Configure, no_engine: None) -> None:
    for name, needed in (("acc", "scoring.choices"), ("reference_logprob", "scoring.reference_logprob=true")):
        config = configure(scoring={"primary": f"likelihood/{name}"})
        with pytest.raises(ConfigError, match=needed), SweepRunner(config, "x", "", Terminal()) as runner:
            runner.run([Point(config)])


def test_settings_at_their_defaults_do_not_score_points_again(configure: Configure) -> None:
    settings = configure().scoring.score_settings()
    assert not {"reference_logprob", "choices", "target_delimiter"} & set(settings)
    assert configure(scoring={"choices": ["a", "b"]}).scoring.score_settings()["choices"] == ["a", "b"]
