"""Spans through chat templates and tokenizers of all kinds: the rows that are found are those of the text that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sweep.errors import ConfigError, TransformError
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.tokenization import EncodedPrompt, encode
from sweep.transforms import Span, parse_span
from tiny_models import TEMPLATE, make_tokenizer

TEMPLATES = {
    "tiny": TEMPLATE,
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "trimming": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n\\n' + m['content'] | trim + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "system in the first turn": (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}<start>{{ m.role }}\n{{ (first if loop.first else '') + m.content | trim }}<end>\n{% endfor %}"
        "<start>model\n"
    ),
}
CORPUS = ["Why is the sky blue? Be brief. user system Grüße, 東京 and ☕ assistant model start end im_start"] * 4


def bpe(kind: str) -> PreTrainedTokenizerFast:
    """Return a trained tokenizer of some kind."""
    special = ["<unk>", "<bos>", "<eos>"]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    elif kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "bytelevel with bos":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


TOKENIZERS = {
    "single bytes": make_tokenizer,
    "bytelevel": lambda: bpe("bytelevel"),
    "bytelevel with bos": lambda: bpe("bytelevel with bos"),
    "metaspace": lambda: bpe("metaspace"),
    "wordpiece": lambda: bpe("wordpiece"),
    "without offsets": ByT5Tokenizer,
}


def with_tokenizer(tokenizer: Any) -> Checkpoint:
    """Return a checkpoint of which there is only the tokenizer."""
    checkpoint = Checkpoint(ModelConfig(id="x"), Path())
    checkpoint.__dict__["tokenizer"] = tokenizer  # where cached_property looks first
    return checkpoint


def encoded(tokenizer: str, template: str, entry: Any, **config: Any) -> EncodedPrompt:
    made = TOKENIZERS[tokenizer]()
    made.chat_template = TEMPLATES[template]
    return encode(prompts.load(PromptsConfig(items=[entry], **config)), with_tokenizer(made))[0]


def text_of(prompt: EncodedPrompt, value: Any) -> str:
    """Return the characters that the rows of a span stand for, each once, without blanks: some tokenizers skip those."""
    layout = prompt.layout
    rows = parse_span(value, "span").rows(layout, None, len(layout.token_ids))
    covered = sorted({c for row in rows for c in range(*layout.offsets[row])})
    return "".join("".join(layout.text[c] for c in covered).split())


CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "user: why is the sky blue? Grüße, 東京 ☕"},
]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_are_found_through_any_template_and_tokenizer(tokenizer: str, template: str) -> None:
    prompt = encoded(tokenizer, template, {"messages": CHAT})

    def found(value: Any) -> str:
        return text_of(prompt, value)

    assert found({"role": "user"}) == "user:whyistheskyblue?Grüße,東京☕"
    assert found({"role": "system"}) == "Bebrief."
    assert found("content") == "Bebrief.user:whyistheskyblue?Grüße,東京☕"
    assert found({"substring": "blue"}) in ("blue", "blue?")  # a token may reach over its end
    assert found({"regex": "東."}) == "東京"
    assert found({"substring": "user"}) in ("user", "user:")  # not the template's own
    assert found("template") == "".join(prompt.layout.text.split()).replace("Bebrief.", "").replace(
        "user:whyistheskyblue?Grüße,東京☕", ""
    )
    layout = prompt.layout
    content, template_rows = (
        parse_span(p, "span").rows(layout, None, len(layout.offsets)) for p in ("content", "template")
    )
    assert sorted([*content, *template_rows]) == list(range(len(layout.token_ids)))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_plain_text_and_its_special_tokens(tokenizer: str) -> None:
    prompt = encoded(tokenizer, "tiny", "Why is the sky blue?", chat=False)
    assert text_of(prompt, "content") == "Whyistheskyblue?"
    rows = parse_span("content", "span").rows(prompt.layout, None, len(prompt.token_ids))
    assert len(prompt.token_ids) - len(rows) == {"bytelevel with bos": 1, "without offsets": 1}.get(tokenizer, 0)


def test_token_ids_equal_the_chat_templates() -> None:
    checkpoint = find(ModelConfig())
    items = [{"messages": CHAT}, "What is the capital of Japan?"]
    for prompt in encode(prompts.load(PromptsConfig(items=items)), checkpoint):
        ids = checkpoint.tokenizer.apply_chat_template(
            list(prompt.prompt.messages or ()), add_generation_prompt=True, return_dict=False
        )
        assert prompt.token_ids == tuple(ids)


def test_filled_placeholders_are_found() -> None:
    entry = {"prompt": "Is {colour} nicer than {colour} in {place}?", "values": {"colour": "blue", "place": "Rome"}}
    prompt = encoded("single bytes", "tiny", entry)
    assert prompt.prompt.text == "Is blue nicer than blue in Rome?"
    assert text_of(prompt, {"placeholder": "colour"}) == "blueblue"
    assert text_of(prompt, {"placeholder": "place"}) == "Rome"
    with pytest.raises(TransformError, match=r"prompts\.placeholders=\[image\]"):
        text_of(prompt, {"placeholder": "image"})


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_kept_placeholders_are_tokenized_separately(tokenizer: str) -> None:
    prompt = encoded(tokenizer, "chatml", "Why is {image}the sky{image}?", placeholders=["image"])
    assert text_of(prompt, {"placeholder": "image"}) == "{image}{image}"
    assert all(token < 700 for token in prompt.token_ids)  # spelled in the model's own tokens
    rest = text_of(prompt, {"part": "content", "exclude": {"placeholder": "image"}})
    assert rest == "Whyisthesky?"


def test_positions_windows_and_exclusions() -> None:
    prompt = encoded("single bytes", "tiny", "abcdef")
    count = len(prompt.token_ids)

    def rows(value: Any) -> list[int]:
        return parse_span(value, "span").rows(prompt.layout, None, count)

    first = rows("content")[0]
    assert rows("all") == list(range(count))
    assert rows({"positions": [0, -1]}) == [0, count - 1]
    assert rows({"positions": -2}) == [count - 2]
    assert rows({"window": [1, 3]}) == [1, 2]
    assert rows({"window": [-2, None]}) == [count - 2, count - 1]
    assert rows({"part": "content", "window": [0, 2]}) == [first, first + 1]
    assert rows({"part": "content", "positions": [-1]}) == [first + 5]
    assert rows({"part": "content", "exclude": {"substring": "cd"}}) == [first + i for i in (0, 1, 4, 5)]
    assert rows({"part": "all", "exclude": ["content", {"positions": [0]}]}) == [
        i for i in range(1, count) if not first <= i < first + 6
    ]
    with pytest.raises(TransformError, match="reaches outside the prompt"):
        rows({"positions": [99]})
    with pytest.raises(TransformError, match=r"span \{substring: xyz\} is empty"):
        rows({"substring": "xyz"})
    with pytest.raises(TransformError, match="empty"):
        rows({"role": "system"})


def test_spans_follow_rows_that_were_moved_merged_and_injected() -> None:
    prompt = encoded("single bytes", "tiny", "abc")
    first = parse_span("content", "span").rows(prompt.layout, None, len(prompt.token_ids))[0]
    origins = [(), (first + 1, first + 2), (0,), (first,)]
    span = parse_span({"substring": "c"}, "span")
    assert span.rows(prompt.layout, origins, 4) == [1]
    assert parse_span("content", "span").rows(prompt.layout, origins, 4) == [1, 3]
    assert parse_span("injected", "span").rows(prompt.layout, origins, 4) == [0]
    assert parse_span("all", "span").rows(prompt.layout, origins, 4) == [0, 1, 2, 3]
    with pytest.raises(TransformError, match="empty"):
        parse_span("injected", "span").rows(prompt.layout, None, 9)


def test_content_span_is_refused_if_the_template_rewrites_texts() -> None:
    made = make_tokenizer()
    made.chat_template = "{% for m in messages %}<user>{{ m.content | upper }}{% endfor %}"
    [prompt] = encode(prompts.load(PromptsConfig(items=["Why?"])), with_tokenizer(made))
    with pytest.raises(TransformError, match="rewrites the messages' texts"):
        text_of(prompt, "content")
    assert text_of(prompt, {"positions": [0]}) == "<user>"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("contents", "Did you mean 'content'?"),
        ({"substrin": "x"}, "Did you mean 'substring'?"),
        ({"part": "user"}, "span.part"),
        ({"substring": 3}, "span.substring must be a non-empty string"),
        ({"substring": ""}, "span.substring must be a non-empty string"),
        ({"regex": "("}, "not a valid regular expression"),
        ({"regex": "a", "substring": "a"}, "not both"),
        ({"positions": []}, "whole numbers"),
        ({"positions": [1.5]}, "whole numbers"),
        ({"window": [1]}, r"\[start, stop\]"),
        ({"part": "injected", "window": [0, 1]}, "injected"),
        ({"part": "template", "substring": "x"}, "template"),
        ({"exclude": "contant"}, "span.exclude"),
        ({}, "one of all, content"),
        (3, "one of all, content"),
    ],
)
def test_bad_spans_are_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_span(value, "span")


@pytest.mark.parametrize(
    "value",
    [
        "all",
        "content",
        {"substring": "x", "window": [0, None]},
        {"part": "content", "exclude": ["template", {"positions": [1]}]},
    ],
)
def test_span_configuration_parses_to_an_equal_span(value: Any) -> None:
    span = parse_span(value, "span")
    assert parse_span(span.config(), "span") == span
    assert isinstance(hash(span), int) and isinstance(span, Span)
