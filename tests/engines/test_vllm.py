"""The real engine on a tiny model: what goes in is what is answered, and what is bad does not stay behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from streams import Stream
from sweep.engines.base import Engine, Failure, Generation, Request, Sampling
from sweep.engines.gate import GatePrompt, identity_gate
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding import EmbeddingTable

GREEDY = Sampling(max_tokens=8, ignore_eos=True)
PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 17, 40, 8, 25, 11)]


def requests(
    table: EmbeddingTable, sampling: Sampling = GREEDY, embeds: bool = True, factor: float = 1.0
) -> Iterator[Request]:
    for i, ids in enumerate(PROMPTS):
        yield Request(i, ids, table.rows(ids) * factor if embeds else None, sampling)


def generations(engine: Engine, stream: Iterator[Request]) -> Iterator[Generation]:
    """Yield the answers, all of which are to be generations."""
    for answer in engine.generate(stream):
        assert isinstance(answer, Generation), answer
        yield answer


def answers(engine: Engine, stream: Iterator[Request]) -> dict[object, list[tuple[int, ...]]]:
    return {g.key: [c.token_ids for c in g.completions] for g in generations(engine, stream)}


def test_untransformed_embeddings_answer_as_token_ids_do(engine: Engine, table: EmbeddingTable) -> None:
    assert answers(engine, requests(table)) == answers(engine, requests(table, embeds=False))


def test_embeddings_are_what_is_answered(engine: Engine, table: EmbeddingTable) -> None:
    """Ids travel along; a mask forgotten would have vLLM answer those instead."""
    assert answers(engine, requests(table, factor=5.0)) != answers(engine, requests(table))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_answers_are_those_of_transformers(
    engine: Engine, table: EmbeddingTable, checkpoint: Checkpoint, factor: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    expected = {}
    with torch.inference_mode():
        for i, ids in enumerate(PROMPTS):
            rows = table.rows(ids) * factor
            out = model.generate(inputs_embeds=rows[None], max_new_tokens=8, min_new_tokens=8, do_sample=False)
            expected[i] = [tuple(out[0].tolist())]
    forced = Sampling(max_tokens=8, ignore_eos=True)
    got = answers(engine, requests(table, forced, factor=factor))
    agree = [got[i] == expected[i] for i in expected if model.config.eos_token_id not in got[i][0]]
    assert len(agree) >= 4 and all(agree)


def test_penalties_read_the_prompts_own_ids(engine: Engine, table: EmbeddingTable) -> None:
    penalised = Sampling(max_tokens=8, repetition_penalty=1.8, ignore_eos=True)
    by_rows = answers(engine, requests(table, penalised))
    assert by_rows == answers(engine, requests(table, penalised, embeds=False))
    assert by_rows != answers(engine, requests(table))


def test_order_and_company_do_not_matter(engine: Engine, table: EmbeddingTable) -> None:
    forwards = answers(engine, requests(table))
    assert answers(engine, reversed(list(requests(table)))) == forwards
    for request in requests(table):
        assert answers(engine, iter([request]))[request.key] == forwards[request.key]


def test_samples_are_reproducible_and_differ(engine: Engine, table: EmbeddingTable) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=11, n=3, ignore_eos=True)
    first = answers(engine, requests(table, sampling))
    assert answers(engine, requests(table, sampling)) == first
    assert all(len(set(samples)) == 3 for samples in first.values())
    second_sample = Sampling(max_tokens=8, temperature=1.0, seed=12, ignore_eos=True)
    assert answers(engine, requests(table, second_sample)) == {key: [s[1]] for key, s in first.items()}


def test_log_probabilities_are_those_of_transformers(
    engine: Engine, table: EmbeddingTable, checkpoint: Checkpoint
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    sampling = Sampling(max_tokens=4, ignore_eos=True, logprobs=5)
    for generation in generations(engine, requests(table, sampling, factor=2.0)):
        [answer] = generation.completions
        rows = torch.cat([table.rows(PROMPTS[int(str(generation.key))]) * 2.0, table.rows(answer.token_ids)])
        with torch.inference_mode():
            expected = model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)[-5:-1]
        assert len(answer.logprobs) == 4
        for step, distribution in zip(answer.logprobs, expected, strict=True):
            assert len(step) == 5 and max(step, key=lambda token: step[token]) == int(distribution.argmax())
            assert all(abs(value - float(distribution[token])) < 1e-3 for token, value in step.items())


def test_forced_answers_have_the_log_likelihood_of_transformers(
    engine: Engine, table: EmbeddingTable, checkpoint: Checkpoint
) -> None:
    """An answer that the model would not have given, after a transformed prompt."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    answer = (9, 200, 31, 77)

    def forced() -> Iterator[Request]:
        for i, ids in enumerate(PROMPTS):
            rows = torch.cat([table.rows(ids) * 3.0, table.rows(answer)])
            yield Request(i, ids + answer, rows, GREEDY, scored=len(answer))

    mixed = [r for pair in zip(forced(), requests(table), strict=True) for r in pair]  # one batch with others
    mixed = [Request((k, r.key), r.token_ids, r.embeds, r.sampling, r.scored) for k, r in enumerate(mixed)]
    scored = {g.key: g.scored for g in generations(engine, iter(mixed))}
    for i, ids in enumerate(PROMPTS):
        rows = torch.cat([table.rows(ids) * 3.0, table.rows(answer)])
        with torch.inference_mode():
            expected = model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)[-5:-1]
        likelihoods = [float(step[token]) for step, token in zip(expected, answer, strict=True)]
        assert scored[2 * i, i] == pytest.approx(likelihoods, abs=1e-3)
        assert scored[2 * i + 1, i] == ()


def test_answers_may_lead_to_requests(engine: Engine, table: EmbeddingTable) -> None:
    """The stream runs out while the first request is in flight, and has another one afterwards."""
    stream, seen = Stream([Request("first", PROMPTS[0], table.rows(PROMPTS[0]), GREEDY)]), []
    for generation in engine.generate(stream):
        seen.append(generation.key)
        if generation.key == "first":
            stream.waiting.append(Request("second", PROMPTS[1], table.rows(PROMPTS[1]), GREEDY))
    assert seen == ["first", "second"]


def test_requests_are_drawn_no_further_ahead_than_the_window(engine: Engine, table: EmbeddingTable) -> None:
    drawn = 0

    def counted() -> Iterator[Request]:
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield Request(i, PROMPTS[0], table.rows(PROMPTS[0]), GREEDY)

    ahead = []
    for done, _ in enumerate(engine.generate(counted())):
        ahead.append(drawn - done)
    assert len(ahead) == 100 and drawn == 100
    assert max(ahead) <= 16


def test_a_stop_string_ends_an_answer(engine: Engine, table: EmbeddingTable) -> None:
    [long] = generations(engine, iter([Request(0, PROMPTS[1], table.rows(PROMPTS[1]), GREEDY)]))
    text = long.completions[0].text
    stop = next(character for character in text if character.isascii() and character.isprintable())
    sampling = Sampling(max_tokens=8, ignore_eos=True, stop=(stop,))
    [short] = generations(engine, iter([Request(0, PROMPTS[1], table.rows(PROMPTS[1]), sampling)]))
    assert short.completions[0].finish_reason == "stop"
    assert short.completions[0].text == text[: text.index(stop)]


@pytest.mark.parametrize("bad", ["nan", "inf", "width", "length", "dtype", "ids"])
def test_a_bad_request_fails_alone_and_leaves_no_trace(engine: Engine, table: EmbeddingTable, bad: str) -> None:
    """The last is refused by vLLM, the others would be accepted and break it."""
    before = answers(engine, requests(table))
    ids = PROMPTS[1]
    rows = table.rows(ids)
    embeds = {
        "nan": rows.clone().index_fill_(0, torch.tensor([2]), torch.nan),
        "inf": rows * torch.inf,
        "width": rows[:, :1],
        "length": rows[:-1],
        "dtype": rows.double(),
        "ids": None,
    }[bad]
    refused = Request("bad", ids if bad != "ids" else (10**6,), embeds, GREEDY)
    first, *others = requests(table)
    got = {answer.key: answer for answer in engine.generate([first, refused, *others])}
    failure = got.pop("bad")
    assert isinstance(failure, Failure)
    assert {"nan": "not finite", "inf": "not finite", "ids": "vLLM refused it"}.get(bad, "are") in failure.reason
    assert {key: [c.token_ids for c in a.completions] for key, a in got.items() if isinstance(a, Generation)} == before
    assert answers(engine, requests(table)) == before


def test_what_building_a_request_raises_passes_through(engine: Engine, table: EmbeddingTable) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(table)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        answers(engine, broken())
    assert len(answers(engine, requests(table))) == len(PROMPTS)


def test_an_abandoned_stream_leaves_the_engine_usable(engine: Engine, table: EmbeddingTable) -> None:
    expected = answers(engine, requests(table))
    stream = engine.generate(requests(table))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert answers(engine, requests(table)) == expected


def test_the_identity_gate_passes_true_rows_and_refuses_others(engine: Engine, table: EmbeddingTable) -> None:
    true = [GatePrompt(str(i), ids, table.rows(ids)) for i, ids in enumerate(PROMPTS)]
    identity_gate(engine, true, 8)
    scaled = [GatePrompt(prompt.id, prompt.token_ids, prompt.embeds * 8) for prompt in true]
    with pytest.raises(ConfigError, match=r"fails the identity gate: the prompt '.' decodes to"):
        identity_gate(engine, scaled, 8)
