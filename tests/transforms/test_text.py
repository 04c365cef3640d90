"""Other prompts and misspelt words, with single bytes as tokens and with the demo model's subwords."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError, TransformError
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import PromptsConfig
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.testing import fresh_corpus
from sweep.transforms import Rows, Span

SENTENCE = "Tell me something wonderful about Japan and elephants."


@pytest.fixture(scope="module")
def chats(checkpoint: Checkpoint, table: EmbeddingTable) -> PromptSet:
    """Prompts of several messages, and with placeholders."""

    def chat(*texts: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in zip(("system", "user"), texts, strict=False)]

    items = [
        {"id": "one", "messages": chat("Be brief.", "Where is Rome?")},
        {"id": "two", "messages": chat("Answer in rhymes.", "Who is who?")},
        {"id": "lone", "messages": chat("Nothing else.")},
        {"id": "named", "prompt": "Describe {picture} for {listener}!", "values": {"listener": "children"}},
    ]
    config = PromptsConfig(items=items, placeholders=["picture"])
    return PromptSet(encode(prompts.load(config), checkpoint), table, checkpoint)


@pytest.fixture(scope="module")
def subwords() -> PromptSet:
    return fresh_corpus([SENTENCE])


def run(corpus: PromptSet, prompt_id: str, *stages: dict[str, Any], seed: int = 0) -> tuple[Tensor, Rows]:
    """Return a prompt's rows before and after."""
    pipeline = build_pipeline(list(stages))
    pipeline.check(corpus)
    rows = corpus.table.rows(corpus.layout(prompt_id).token_ids)
    return rows, pipeline.apply(rows, prompt_id, corpus, seed, corpus.table.dtype)[0]


def text_of(rows: Tensor, corpus: PromptSet) -> str:
    """Return the text whose tokens' rows these are."""
    ids = corpus.table.nearest(rows)[1][:, 0].tolist()
    assert torch.equal(corpus.table.rows(ids), rows)
    return str(corpus.checkpoint.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_span_is_replaced_by_the_next_prompts(corpus: PromptSet) -> None:
    for prompt_id, other in (("hello", "sky"), ("sky", "two"), ("two", "hello")):
        _, after = run(corpus, prompt_id, {"name": "other_prompt"})
        assert text_of(after.tensor, corpus) == corpus.layout(other).text


def test_chosen_prompt_replaces_the_span(corpus: PromptSet) -> None:
    rows, after = run(corpus, "hello", {"name": "other_prompt", "other": "two", "span": {"positions": [3, 4]}})
    inside = corpus.numbers(Span(positions=(3, 4)), "hello")
    assert torch.equal(after.tensor[inside], corpus.table.rows(corpus.layout("two").token_ids)[inside])
    outside = [i for i in range(len(rows)) if i not in inside]
    assert torch.equal(after.tensor[outside], rows[outside])
    assert [after.resolved_origins()[i] for i in inside] == [(), ()]
    _, itself = run(corpus, "hello", {"name": "other_prompt", "other": "hello"})
    assert torch.equal(itself.tensor, rows)


def test_each_message_is_replaced_by_its_counterpart(chats: PromptSet) -> None:
    _, after = run(chats, "one", {"name": "other_prompt"})
    assert text_of(after.tensor, chats) == chats.layout("two").text
    _, after = run(chats, "one", {"name": "other_prompt", "span": {"role": "user"}})
    old = chats.layout("one").text
    assert text_of(after.tensor, chats) == old.replace("Where is Rome?", "Who is who?")
    with pytest.raises(TransformError, match=r"the span content has 2 ranges, but 1 in the prompt 'lone'"):
        run(chats, "two", {"name": "other_prompt"})


def test_other_prompts_that_do_not_exist(corpus: PromptSet, subwords: PromptSet) -> None:
    with pytest.raises(ConfigError, match=r"transform\.other: there is no prompt 'skye'\. Did you mean 'sky'"):
        run(corpus, "sky", {"name": "other_prompt", "other": "skye"})
    with pytest.raises(
        TransformError, match=r"other_prompt: there is no other prompt\. Add prompts, or set transform\.other$"
    ):
        run(subwords, SENTENCE, {"name": "other_prompt"})


def test_other_prompt_is_allowed_with_noise_but_not_after_moved_rows(corpus: PromptSet) -> None:
    _, plain = run(corpus, "sky", {"name": "other_prompt"})
    _, after = run(corpus, "sky", {"name": "noise", "sigma": 1.0}, {"name": "other_prompt"})
    assert torch.equal(after.tensor, plain.tensor)
    with pytest.raises(TransformError, match=r"Put other_prompt first"):
        soft = {"name": "soft_prompt", "random": 1, "span": {"substring": "sky"}}
        run(corpus, "sky", soft, {"name": "other_prompt"})


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.01, 1), seed=st.integers(0, 999))
def test_typos_swap_letters_within_words(corpus: PromptSet, chats: PromptSet, rate: float, seed: int) -> None:
    for source, prompt_id in ((corpus, "sky"), (chats, "one"), (chats, "named")):
        rows, after = run(source, prompt_id, {"name": "typo", "rate": rate}, seed=seed)
        old, new = source.layout(prompt_id).text, text_of(after.tensor, source)
        assert len(new) == len(old)
        assert re.sub(r"\w", "x", new) == re.sub(r"\w", "x", old)
        for before, misspelt in zip(words_of(old), words_of(new), strict=True):
            assert sorted(before) == sorted(misspelt)
            assert (before[0], before[-1]) == (misspelt[0], misspelt[-1])
        assert "{picture}" in new or prompt_id != "named"
        assert after.resolved_origins() == [(i,) for i in range(len(rows))]


def test_a_rate_of_one_swaps_every_pair(chats: PromptSet) -> None:
    _, after = run(chats, "named", {"name": "typo", "rate": 1.0})
    assert "Dsercbie {picture} for cihdlern!" in text_of(after.tensor, chats)
    _, after = run(chats, "one", {"name": "typo", "rate": 1.0})
    old = chats.layout("one").text
    assert text_of(after.tensor, chats) == old.replace("brief", "biref").replace("Where is Rome", "Wehre is Rmoe")


def test_a_share_of_the_pairs_is_swapped_and_nested_in_the_rate() -> None:
    words = " ".join(["abcdef"] * 400)  # two pairs each
    corpus = fresh_corpus([words])
    before = corpus.layout(words).text

    def swapped(rate: float) -> set[int]:
        _, after = run(corpus, words, {"name": "typo", "rate": rate})
        new = text_of(after.tensor, corpus)
        return {i for i, (a, b) in enumerate(zip(before, new, strict=True)) if a != b}

    rare, often = swapped(0.2), swapped(0.6)
    assert rare < often
    assert len(rare) == pytest.approx(0.2 * 1600, rel=0.25)
    assert len(often) == pytest.approx(0.6 * 1600, rel=0.15)


def test_typos_are_made_only_in_the_span(corpus: PromptSet) -> None:
    rows, after = run(corpus, "sky", {"name": "typo", "rate": 1.0, "span": {"substring": "blue"}})
    assert text_of(after.tensor, corpus) == corpus.layout("sky").text.replace("blue", "bule")
    outside = [i for i in range(len(rows)) if i not in corpus.numbers(Span(substring="blue"), "sky")]
    assert torch.equal(after.tensor[outside], rows[outside])


def test_misspelt_words_are_tokenized_again(subwords: PromptSet) -> None:
    rows, after = run(subwords, SENTENCE, {"name": "typo", "rate": 1.0, "span": {"substring": "elephants"}})
    text = text_of(after.tensor, subwords)
    assert text == subwords.layout(SENTENCE).text.replace("elephants", "eelhpnats")
    assert len(after.tensor) > len(rows)
    inside = subwords.numbers(Span(substring="elephants"), SENTENCE)
    more = len(after.tensor) - len(rows)
    assert torch.equal(after.tensor[: inside[0]], rows[: inside[0]])
    assert torch.equal(after.tensor[inside[-1] + 1 + more :], rows[inside[-1] + 1 :])
    new = after.resolved_origins()[inside[0] : inside[-1] + 1 + more]
    assert len(new) == len(inside) + more and {token for stem in new for token in stem} == set(inside)
    assert after.resolved_origins()[-1] == (len(rows) - 1,)


def test_typos_in_a_span_within_words(subwords: PromptSet) -> None:
    """`om` is a token of `something`; as `mo`, it takes the e after it along."""
    with pytest.raises(TransformError, match=r"typo: the tokens next to the span change .* a span of whole words$"):
        run(subwords, SENTENCE, {"name": "typo", "rate": 1.0, "span": {"substring": "om"}})


def test_typo_after_another_step_is_refused(corpus: PromptSet) -> None:
    for stage in ({"name": "noise", "sigma": 1.0}, {"name": "reverse"}, {"name": "inject", "text": "no"}):
        with pytest.raises(TransformError, match=r"typo: must be the first transform"):
            run(corpus, "sky", stage, {"name": "typo", "rate": 1.0})
    run(corpus, "sky", {"name": "noise", "sigma": 0.0}, {"name": "typo", "rate": 1.0}, {"name": "noise", "sigma": 1.0})


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"transform\.rate must be in \[0, 1\]"):
        build_pipeline({"name": "typo", "rate": rate})


def test_later_spans_find_text_without_typos(subwords: PromptSet) -> None:
    """Only what was tokenized anew stands for several tokens; the words beside it stay apart."""
    rows, after = run(subwords, SENTENCE, {"name": "typo", "rate": 1.0})
    layout = subwords.layout(SENTENCE)
    assert len(after.tensor) != len(rows)
    kept = [
        stem
        for row, stem in zip(after.tensor, after.resolved_origins(), strict=True)
        if len(stem) == 1 and torch.equal(row, rows[stem[0]])
    ]
    assert len(kept) > len(layout.token_ids) / 3
    assert after.token_ids is not None and None not in after.token_ids
    assert torch.equal(subwords.table.rows(after.token_ids), after.tensor)
