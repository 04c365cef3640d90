"""Conformance checks of answers: tokens, texts, log-probabilities and sampling parameters."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import torch

from sweep.engines.base import Engine, Request, Sampling
from sweep.engines.identity_check import IdentityPrompt, check_identity
from sweep.errors import ConfigError
from sweep.testing.bench import GREEDY, PROMPTS, RANDOM, EngineBench, answers_of, generations_of, tokens_of

TOLERANCE = 1e-3  # of float32 log-probabilities between implementations


def greedy_answers_match_the_model(bench: EngineBench, engine: Engine) -> None:
    """Greedy answers to original and changed rows, in one batch, match the reference."""
    changed = [replace(r, key=f"{r.key} changed") for r in bench.requests(factor=-2.0)]
    requests = [*bench.requests(), *changed]
    answers = answers_of(engine, requests)
    for request in requests:
        [answer] = answers[request.key]
        expected = bench.greedy(request)
        assert answer.token_ids == expected, f"request {request.key}: expected {expected}, got {answer.token_ids}"
        assert answer.finish_reason == "length"
    equal = [answers[r.key] == answers[f"{r.key} changed"] for r in bench.requests()]
    assert not all(equal), "the answers do not depend on the embeddings"


def embeddings_and_token_ids_agree(bench: EngineBench, engine: Engine) -> None:
    """Untransformed embeddings and token ids have the same answers, separately and in one batch."""
    by_rows = bench.requests()
    by_ids = [replace(request, embeds=None) for request in by_rows]
    expected = answers_of(engine, by_rows)
    assert answers_of(engine, by_ids) == expected, "the answers to token ids differ from those to their embeddings"
    mixed = [replace(r, key=(r.key, r.embeds is None)) for pair in zip(by_rows, by_ids, strict=True) for r in pair]
    tokens = tokens_of(answers_of(engine, mixed))
    assert all(tokens[key, is_ids] == tokens_of(expected)[key] for key in expected for is_ids in (False, True))


def identity_check_accepts_and_rejects(bench: EngineBench, engine: Engine) -> None:
    """The identity check accepts the model's embedding rows and rejects others."""
    prompts = [IdentityPrompt(str(i), ids, bench.request(i, ids).embeds) for i, ids in enumerate(PROMPTS)]  # type: ignore[arg-type]
    check_identity(engine, prompts, GREEDY.max_tokens)
    try:
        check_identity(engine, [replace(prompt, embeds=-prompt.embeds) for prompt in prompts], GREEDY.max_tokens)
    except ConfigError as error:
        assert "fails the identity check" in str(error)
    else:
        raise AssertionError("negated embedding rows pass the identity check")


def samples_use_consecutive_seeds(bench: EngineBench, engine: Engine) -> None:
    """`n` samples equal those of n consecutive seeds, and differ from each other."""
    several = tokens_of(answers_of(engine, bench.requests(replace(RANDOM, n=3))))
    repeated = tokens_of(answers_of(engine, bench.requests(replace(RANDOM, n=3))))
    assert repeated == several, "answers with the same seed differ"
    for number in range(3):
        single = tokens_of(answers_of(engine, bench.requests(replace(RANDOM, seed=11 + number))))
        assert single == {key: samples[number : number + 1] for key, samples in several.items()}
    assert all(len(set(samples)) == 3 for samples in several.values()), "samples with different seeds are equal"


def sampling_follows_the_distribution(bench: EngineBench, engine: Engine) -> None:
    """Sampled frequencies match the reference distribution with temperature and top-k, then also with top-p."""
    count, ids = 400, PROMPTS[1]
    top = bench.logprobs(bench.table.rows(ids))[-1].topk(5)
    top_tokens, expected = top.indices.tolist(), (top.values / 0.8).softmax(0)
    sampling = Sampling(max_tokens=1, ignore_eos=True, temperature=0.8, top_k=5)
    requests = [bench.request(seed, ids, replace(sampling, seed=seed)) for seed in range(count)]
    counts = Counter(tokens for [[tokens]] in tokens_of(answers_of(engine, requests)).values())
    for token, probability in zip(top_tokens, expected.tolist(), strict=True):
        deviation = abs(counts.pop(token, 0) - count * probability)
        deviation /= math.sqrt(count * probability * (1 - probability) + 1)
        assert deviation < 5, (
            f"the frequency of a token with probability {probability:.3f} is {deviation:.1f} standard deviations off"
        )
    assert not counts, f"tokens outside the {sampling.top_k} most probable ones are sampled"
    top_p = float(expected[0] + expected[1] / 2)  # needs two tokens
    requests = [bench.request(seed, ids, replace(sampling, seed=seed, top_p=top_p)) for seed in range(100)]
    sampled = {tokens for [[tokens]] in tokens_of(answers_of(engine, requests)).values()}
    assert sampled == set(top_tokens[:2]), f"expected the tokens {top_tokens[:2]} with top_p, got {sampled}"


def penalties_count_prompts_and_answers(bench: EngineBench, engine: Engine) -> None:
    """A repetition penalty counts the prompt's token ids, independently of its embeddings."""
    if not bench.penalties:
        return
    requests = bench.requests(replace(GREEDY, repetition_penalty=1.8), factor=2.0)
    tokens = tokens_of(answers_of(engine, requests))
    assert tokens == {request.key: (bench.greedy(request),) for request in requests}
    assert tokens != tokens_of(answers_of(engine, bench.requests(factor=2.0))), "the penalty has no effect"


def stop_strings_end_answers(bench: EngineBench, engine: Engine) -> None:
    """The text ends before the stop string that comes first."""
    requests = bench.requests(replace(GREEDY, max_tokens=24))
    tried = 0
    for request in requests:
        [[whole]] = answers_of(engine, [request]).values()
        stops = tuple(dict.fromkeys(c for c in whole.text[1:] if c.isascii() and c.isprintable()))[-2:]
        if not stops:
            continue
        [[short]] = answers_of(engine, [replace(request, sampling=replace(request.sampling, stop=stops))]).values()
        assert short.finish_reason == "stop"
        assert short.text == whole.text[: min(whole.text.index(stop) for stop in stops)]
        assert short.token_ids == whole.token_ids[: len(short.token_ids)] and short.token_ids
        tried += 1
    assert tried, "the model's answers contain no printable ASCII character to stop at; use another model"


def end_of_text_ends_answers(bench: EngineBench, engine: Engine) -> None:
    """The end-of-text token is part of the token ids but not of the text. With `ignore_eos`, the answer continues."""
    sampling = Sampling(max_tokens=40, temperature=2.0)
    eos = bench.checkpoint.tokenizer.eos_token_id
    requests = [bench.request(seed, PROMPTS[0], replace(sampling, seed=seed)) for seed in range(48)]
    answers = answers_of(engine, requests)
    ended = {key: answer for key, [answer] in answers.items() if answer.finish_reason == "stop"}
    assert ended, f"none of {len(requests)} random answers ended with the end-of-text token"
    for key, [answer] in answers.items():
        if key in ended:
            assert answer.token_ids[-1] == eos and eos not in answer.token_ids[:-1]
            assert bench.checkpoint.tokenizer.eos_token not in answer.text
        else:
            assert answer.finish_reason == "length" and len(answer.token_ids) == 40
    ignoring = [replace(r, sampling=replace(r.sampling, ignore_eos=True)) for r in requests if r.key in ended]
    for key, [answer] in answers_of(engine, ignoring).items():
        first = ended[key].token_ids
        assert len(answer.token_ids) == 40 and answer.token_ids[: len(first)] == first


def maximum_length_ends_answers(bench: EngineBench, engine: Engine) -> None:
    """An answer ends at the maximum length with which the engine was opened."""
    ids = tuple(5 + i % 50 for i in range(bench.max_model_len - 3))
    [[answer]] = answers_of(engine, [bench.request("long", ids, replace(GREEDY, max_tokens=50))]).values()
    assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


def log_probabilities_match_the_model(bench: EngineBench, engine: Engine) -> None:
    """Log-probabilities of the most probable tokens and the sampled one, before temperature and penalties."""
    penalty = 1.5 if bench.penalties else 1.0
    for sampling in (GREEDY, replace(RANDOM, temperature=0.7, repetition_penalty=penalty, top_k=20)):
        requests = bench.requests(replace(sampling, max_tokens=4, logprobs=5), factor=2.0)
        answers = answers_of(engine, requests)
        for request in requests:
            [answer] = answers[request.key]
            assert request.embeds is not None
            rows = torch.cat([request.embeds, bench.table.rows(answer.token_ids).to(request.embeds.dtype)])
            expected = bench.logprobs(rows)[-5:-1]
            assert len(answer.logprobs) == 4
            for token, step, distribution in zip(answer.token_ids, answer.logprobs, expected, strict=True):
                assert set(step) == {token, *distribution.topk(5).indices.tolist()}
                difference = max(abs(value - float(distribution[i])) for i, value in step.items())
                assert difference < TOLERANCE, f"{sampling}: log-probabilities differ by {difference}"
    assert not any(answer.logprobs for [answer] in answers_of(engine, bench.requests()).values())


def forced_answers_match_the_model(bench: EngineBench, engine: Engine) -> None:
    """Forced answers after changed prompts, in one batch with other requests, have the reference log-probabilities."""
    forced = (9, 60, 31, 27)
    requests = []
    for i, ids in enumerate(PROMPTS):
        rows = torch.cat([bench.table.rows(ids) * 3.0, bench.table.rows(forced)]).to(bench.table.dtype)
        answer = forced[: 1 + i % 4]
        rows = rows[: len(ids) + len(answer)]
        requests += [Request(f"forced {i}", ids + answer, rows, GREEDY, scored=len(answer)), bench.request(i, ids)]
    generations = {generation.key: generation for generation in generations_of(engine, requests)}
    assert len(generations) == len(requests)
    for request in requests:
        scored = generations[request.key].scored
        assert len(scored) == request.scored
        if request.scored:
            assert request.embeds is not None
            expected = bench.logprobs(request.embeds)[-request.scored - 1 : -1]
            for value, token, step in zip(scored, request.token_ids[-request.scored :], expected, strict=True):
                assert abs(value - float(step[token])) < TOLERANCE, (
                    f"request {request.key}: expected the log-probability {step[token]}, got {value}"
                )
        else:
            assert generations[request.key].completions[0].token_ids == bench.greedy(request)
