"""`sampling.args`: vLLM and Transformers apply them alike, and each has the effect that its name says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import MAX_MODEL_LEN
from shards import generations
from sweep.engines import TransformersConfig
from sweep.engines.base import Completion, Engine, Request, Sampling
from sweep.engines.sampling_args import as_text, from_text
from sweep.engines.server.protocol import completion_request
from sweep.engines.vllm.arguments import check_sampling_args
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.testing import EngineBench
from sweep.testing.bench import GREEDY, answers_of

TOKENS = 12


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("cache")
    engine = TransformersConfig(max_batch_size=8).open(checkpoint.files, MAX_MODEL_LEN, folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bench(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> EngineBench:
    folder = tmp_path_factory.mktemp("cache")
    return EngineBench(
        lambda: TransformersConfig().open(checkpoint.files, MAX_MODEL_LEN, folder), checkpoint, MAX_MODEL_LEN, 8
    )


def answers(engine: Engine, bench: EngineBench, args: dict[str, Any], **sampling: Any) -> list[Completion]:
    values = {"ignore_eos": True} | sampling
    requests = bench.requests(Sampling(TOKENS, args=as_text(args), **values))
    found = answers_of(engine, requests)
    return [completion for key in sorted(found, key=str) for completion in found[key]]


def tokens(completions: list[Completion]) -> list[int]:
    return [token for completion in completions for token in completion.token_ids]


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@pytest.fixture(scope="module")
def plain(engine: Engine, bench: EngineBench) -> list[Completion]:
    return answers(engine, bench, {})


SHARED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"presence_penalty": 2.0}, {}),
    ({"frequency_penalty": 1.5, "presence_penalty": -0.5}, {}),
    ({"frequency_penalty": 2.0}, {"repetition_penalty": 1.7}),
    ({"allowed_token_ids": list(range(60, 90))}, {}),
    ({"logit_bias": {"70": 4.0, 71: 4}}, {}),
    ({"logit_bias": {70: 6.0}, "allowed_token_ids": [70, 80, 90], "presence_penalty": 2.0}, {}),
]


@pytest.mark.parametrize(("args", "sampling"), SHARED)
def test_both_engines_choose_the_same_tokens(
    args: dict[str, Any],
    sampling: dict[str, Any],
    engine: Engine,
    reference: Engine,
    bench: EngineBench,
    plain: list[Completion],
) -> None:
    found = answers(engine, bench, args, **sampling)
    assert found == answers(reference, bench, args, **sampling)
    assert tokens(found) != tokens(plain)


def test_min_p_of_1_keeps_only_the_most_probable_token(
    engine: Engine, reference: Engine, bench: EngineBench, plain: list[Completion]
) -> None:
    random = {"temperature": 1.0, "seed": 3}
    for each in (engine, reference):
        assert tokens(answers(each, bench, {"min_p": 1.0}, **random)) == tokens(plain)
        assert tokens(answers(each, bench, {"min_p": 0.0}, **random)) != tokens(plain)


@pytest.mark.parametrize("name", ["engine", "reference"])
def test_stop_tokens_and_min_tokens(
    name: str, bench: EngineBench, plain: list[Completion], request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(name)
    stop = plain[0].token_ids[2]
    assert stop not in plain[0].token_ids[:2], "the test needs a token that first occurs third"
    stopped = answers(engine, bench, {"stop_token_ids": [stop]})[0]
    assert stopped.token_ids == plain[0].token_ids[:3] and stopped.finish_reason == "stop"
    assert stopped.text != plain[0].text and plain[0].text.startswith(stopped.text)
    later = answers(engine, bench, {"stop_token_ids": [stop], "min_tokens": 6})[0]
    assert stop not in later.token_ids[:6] and later.token_ids[:2] == plain[0].token_ids[:2]
    assert len(later.token_ids) >= 6


def test_stop_strings_do_not_count_before_min_tokens(
    engine: Engine, reference: Engine, bench: EngineBench, plain: list[Completion]
) -> None:
    stop = plain[0].text[1]
    both = [answers(each, bench, {"min_tokens": 5}, stop=(stop,)) for each in (engine, reference)]
    assert both[0] == both[1]
    assert len(both[0][0].token_ids) > 5
    assert answers(engine, bench, {}, stop=(stop,))[0].text == plain[0].text[: plain[0].text.index(stop)]


def test_arguments_that_only_vllm_has(engine: Engine, bench: EngineBench, plain: list[Completion]) -> None:
    choices = answers(engine, bench, {"structured_outputs": {"choice": ["yes", "no"]}}, ignore_eos=False)
    assert set(texts(choices)) <= {"yes", "no"}
    matched = answers(engine, bench, {"structured_outputs": {"regex": "[ab]{3}"}}, ignore_eos=False)
    assert all(set(text) <= set("ab") and len(text) == 3 for text in texts(matched))
    schema = {"type": "object", "properties": {"z": {"type": "boolean"}, "a": {"type": "boolean"}}}
    schema |= {"required": ["z", "a"], "additionalProperties": False}
    requests = bench.requests(Sampling(64, args=as_text({"structured_outputs": {"json": schema}})))
    for [answer] in answers_of(engine, requests).values():
        assert "".join(answer.text.split()).startswith('{"z":'), "the order of the properties is the schema's"
    word = next(letter for text in texts(plain) for letter in text if letter.isascii() and letter.isalpha())
    assert word not in "".join(texts(answers(engine, bench, {"bad_words": [word]})))
    kept = answers(engine, bench, {"include_stop_str_in_output": True}, stop=(plain[0].text[1],))[0]
    assert kept.text.endswith(plain[0].text[1])


def test_forced_answers_are_scored_without_them(engine: Engine, bench: EngineBench) -> None:
    """Log-probabilities of given answers are the model's own."""
    ids, args = tuple(range(5, 30)), as_text({"allowed_token_ids": [7], "logit_bias": {8: 50}})
    requests = [bench.request(key, ids, sampling, scored=3) for key, sampling in
                (("plain", GREEDY), ("args", Sampling(8, ignore_eos=True, args=args)))]  # fmt: skip
    scored = {answer.key: answer.scored for answer in engine.generate(requests)}  # type: ignore[union-attr]
    assert scored["plain"] == pytest.approx(scored["args"], abs=1e-4)


def test_a_server_is_sent_them() -> None:
    args = as_text({"min_p": 0.5, "logit_bias": {"7": 2}})
    fields = completion_request("m", Request("a", (1, 2), None, Sampling(8, args=args)), 8).fields
    assert fields["min_p"] == 0.5 and json.loads(json.dumps(fields["logit_bias"])) == {"7": 2.0}
    assert fields["presence_penalty"] == 0.0


def test_the_text_of_arguments() -> None:
    assert as_text({}) == as_text({"min_p": None}) == ""
    assert as_text({"b": 1.0, "a": {"y": 1, "x": [2.0, 0.5]}}) == '{"a": {"y": 1, "x": [2, 0.5]}, "b": 1}'
    assert from_text(as_text({"logit_bias": {"5": 1, 6: 0.5}})) == {"logit_bias": {5: 1.0, 6: 0.5}}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"json": {"type": "object"}, "choice": ["a"]}, "not json and choice together."),
        ({"disable_any_whitespace": True}, "not none of them."),
        ({"json_object": True}, ""),
        ({}, ""),
    ],
)
def test_structured_outputs_need_one_constraint(value: dict[str, Any], says: str) -> None:
    if not says:
        check_sampling_args({"structured_outputs": value})
        return
    with pytest.raises(ConfigError) as caught:
        check_sampling_args({"structured_outputs": value})
    needs = "sampling.args.structured_outputs: needs one of json, regex, choice, grammar, json_object, structural_tag"
    assert str(caught.value) == f"{needs}, {says}"


def test_a_sweep_over_a_sampling_argument(sweep_here: Any, on_shared_engine: Engine, tmp_path: Path) -> None:
    """Each point has its own value, and the controls too."""
    keys = ("transform.factor=1.5", "sampling.args.allowed_token_ids=[70],[71]", "sampling.args.presence_penalty=0.5")
    out = sweep_here("engine=vllm", *keys)
    assert "allowed_token_ids=[70]" in out and "control (allowed_token_ids=[71])" in out
    for name, found in generations(tmp_path / "outputs").items():
        token = 70 if "[70]" in name else 71
        assert {tuple(ids) for _, ids in found} == {(token,) * 8}, name
