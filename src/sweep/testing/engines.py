"""Conformance of engines: what each must hold to, whoever wrote it.

    from sweep.testing import EngineBench, check_engine

    def test_mine(tmp_path):
        open_mine = lambda: MyConfig(window=16).open(checkpoint.files, 256, tmp_path)
        check_engine(EngineBench(open_mine, checkpoint, max_model_len=256, window=16))

opens the engine and runs every check.  The checkpoint is to be small and in fp32, so that rounding does not decide
between tokens.  A check that fails raises an `AssertionError` that says what the engine did.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from sweep.engines.base import Completion, Engine, Failure, Generation, Request, Sampling
from sweep.engines.gate import GatePrompt, identity_gate
from sweep.errors import ConfigError, EngineDied
from sweep.testing.bench import END_TIMEOUT, GREEDY, PROMPTS, EngineBench

RANDOM = Sampling(max_tokens=8, ignore_eos=True, temperature=1.0, seed=11)
TOLERANCE = 1e-3  # of log-probabilities in fp32, between implementations


def check_engine(bench: EngineBench) -> None:
    """Open an engine, run all checks on it, and see it closed and killed.

    Raises:
        AssertionError: it does not conform.
    """
    started = bench.start()
    try:
        for check in ENGINE_CHECKS:
            check(bench, started.engine)
    finally:
        started.close()
    check_death(bench)


def check_death(bench: EngineBench) -> None:
    """Kill the processes of an engine while it answers: it says so, and can be closed.  One without any passes."""
    started = bench.start()
    try:
        if not started.processes:
            return
        long = Sampling(max_tokens=bench.max_model_len - 8, ignore_eos=True)
        stream = started.engine.generate(bench.request(i, PROMPTS[0], long if i else GREEDY) for i in range(64))
        assert isinstance(next(stream), Generation)
        for process in started.processes:
            process.kill()
        killed = time.monotonic()
        try:
            answered = [answer.key for answer in stream]
        except EngineDied:
            assert time.monotonic() - killed < END_TIMEOUT, "the engine is late to say that it died"
        else:
            raise AssertionError(f"killed, the engine answered {len(answered)} requests and said nothing of it")
    finally:
        started.close()


def answers_are_those_of_the_model(bench: EngineBench, engine: Engine) -> None:
    """Greedy answers to rows as they are and to changed ones, in one batch."""
    changed = [replace(r, key=f"{r.key} changed") for r in bench.requests(factor=-2.0)]
    asked = [*bench.requests(), *changed]
    got = _answers(engine, asked)
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
    expected = _answers(engine, by_rows)
    assert _answers(engine, by_ids) == expected, "token ids are answered otherwise than their embeddings"
    mixed = [replace(r, key=(r.key, r.embeds is None)) for pair in zip(by_rows, by_ids, strict=True) for r in pair]
    got = _tokens(_answers(engine, mixed))
    assert all(got[key, kind] == _tokens(expected)[key] for key in expected for kind in (False, True))


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


def order_and_company_do_not_matter(bench: EngineBench, engine: Engine) -> None:
    """Greedy answers and random ones are the same backwards, and alone."""
    for sampling in (GREEDY, RANDOM):
        asked = bench.requests(sampling)
        forwards = _tokens(_answers(engine, asked))
        assert _tokens(_answers(engine, asked[::-1])) == forwards, f"{sampling}: answers depend on the order"
        alone: dict[object, Any] = {}
        for request in asked:
            alone |= _tokens(_answers(engine, [request]))
        assert alone == forwards, f"{sampling}: answers depend on their company"


def answers_come_as_they_finish(bench: EngineBench, engine: Engine) -> None:
    """A long one holds up none of the short ones beside it."""
    # As long as can be: an engine in another process begins with it before it is handed the others.
    long = replace(GREEDY, max_tokens=bench.max_model_len - len(PROMPTS[0]))
    asked = [bench.request("long", PROMPTS[0], long), *bench.requests(replace(GREEDY, max_tokens=2))]
    order = [answer.key for answer in _generations(engine, asked[: bench.window])]
    assert order[-1] == "long", f"the long answer came before short ones: {order}"


def requests_are_drawn_as_they_are_needed(bench: EngineBench, engine: Engine) -> None:
    """No further ahead of the answers than the window, and answers come before the last is drawn."""
    drawn, count = 0, 6 * bench.window

    def counted() -> Iterator[Request]:
        nonlocal drawn
        for i in range(count):
            drawn += 1
            yield bench.request(i, PROMPTS[i % len(PROMPTS)], replace(GREEDY, max_tokens=1 + i % 5))

    ahead = [drawn - answered for answered, _ in enumerate(_generations(engine, counted()))]
    assert len(ahead) == drawn == count
    assert max(ahead) <= bench.window, f"the engine draws {max(ahead)} requests ahead of its answers"


def answers_may_lead_to_requests(bench: EngineBench, engine: Engine) -> None:
    """A stream that has run out is asked again while requests are in flight, and as the last of them is answered."""
    waiting, seen = deque([bench.request(0, PROMPTS[0])]), list[object]()

    class Stream(Iterator[Request]):
        def __next__(self) -> Request:
            if not waiting:
                raise StopIteration
            return waiting.popleft()

    for generation in _generations(engine, Stream()):
        seen.append(generation.key)
        if len(seen) < 4:
            waiting.append(bench.request(len(seen), PROMPTS[len(seen)]))
    assert seen == ["0", "1", "2", "3"], f"of requests that answers led to, these were answered: {seen}"


def samples_count_their_seeds_up(bench: EngineBench, engine: Engine) -> None:
    """`n` samples are those of n consecutive seeds, and differ."""
    several = _tokens(_answers(engine, bench.requests(replace(RANDOM, n=3))))
    assert _tokens(_answers(engine, bench.requests(replace(RANDOM, n=3)))) == several, "a seed has two answers"
    for number in range(3):
        own = _tokens(_answers(engine, bench.requests(replace(RANDOM, seed=11 + number))))
        assert own == {key: samples[number : number + 1] for key, samples in several.items()}
    assert all(len(set(samples)) == 3 for samples in several.values()), "samples of different seeds are alike"


def tokens_are_drawn_with_their_probabilities(bench: EngineBench, engine: Engine) -> None:
    """Temperature and top-k, then top-p, against the distribution that the model's is turned into."""
    count, ids = 400, PROMPTS[1]
    likeliest = bench.logprobs(bench.table.rows(ids))[-1].topk(5)
    best, expected = likeliest.indices.tolist(), (likeliest.values / 0.8).softmax(0)
    sampling = Sampling(max_tokens=1, ignore_eos=True, temperature=0.8, top_k=5)
    asked = [bench.request(seed, ids, replace(sampling, seed=seed)) for seed in range(count)]
    drawn = Counter(tokens for [[tokens]] in _tokens(_answers(engine, asked)).values())
    for token, probability in zip(best, expected.tolist(), strict=True):
        off = abs(drawn.pop(token, 0) - count * probability) / math.sqrt(count * probability * (1 - probability) + 1)
        assert off < 5, f"a token of probability {probability:.3f} is {off:.1f} standard deviations off"
    assert not drawn, f"tokens are drawn that are not among the {sampling.top_k} likeliest"
    half = float(expected[0] + expected[1] / 2)  # for which two are needed
    nucleus = [bench.request(seed, ids, replace(sampling, seed=seed, top_p=half)) for seed in range(100)]
    kept = {tokens for [[tokens]] in _tokens(_answers(engine, nucleus)).values()}
    assert kept == set(best[:2]), f"of the nucleus {best[:2]}, {kept} are drawn"


def penalties_read_prompts_and_answers(bench: EngineBench, engine: Engine) -> None:
    """A repetition penalty counts what the prompt's token ids are, whatever its embeddings."""
    if not bench.penalties:
        return
    asked = bench.requests(replace(GREEDY, repetition_penalty=1.8), factor=2.0)
    got = _tokens(_answers(engine, asked))
    assert got == {request.key: (bench.greedy(request),) for request in asked}
    assert got != _tokens(_answers(engine, bench.requests(factor=2.0))), "the penalty has no effect"


def stop_strings_end_answers(bench: EngineBench, engine: Engine) -> None:
    """The text ends before whichever comes first."""
    asked = bench.requests(replace(GREEDY, max_tokens=24))
    tried = 0
    for request in asked:
        [[whole]] = _answers(engine, [request]).values()
        stops = tuple(dict.fromkeys(c for c in whole.text[1:] if c.isascii() and c.isprintable()))[-2:]
        if not stops:
            continue
        [[short]] = _answers(engine, [replace(request, sampling=replace(request.sampling, stop=stops))]).values()
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
    got = _answers(engine, asked)
    ended = {key: answer for key, [answer] in got.items() if answer.finish_reason == "stop"}
    assert ended, f"none of {len(asked)} random answers ended"
    for key, [answer] in got.items():
        if key in ended:
            assert answer.token_ids[-1] == eos and eos not in answer.token_ids[:-1]
            assert bench.checkpoint.tokenizer.eos_token not in answer.text
        else:
            assert answer.finish_reason == "length" and len(answer.token_ids) == 40
    ignoring = [replace(r, sampling=replace(r.sampling, ignore_eos=True)) for r in asked if r.key in ended]
    for key, [answer] in _answers(engine, ignoring).items():
        first = ended[key].token_ids
        assert len(answer.token_ids) == 40 and answer.token_ids[: len(first)] == first


def the_context_ends_answers(bench: EngineBench, engine: Engine) -> None:
    """There is no more room than was asked for when the engine was opened."""
    ids = tuple(5 + i % 50 for i in range(bench.max_model_len - 3))
    [[answer]] = _answers(engine, [bench.request("long", ids, replace(GREEDY, max_tokens=50))]).values()
    assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


def log_probabilities_are_those_of_the_model(bench: EngineBench, engine: Engine) -> None:
    """Of the likeliest tokens and of the one drawn, before temperature and penalties."""
    penalty = 1.5 if bench.penalties else 1.0
    for sampling in (GREEDY, replace(RANDOM, temperature=0.7, repetition_penalty=penalty, top_k=20)):
        asked = bench.requests(replace(sampling, max_tokens=4, logprobs=5), factor=2.0)
        got = _answers(engine, asked)
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
    assert not any(answer.logprobs for [answer] in _answers(engine, bench.requests()).values())


def forced_answers_have_their_likelihood(bench: EngineBench, engine: Engine) -> None:
    """An answer that the model would not have given, after changed prompts, in one batch with others."""
    said = (9, 60, 31, 27)
    asked = []
    for i, ids in enumerate(PROMPTS):
        rows = torch.cat([bench.table.rows(ids) * 3.0, bench.table.rows(said)]).to(bench.table.dtype)
        own = said[: 1 + i % 4]
        rows = rows[: len(ids) + len(own)]
        asked += [Request(f"forced {i}", ids + own, rows, GREEDY, scored=len(own)), bench.request(i, ids)]
    got = {generation.key: generation for generation in _generations(engine, asked)}
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


def bad_requests_fail_alone(bench: EngineBench, engine: Engine) -> None:
    """Each among good ones, whose answers stay the same then and afterwards."""
    expected = _answers(engine, bench.requests())
    good = bench.request("bad", PROMPTS[1])
    rows = good.embeds
    assert rows is not None
    long = tuple(5 + i % 50 for i in range(bench.max_model_len))
    bad = {
        "NaN": replace(good, embeds=rows.clone().index_fill_(0, torch.tensor([2]), torch.nan)),
        "infinity": replace(good, embeds=rows * torch.inf),
        "a narrow one": replace(good, embeds=rows[:, :1]),
        "a wide one": replace(good, embeds=torch.cat([rows, rows], 1)),
        "a short one": replace(good, embeds=rows[:-1]),
        "another dtype": replace(good, embeds=rows.double()),
        "a flat one": replace(good, embeds=rows.flatten()),
        "unknown tokens": replace(good, embeds=None, token_ids=(10**6,)),
        "nothing": replace(good, embeds=rows[:0], token_ids=()),
        "no tokens": replace(good, embeds=None, token_ids=()),
        "too much": bench.request("bad", long),
        "all scored": replace(good, scored=len(good.token_ids)),
    }
    first, *others = bench.requests()
    for what, request in bad.items():
        got = {answer.key: answer for answer in engine.generate([first, request, *others])}
        failure = got.pop("bad")
        assert isinstance(failure, Failure) and failure.reason, f"{what} is answered"
        kept = {key: answer.completions for key, answer in got.items() if isinstance(answer, Generation)}
        assert kept == expected, f"{what} changes the answers to other requests"
    assert _answers(engine, bench.requests()) == expected, "bad requests change later answers"


def what_drawing_raises_passes_through(bench: EngineBench, engine: Engine) -> None:
    """Unchanged, and the engine goes on."""
    expected = _answers(engine, bench.requests())

    def broken() -> Iterator[Request]:
        yield from bench.requests()
        raise LookupError("mine")

    try:
        _answers(engine, broken())
    except LookupError as error:
        assert str(error) == "mine"
    else:
        raise AssertionError("what drawing a request raised was swallowed")
    assert _answers(engine, bench.requests()) == expected


def an_abandoned_stream_is_forgotten(bench: EngineBench, engine: Engine) -> None:
    """Requests in flight are not answered to who asks next."""
    expected = _answers(engine, bench.requests())
    stream = engine.generate(bench.requests(replace(GREEDY, max_tokens=1 + 20)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert _answers(engine, bench.requests()) == expected


EngineCheck = Callable[[EngineBench, Engine], None]
ENGINE_CHECKS: tuple[EngineCheck, ...] = (
    answers_are_those_of_the_model,
    embeddings_answer_as_token_ids_do,
    the_identity_gate_can_be_passed_and_failed,
    order_and_company_do_not_matter,
    answers_come_as_they_finish,
    requests_are_drawn_as_they_are_needed,
    answers_may_lead_to_requests,
    samples_count_their_seeds_up,
    tokens_are_drawn_with_their_probabilities,
    penalties_read_prompts_and_answers,
    stop_strings_end_answers,
    the_end_of_text_ends_answers,
    the_context_ends_answers,
    log_probabilities_are_those_of_the_model,
    forced_answers_have_their_likelihood,
    bad_requests_fail_alone,
    what_drawing_raises_passes_through,
    an_abandoned_stream_is_forgotten,
)


def _generations(engine: Engine, requests: Iterable[Request]) -> Iterator[Generation]:
    """Yield the answers, all of which are to be generations."""
    for answer in engine.generate(requests):
        assert isinstance(answer, Generation), f"{answer.key!r} fails: {answer.reason}"
        yield answer


def _answers(engine: Engine, requests: Iterable[Request]) -> dict[object, tuple[Completion, ...]]:
    return {generation.key: generation.completions for generation in _generations(engine, requests)}


def _tokens(answers: dict[object, tuple[Completion, ...]]) -> dict[object, tuple[tuple[int, ...], ...]]:
    return {key: tuple(completion.token_ids for completion in own) for key, own in answers.items()}
