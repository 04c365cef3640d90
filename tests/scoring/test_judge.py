"""A judge at a server: its verdicts, its cache, its failures, and its controls; on loopback, in bounded time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scripted_server import ScriptedServer, as_http, scripted_server
from servers import VLLMServer
from services import VLLM_KEY
from shards import arguments
from sweep.config.scoring_config import ScoringConfig
from sweep.errors import ConfigError
from sweep.scoring import judge_client
from sweep.scoring.judge_client import ask, check_judge
from sweep.scoring.judge_config import JudgeConfig
from sweep.scoring.text import ScorerError
from sweep.scoring.verdicts import read_reply, read_verdict, request_of

CHAT = "/v1/chat/completions"
KEY = "only-for-this-test-77aa"


def reply(text: str, end: str = "stop") -> bytes:
    return as_http({"choices": [{"message": {"content": text}, "finish_reason": end}]})


def question_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setattr(judge_client, "_down", {})
    with scripted_server() as running:
        yield running


def judge_at(server: ScriptedServer, **changes: Any) -> JudgeConfig:
    given = {"url": f"{server.url}/v1", "model": "tiny", "timeout": 5.0, "patience": 0.0}
    return JudgeConfig(**(given | changes))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 4}', 4),
        (' {"score": 4.0, "reason": "x"}\n', 4),
        ('```json\n{"score": 2}\n```', 2),
        ('I think {"score": 5} fits.', 5),
        ('{"score": 1} or rather {"score": 1}', 1),
        ("3", 3),
        ('{"score": 4.5}', None),
        ('{"score": 6}', None),
        ('{"score": 0}', None),
        ('{"score": true}', None),
        ('{"score": "4"}', None),
        ('{"score": NaN}', None),
        ('{"mark": 4}', None),
        ('{"score": 2} no, {"score": 4}', None),
        ("Four of five.", None),
        ("[" * 100_000, None),
    ],
)
def test_verdicts_are_read_and_garbage_is_refused(text: str, score: int | None) -> None:
    verdict = read_verdict(text)
    assert verdict.score == score and bool(verdict.problem) == (score is None)
    assert math.isnan(verdict.share) if score is None else verdict.share == (score - 1) / 4


def test_replies_without_a_verdict_say_why() -> None:
    for content in ({}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": 3}):
        assert "no choices[0]" in read_reply(content).problem
    assert read_reply({"choices": [{"message": {"content": None}}]}).problem == "the reply is empty"
    cut = {"choices": [{"message": {"content": '{"sco'}, "finish_reason": "length"}]}
    assert "raise scoring.judge.max_tokens" in read_reply(cut).problem


def test_questions_keep_braces_and_requests_are_greedy() -> None:
    judge = JudgeConfig(prompt="{prompt}|{reference}|{answer}|{score}", url="http://h/v1", model="m")
    assert judge.question("{answer}", "{prompt}", "a{b}") == "{answer}|{prompt}|a{b}|{score}"
    body = request_of(judge, "q")
    assert body["temperature"] == 0 and body["response_format"]["json_schema"]["schema"]["required"] == ["score"]
    assert "response_format" not in request_of(JudgeConfig(format="none"), "q")


def test_equal_questions_are_asked_once(server: ScriptedServer, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any]) -> list[bytes]:
        asked.append(question_of(body))
        return [reply('{"score": 5}' if "good" in question_of(body) else "none")]

    server.replies[CHAT] = answer
    judge = judge_at(server)
    assert [verdict.score for verdict in ask(judge, ["good", "bad", "good"], tmp_path)] == [5, None, 5]
    assert sorted(asked) == ["bad", "good"]
    again = ask(judge_at(server, timeout=9.0), ["good", "bad", "good 2"], tmp_path)
    assert [verdict.score for verdict in again] == [5, None, 5] and len(asked) == 3
    ask(judge_at(server, model="other"), ["good"], tmp_path)  # another model: another question
    assert len(asked) == 4
    damaged = (
        "{",
        "[]",
        '{"score": "high", "problem": ""}',
        '{"score": 9, "problem": ""}',
        '{"score": null, "problem": ""}',
    )
    for count, content in enumerate(damaged, start=5):
        for file in tmp_path.rglob("*.json"):
            file.write_text(content)
        assert [verdict.score for verdict in ask(judge, ["good"], tmp_path)] == [5]
        assert len(asked) == count


def test_the_key_is_sent_and_kept_out_of_all_texts(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", KEY)
    judge = judge_at(server, key_variable="MY_JUDGE_KEY")
    server.replies[CHAT] = lambda _: [as_http({"error": {"message": f"wrong key {KEY}"}}, 401)]
    with pytest.raises(ScorerError, match=r"refuses: HTTP 401: wrong key \*\*\*"):
        ask(judge, ["good"], tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.delenv("MY_JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"\$MY_JUDGE_KEY is not set"):
        check_judge(judge, contact=False)


def test_a_judge_that_hangs_delays_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.replies[CHAT] = lambda _: server.drip(reply('{"score": 5}'))  # a byte now and then: no read times out
    judge = judge_at(server, timeout=0.5, patience=1.0, max_in_flight=2)
    began = time.monotonic()
    with pytest.raises(ScorerError, match=r"did not answer within 1 s of attempts: no complete answer within 0\.5 s"):
        ask(judge, [f"q{i}" for i in range(20)], tmp_path)
    assert time.monotonic() - began < 10
    began = time.monotonic()
    with pytest.raises(ScorerError, match="did not answer"):
        ask(judge, ["another point"], tmp_path)
    assert time.monotonic() - began < 0.3


def test_a_busy_judge_is_asked_again(server: ScriptedServer, tmp_path: Path) -> None:
    replies = iter([as_http({"error": "busy"}, 503), as_http({"error": "slow down"}, 429), reply('{"score": 3}')])
    server.replies[CHAT] = lambda _: [next(replies)]
    assert ask(judge_at(server, patience=30.0), ["q"], tmp_path)[0].share == 0.5


def test_rejected_questions_have_no_verdict_unless_all_are_rejected(server: ScriptedServer, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> list[bytes]:
        too_long = "long" in question_of(body)
        return [as_http({"error": {"message": "too long"}}, 400) if too_long else reply('{"score": 1}')]

    server.replies[CHAT] = answer
    assert [v.score for v in ask(judge_at(server), ["long", "short"], tmp_path)] == [None, 1]
    with pytest.raises(ScorerError, match="rejects all questions: HTTP 400: too long"):
        ask(judge_at(server), ["long 1", "long 2"], tmp_path)
    with pytest.raises(ScorerError, match="rejects all questions"):  # the one with a verdict is not among them
        ask(judge_at(server), ["long 3"], tmp_path)
    assert [v.score for v in ask(judge_at(server), ["short", "long"], tmp_path)] == [1, None]  # one from the cache
    garbage = {CHAT: lambda _: [as_http(b"<html>")]}
    server.replies |= garbage  # type: ignore[arg-type]
    [verdict] = ask(judge_at(server), ["html"], tmp_path)
    assert verdict.score is None and "is not JSON" in verdict.problem


def test_what_is_checked_before_an_engine_starts(server: ScriptedServer) -> None:
    check_judge(judge_at(server), contact=True)
    with pytest.raises(ConfigError, match=r"does not serve 'large'\. It serves: tiny"):
        check_judge(judge_at(server, model="large"), contact=True)
    with pytest.raises(ConfigError, match=r"scoring\.judge\.model: quality/judge_score needs it"):
        check_judge(JudgeConfig(url="http://127.0.0.1:9/v1"), contact=False)
    with pytest.raises(ConfigError, match="does not answer"):
        check_judge(JudgeConfig(url="http://127.0.0.1:9/v1", model="m", timeout=1.0), contact=True)
    server.replies["/v1/models"] = lambda _: [as_http({"error": "who are you"}, 401)]
    with pytest.raises(ConfigError, match=r"refuses access: HTTP 401: who are you\. Set scoring\.judge\.key_variable"):
        check_judge(judge_at(server), contact=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "http://user:secret@h/v1"}, r"without user, password or query"),
        ({"prompt": "Grade it"}, r"must contain \{answer\}"),
        ({"key_variable": "sk-12345678"}, "not the key itself"),
        ({"key_variable": "JUDGE"}, "contains KEY, TOKEN or SECRET"),
        ({"format": "xml"}, "json_schema"),
        ({"timeout": 0.0}, "above 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        JudgeConfig(**changes)
    assert "secret" not in str(caught.value) and "sk-123" not in str(caught.value)


def test_finished_points_are_scored_again_only_for_what_counts() -> None:
    assert not {"judge", "similarity_model"} & ScoringConfig().score_settings().keys()
    with_judge = [
        ScoringConfig(measures=["quality/judge_score"], judge=JudgeConfig(**changes)).score_settings()
        for changes in ({}, {"timeout": 5.0, "key_variable": "A_KEY"}, {"prompt": "{answer}"})
    ]
    assert with_judge[0] == with_judge[1] != with_judge[2]


def test_a_sweep_with_a_judge(
    server: ScriptedServer, tiny: Path, tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    """The judge gives 5 to references, 1 to answers of other prompts, and 3 to others; nothing readable to `He`."""

    def answer(body: dict[str, Any]) -> list[bytes]:
        prompt, reference, text = question_of(body).split("|")
        if prompt == "He":
            return [reply("no idea")]
        score = 5 if text == reference else 3 if text in answers.get(prompt, {text}) else 1
        return [reply(json.dumps({"score": score}))]

    answers: dict[str, set[str]] = {}
    server.replies[CHAT] = answer
    items = "prompts.items=[{prompt: Hi, reference: a}, {prompt: Ho, reference: b}, {prompt: He, reference: c}]"
    overrides = arguments(tiny, tmp_path, "transform.factor=4", items)
    judged = [
        "scoring.measures=[quality/judge_score]",
        f"scoring.judge.url={server.url}/v1",
        "scoring.judge.model=tiny",
    ]
    judged += ["scoring.judge.patience=0", "scoring.judge.prompt='{prompt}|{reference}|{answer}'"]
    code, out, err = command_line(*overrides)
    assert code == 0, out + err
    [folder] = (tmp_path / "sweeps").iterdir()
    for prompt, group in pd.read_parquet(folder / "report" / "generations.parquet").groupby("prompt"):
        answers[str(prompt)] = set(group["generation"])

    server.replies[CHAT] = lambda _: [as_http({"error": "gone"}, 500)]
    code, out, err = command_line(*overrides, *judged)
    assert code != 0 and "did not answer within 0 s" in " ".join((out + err).split())
    server.replies[CHAT] = answer
    judge_client._down.clear()
    code, out, err = command_line(*overrides, *judged)  # the answers are in the journal
    assert code == 0, out + err
    printed = " ".join((out + err).split())
    assert "1 for references as answers (should be near 1), 0 for answers to other prompts" in printed
    assert "Prompts without a verdict of the judge: 1 of control, 1 of factor=4" in printed
    [points] = [
        table
        for path in (tmp_path / "sweeps").glob("*/report/points.csv")
        if "quality/judge_score" in (table := pd.read_csv(path).set_index("role")).columns
    ]
    assert points["quality/judge_score"].to_list() == [0.5, 0.5] and points["quality/judge_score/n"].to_list() == [2, 2]
    assert points.loc["control", "health/judge_positive_control"] == 1
    assert math.isnan(points.loc["point", "health/judge_positive_control"])

    server.replies["/v1/models"] = lambda _: [as_http({"error": "gone"}, 401)]
    code, out, err = command_line(*overrides, *judged)  # nothing is left to judge
    assert code == 0 and "Nothing to do" in out + err, out + err


@pytest.mark.slow
def test_a_real_server_judges(served: VLLMServer, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM enforces the form of the verdict even on a model with random weights, and its verdicts are repeatable."""
    monkeypatch.setenv("VLLM_API_KEY", VLLM_KEY)
    judge = JudgeConfig(
        url=f"{served.url}/v1",
        model=str(tiny),
        prompt="{prompt} {answer}",  # the model has room for 256 bytes
        key_variable="VLLM_API_KEY",
        max_tokens=100,
    )
    check_judge(judge, contact=True)
    questions = [judge.question(f"Is {number} even?", "", "yes") for number in range(6)]
    verdicts = ask(judge, questions, tmp_path / "first")
    assert {verdict.score for verdict in verdicts} <= {1, 2, 3, 4, 5}, verdicts
    assert ask(judge, questions, tmp_path / "second") == verdicts
    monkeypatch.setenv("VLLM_API_KEY", "another-key-3f3f")
    with pytest.raises(ConfigError, match="refuses access"):
        check_judge(judge, contact=True)


@pytest.mark.parametrize("passing", [{"error": {"message": "overloaded"}}, {"choices": [{"message": {"content": ""}}]}])
def test_a_reply_without_a_text_is_not_kept(server: ScriptedServer, tmp_path: Path, passing: dict[str, Any]) -> None:
    replies = iter([as_http(passing), reply('{"score": 4}')])
    server.replies[CHAT] = lambda _: [next(replies)]
    assert [verdict.score for verdict in ask(judge_at(server), ["question"], tmp_path)] == [None]
    assert [verdict.score for verdict in ask(judge_at(server), ["question"], tmp_path)] == [4]


def test_a_judge_that_fails_does_not_stop_another_model(server: ScriptedServer, tmp_path: Path) -> None:
    server.replies[CHAT] = lambda body: [reply('{"score": 2}') if body["model"] == "other" else as_http({}, 404)]
    with pytest.raises(ScorerError, match="refuses"):
        ask(judge_at(server), ["question"], tmp_path)
    assert [verdict.score for verdict in ask(judge_at(server, model="other"), ["question"], tmp_path)] == [2]
