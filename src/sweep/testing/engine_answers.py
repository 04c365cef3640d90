"""Checks of what an engine answers: the model's tokens, text and log-probabilities, drawn as they were asked for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import torch

from sweep.engines.base import Engine, Request, Sampling
from sweep.engines.gate import GatePrompt, identity_gate
from sweep.errors import ConfigError
from sweep.testing.bench import GREEDY, PROMPTS, RANDOM, EngineBench, answers_of, generations_of, tokens_of

TOLERANCE = 1e-3  # of log-probabilities in fp32, between implementations


def answers_are_those_of_the_model(bench: EngineBench, engine: Engine) -> None:
    """Greedy answers to rows as they are and to changed ones, in one batch."""
    changed = [replace(r, key=f"{r.key} changed") for r in bench.requests(factor=-2.0)]
    asked = [*bench.requests(), *changed]
    got = answers_of(engine, asked)
    for request in asked:
        [answer] = got[request.key]
        assert answer.token_ids == bench.greedy(request), f"to {request.key} the answer is {answer.token_ids}"
        assert answer.finish_reason == "length"
    alike = [got[r.key] == got[f"{r.key} changed"] for r in bench.requests()]
    assert not all(alike), "the embeddings have no say in the answers"


def embeddings_answer_as_token_ids_do(bench: EngineBench, engine: Engine) -> None:
    """Untransformed embeddings, and the same tokens without, also in one batch; what is not the model's is noticed."""
    by_rows = bench.requests()
    by_ids = [replace(request, embeds=None) for request in by_rows]
    expected = answers_of(engine, by_rows)
    assert answers_of(engine, by_ids) == expected, "token ids are answered otherwise than their embeddings"
    mixed = [replace(r, key=(r.key, r.embeds is None)) for pair in zip(by_rows, by_ids, strict=True) for r in pair]
    got = tokens_of(answers_of(engine, mixed))
    assert all(got[key, kind] == tokens_of(expected)[key] for key in expected for kind in (False, True))


def the_identity_gate_can_be_passed_and_failed(bench: EngineBench, engine: Engine) -> None:
    """Rows that are not the model's are refused."""
    true = [GatePrompt(str(i), ids, bench.request(i, ids).embeds) for i, ids in enumerate(PROMPTS)]  # type: ignore[arg-type]
    identity_gate(engine, true, GREEDY.max_tokens)
    try:
        identity_gate(engine, [replace(prompt, embeds=-prompt.embeds) for prompt in true], GREEDY.max_tokens)
    except ConfigError as error:
        assert "fails the identity gate" in str(error)
    else:
        raise AssertionError("rows that are not the model's pass the identity gate")


def samples_count_their_seeds_up(bench: EngineBench, engine: Engine) -> None:
    """`n` samples are those of n consecutive seeds, and differ."""
    several = tokens_of(answers_of(engine, bench.requests(replace(RANDOM, n=3))))
    assert tokens_of(answers_of(engine, bench.requests(replace(RANDOM, n=3)))) == several, "a seed has two answers"
    for number in range(3):
        own = tokens_of(answers_of(engine, bench.requests(replace(RANDOM, seed=11 + number))))
        assert own == {key: samples[number : number + 1] for key, samples in several.items()}
    assert all(len(set(samples)) == 3 for samples in several.values()), "samples of different seeds are alike"


def tokens_are_drawn_with_their_probabilities(bench: EngineBench, engine: Engine) -> None:
    """Temperature and top-k, then top-p, against the distribution that the model's is turned into."""
    count, ids = 400, PROMPTS[1]
    likeliest = bench.logprobs(bench.table.rows(ids))[-1].topk(5)
    best, expected = likeliest.indices.tolist(), (likeliest.values / 0.8).softmax(0)
    sampling = Sampling(max_tokens=1, ignore_eos=True, temperature=0.8, top_k=5)
    asked = [bench.request(seed, ids, replace(sampling, seed=seed)) for seed in range(count)]
    drawn = Counter(tokens for [[tokens]] in tokens_of(answers_of(engine, asked)).values())
    for token, probability in zip(best, expected.tolist(), strict=True):
        off = abs(drawn.pop(token, 0) - count * probability) / math.sqrt(count * probability * (1 - probability) + 1)
        assert off < 5, f"a token of probability {probability:.3f} is {off:.1f} standard deviations off"
    assert not drawn, f"tokens are drawn that are not among the {sampling.top_k} likeliest"
    half = float(expected[0] + expected[1] / 2)  # for which two are needed
    nucleus = [bench.request(seed, ids, replace(sampling, seed=seed, top_p=half)) for seed in range(100)]
    kept = {tokens for [[tokens]] in tokens_of(answers_of(engine, nucleus)).values()}
    assert kept == set(best[:2]), f"of the nucleus {best[:2]}, {kept} are drawn"


def penalties_read_prompts_and_answers(bench: EngineBench, engine: Engine) -> None:
    """A repetition penalty counts what the prompt's token ids are, whatever its embeddings."""
    if not bench.penalties:
        return
    asked = bench.requests(replace(GREEDY, repetition_penalty=1.8), factor=2.0)
    got = tokens_of(answers_of(engine, asked))
    assert got == {request.key: (bench.greedy(request),) for request in asked}
    assert got != tokens_of(answers_of(engine, bench.requests(factor=2.0))), "the penalty has no effect"


def stop_strings_end_answers(bench: EngineBench, engine: Engine) -> None:
    """The text ends before whichever comes first."""
    asked = bench.requests(replace(GREEDY, max_tokens=24))
    tried = 0
    for request in asked:
        [[whole]] = answers_of(engine, [request]).values()
        stops = tuple(dict.fromkeys(c for c in whole.text[1:] if c.isascii() and c.isprintable()))[-2:]
        if not stops:
            continue
        [[short]] = answers_of(engine, [replace(request, sampling=replace(request.sampling, stop=stops))]).values()
        assert short.finish_reason == "stop"
        assert short.text == whole.text[: min(whole.text.index(stop) for stop in stops)]
        assert short.token_ids == whole.token_ids[: len(short.token_ids)] and short.token_ids
        tried += 1
    assert tried, "the model's answers have no character to stop at"


def the_end_of_text_ends_answers(bench: EngineBench, engine: Engine) -> None:
    """Its token is part of the answer but not of the text; where it is to be ignored, the answer goes on."""
    wild = Sampling(max_tokens=40, temperature=2.0)
    eos = bench.checkpoint.tokenizer.eos_token_id
    asked = [bench.request(seed, PROMPTS[0], replace(wild, seed=seed)) for seed in range(48)]
    got = answers_of(engine, asked)
    ended = {key: answer for key, [answer] in got.items() if answer.finish_reason == "stop"}
    assert ended, f"none of {len(asked)} random answers ended"
    for key, [answer] in got.items():
        if key in ended:
            assert answer.token_ids[-1] == eos and eos not in answer.token_ids[:-1]
            assert bench.checkpoint.tokenizer.eos_token not in answer.text
        else:
            assert answer.finish_reason == "length" and len(answer.token_ids) == 40
    ignoring = [replace(r, sampling=replace(r.sampling, ignore_eos=True)) for r in asked if r.key in ended]
    for key, [answer] in answers_of(engine, ignoring).items():
        first = ended[key].token_ids
        assert len(answer.token_ids) == 40 and answer.token_ids[: len(first)] == first


def the_context_ends_answers(bench: EngineBench, engine: Engine) -> None:
    """There is no more room than was asked for when the engine was opened."""
    ids = tuple(5 + i % 50 for i in range(bench.max_model_len - 3))
    [[answer]] = answers_of(engine, [bench.request("long", ids, replace(GREEDY, max_tokens=50))]).values()
    assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


def log_probabilities_are_those_of_the_model(bench: EngineBench, engine: Engine) -> None:
    """Of the likeliest tokens and of the one drawn, before temperature and penalties."""
    penalty = 1.5 if bench.penalties else 1.0
    for sampling in (GREEDY, replace(RANDOM, temperature=0.7, repetition_penalty=penalty, top_k=20)):
        asked = bench.requests(replace(sampling, max_tokens=4, logprobs=5), factor=2.0)
        got = answers_of(engine, asked)
        for request in asked:
            [answer] = got[request.key]
            assert request.embeds is not None
            rows = torch.cat([request.embeds, bench.table.rows(answer.token_ids).to(request.embeds.dtype)])
            expected = bench.logprobs(rows)[-5:-1]
            assert len(answer.logprobs) == 4
            for token, step, distribution in zip(answer.token_ids, answer.logprobs, expected, strict=True):
                assert set(step) == {token, *distribution.topk(5).indices.tolist()}
                off = max(abs(value - float(distribution[own])) for own, value in step.items())
                assert off < TOLERANCE, f"{sampling}: log-probabilities are off by {off}"
    assert not any(answer.logprobs for [answer] in answers_of(engine, bench.requests()).values())


def forced_answers_have_their_likelihood(bench: EngineBench, engine: Engine) -> None:
    """An answer that the model would not have given, after changed prompts, in one batch with others."""
    said = (9, 60, 31, 27)
    asked = []
    for i, ids in enumerate(PROMPTS):
        rows = torch.cat([bench.table.rows(ids) * 3.0, bench.table.rows(said)]).to(bench.table.dtype)
        own = said[: 1 + i % 4]
        rows = rows[: len(ids) + len(own)]
        asked += [Request(f"forced {i}", ids + own, rows, GREEDY, scored=len(own)), bench.request(i, ids)]
    got = {generation.key: generation for generation in generations_of(engine, asked)}
    assert len(got) == len(asked)
    for request in asked:
        scored = got[request.key].scored
        assert len(scored) == request.scored
        if request.scored:
            assert request.embeds is not None
            expected = bench.logprobs(request.embeds)[-request.scored - 1 : -1]
            for value, token, step in zip(scored, request.token_ids[-request.scored :], expected, strict=True):
                assert abs(value - float(step[token])) < TOLERANCE, f"{request.key}: {value} is not {step[token]}"
        else:
            assert got[request.key].completions[0].token_ids == bench.greedy(request)
