"""A small real encoder, a projector fitted to it, and what of its words arrives in the prompt."""

from __future__ import annotations

import itertools
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError, TransformError
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import PromptsConfig
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.testing import check_transform, demo_corpus
from sweep.transforms import Rows
from sweep.transforms.encoder import Encoder

WIDTH = 48
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["red", "green", "blue", "cat", "dog", "owl", "house", "tree", "sky", "sea"]
TEXTS = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
HELD_OUT = TEXTS[::7]  # the projector has not seen these


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, and a tokenizer of ten words."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(checkpoint: Checkpoint, table: EmbeddingTable) -> PromptSet:
    """Prompts that leave a place for what an encoder says of their captions."""
    items = [
        {"id": text, "prompt": "I see {picture}. Do you?", "values": {"caption": text}} for text in [*HELD_OUT, " "]
    ]
    config = PromptsConfig(items=items, placeholders=["picture"])
    return PromptSet(encode(prompts.load(config), checkpoint), table, checkpoint)


def target(word: str, corpus: PromptSet) -> int:
    """Return the token that stands for a word: its first letter, as a capital for the second of two alike."""
    capital = word[0] in {other[0] for other in WORDS[: WORDS.index(word)]}
    [token] = corpus.tokenize(word[0].upper() if capital else word[0])
    return token


@pytest.fixture(scope="module")
def projector(encoder: Path, corpus: PromptSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear map from the encoder's outputs to the table's rows, by least squares."""
    seen = [text for text in TEXTS if text not in HELD_OUT]
    outputs = torch.cat([reference(encoder, text)[1:-1] for text in seen])
    goals = corpus.table.rows([target(word, corpus) for text in seen for word in text.split()])
    ones = torch.ones(len(outputs), 1)
    solution = torch.linalg.lstsq(torch.cat([outputs, ones], 1), goals).solution
    file = tmp_path_factory.mktemp("projector") / "projector.safetensors"
    save_file({"weight": solution[:-1].T.contiguous(), "bias": solution[-1].contiguous()}, file)
    return file


@cache
def load(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def reference(folder: Path, text: str) -> Tensor:
    """Return what the encoder's last layer says of a text, [CLS] and [SEP] too."""
    tokenizer, model = load(folder)
    with torch.no_grad():
        output: Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return output


def run(corpus: PromptSet, prompt_id: str, **given: Any) -> tuple[Tensor, Rows, list[int]]:
    """Return a prompt's rows before and after, and the numbers of those in the place of `{picture}`."""
    pipeline = build_pipeline({"name": "encoder", "span": {"placeholder": "picture"}, **given})
    pipeline.check(corpus)
    rows = corpus.table.rows(corpus.layout(prompt_id).token_ids)
    after = pipeline.apply(rows, prompt_id, corpus, 0, torch.float32)[0]
    assert len(after.tensor) <= pipeline.max_rows(len(rows))
    place = tuple(corpus.numbers(pipeline.stages[0].span, prompt_id))
    return rows, after, [i for i, stem in enumerate(after.resolved_origins()) if stem == place]


def test_words_are_projected(encoder: Path, projector: Path, corpus: PromptSet) -> None:
    given = {"encoder": str(encoder), "projector": str(projector), "value": "caption"}
    right = 0
    for text in HELD_OUT:
        rows, after, new = run(corpus, text, **given)
        assert len(new) == 3
        start, end = new[0], new[-1] + 1
        assert torch.equal(after.tensor[:start], rows[:start])
        assert torch.equal(after.tensor[end:], rows[len(rows) - (len(after.tensor) - end) :])
        nearest = corpus.table.nearest(after.tensor[new])[1][:, 0].tolist()
        right += sum(a == target(word, corpus) for a, word in zip(nearest, text.split(), strict=True))
    assert right >= 0.99 * 3 * len(HELD_OUT)


def test_without_projector_rows_equal_the_encoders(encoder: Path, tmp_path: Path, corpus: PromptSet) -> None:
    identity = torch.eye(64, WIDTH)
    save_file({"weight": identity}, tmp_path / "wider.safetensors")
    expected = reference(encoder, "red cat")
    given = {"encoder": str(encoder), "text": "red cat", "projector": str(tmp_path / "wider.safetensors")}
    for pooling, rows in (("none", expected[1:-1]), ("mean", expected.mean(0)[None]), ("cls", expected[:1])):
        _, after, new = run(corpus, HELD_OUT[0], **given, pooling=pooling)
        assert torch.allclose(after.tensor[new], rows @ identity.T, atol=1e-5)
    with pytest.raises(
        ConfigError, match=r"transform\.encoder: .* without a projector has rows of width 48; .* 64 wide"
    ):
        run(corpus, HELD_OUT[0], encoder=str(encoder), text="red cat")


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_hidden_states_of_a_language_model(tiny: Path, corpus: PromptSet, layer: int) -> None:
    """A latent message: the model's own states for a text, as rows of a prompt."""
    tokenizer, model = load(tiny)
    tokens = tokenizer("red cat", return_tensors="pt", return_special_tokens_mask=True)
    is_text = tokens.pop("special_tokens_mask")[0] == 0
    with torch.no_grad():
        expected = model(**tokens, output_hidden_states=True).hidden_states[layer][0][is_text]
    given = {"encoder": str(tiny), "text": "red cat", "layer": layer}
    for pooling, rows in (("none", expected), ("last", expected[-1:])):
        _, after, new = run(corpus, HELD_OUT[0], **given, pooling=pooling)
        assert torch.allclose(after.tensor[new], rows, atol=1e-5)
    if layer == 0:
        ids = tokens["input_ids"][0][is_text]
        assert torch.allclose(expected, corpus.table.rows(ids), atol=1e-6)


def test_layers_of_another_encoder(encoder: Path, tmp_path: Path, corpus: PromptSet) -> None:
    save_file({"weight": torch.eye(64, WIDTH)}, tmp_path / "wider.safetensors")
    given = {"encoder": str(encoder), "text": "red cat", "projector": str(tmp_path / "wider.safetensors")}
    found = {
        layer: run(corpus, HELD_OUT[0], **given, layer=layer, pooling="cls")[1].tensor for layer in (None, -1, 2, 1)
    }
    assert torch.equal(found[None], found[-1]) and torch.equal(found[2], found[-1])
    assert not torch.equal(found[1], found[2])
    with pytest.raises(ConfigError, match=r"transform\.layer must be between -3 and 2 for '.*'; got 3"):
        run(corpus, HELD_OUT[0], **given, layer=3)


def test_layers_of_a_projector(encoder: Path, tmp_path: Path, corpus: PromptSet) -> None:
    """Two layers with GELU between, under LLaVA's names for them and others."""
    mlp = torch.nn.Sequential(torch.nn.Linear(WIDTH, 80), torch.nn.GELU(), torch.nn.Linear(80, 64))
    state = {name: weight.detach() for name, weight in mlp.state_dict().items()}
    with torch.no_grad():
        expected = mlp(reference(encoder, "red cat")[1:-1])
    names = [
        lambda name: name,
        lambda name: f"model.mm_projector.{name}",
        lambda name: f"multi_modal_projector.linear_{1 + int(name[0]) // 2}.{name[2:]}",
    ]
    for i, rename in enumerate(names):
        file = tmp_path / f"{i}.bin"
        torch.save({rename(name): weight for name, weight in reversed(state.items())}, file)
        _, after, new = run(corpus, HELD_OUT[0], encoder=str(encoder), text="red cat", projector=str(file))
        assert torch.allclose(after.tensor[new], expected, atol=1e-5)


def test_encoder_transform_conforms(encoder: Path, projector: Path) -> None:
    """The same checks as of all others, for which this one needs files; the demo model's rows are of another width."""
    width = demo_corpus().table.hidden_size
    wide = projector.with_name("wide.safetensors")
    save_file({"0.weight": torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(0))}, wide)
    given = {"encoder": str(encoder), "projector": str(wide), "text": "red cat"}
    check_transform(Encoder, [given, {**given, "pooling": "mean"}])


def test_texts_are_encoded_once(
    encoder: Path, projector: Path, corpus: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"encoder": str(encoder), "projector": str(projector), "value": "caption"}
    _, first, _ = run(corpus, HELD_OUT[1], **given)
    monkeypatch.setattr(BertModel, "forward", lambda *_, **__: pytest.fail("encoded again"))
    _, second, _ = run(corpus, HELD_OUT[1], **given)
    assert torch.equal(first.tensor, second.tensor)


def test_fingerprinted_files_are_the_encoders_and_projectors(encoder: Path, projector: Path) -> None:
    files = Encoder(encoder=str(encoder), text="red", projector=str(projector)).files()
    assert files[-1] == projector
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}


def test_prompts_without_a_value_or_tokens_are_refused(encoder: Path, projector: Path, corpus: PromptSet) -> None:
    given = {"encoder": str(encoder), "projector": str(projector)}
    with pytest.raises(TransformError, match=r"the prompt has no value 'captoin'\. Did you mean 'caption'"):
        run(corpus, HELD_OUT[0], **given, value="captoin")
    with pytest.raises(TransformError, match=r"the text ' ' has no tokens for the encoder"):
        run(corpus, " ", **given, value="caption")
    with pytest.raises(ConfigError, match=r"transform\.text: the text has 42 tokens .* whose limit is 32"):
        run(corpus, HELD_OUT[0], **given, text=" ".join(["red"] * 40))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight": torch.ones(64, 10)}, r"takes rows of width 10; the encoder's are 48 wide"),
        ({"weight": torch.ones(10, WIDTH)}, r"returns rows of width 10; the model's are 64 wide"),
        ({"scale": torch.ones(64)}, r"holds no projector\. .*; found scale \[64\]"),
        ({"weight": torch.ones(64)}, r"holds no projector"),
        ({"weight": torch.ones(64, WIDTH), "bias": torch.ones(WIDTH)}, r"holds no projector"),
        ({"0.weight": torch.ones(80, WIDTH), "2.weight": torch.ones(64, 81)}, r"holds no projector"),
        ({"weight": torch.ones(64, WIDTH), "norm.scale": torch.ones(64)}, r"holds no projector"),
        ({"weight": torch.full((64, WIDTH), torch.nan)}, r"3072 entries that are NaN"),
    ],
)
def test_projectors_that_do_not_fit(
    encoder: Path, corpus: PromptSet, tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    save_file(tensors, tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match=rf"transform\.projector: .*p\.safetensors.* {said}"):
        Encoder(encoder=str(encoder), text="red", projector=str(tmp_path / "p.safetensors")).check(corpus)


def test_encoders_that_cannot_be_loaded(encoder: Path, corpus: PromptSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transform\.encoder: there is no folder './none'"):
        Encoder(encoder="./none", text="red").check(corpus)
    with pytest.raises(
        ConfigError, match=r"transform\.encoder: 'nobody/nothing' is not a folder, and the hub download failed"
    ):
        Encoder(encoder="nobody/nothing", text="red").check(corpus)
    with pytest.raises(ConfigError, match=r"transform\.encoder: '.*' cannot be loaded: "):
        Encoder(encoder=str(tmp_path), text="red").check(corpus)
    shutil.copytree(encoder, tmp_path / "partial")
    weights = load_file(encoder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights, such as encoder\.layer\.1\.attention\.self\.query\.weight"):
        Encoder(encoder=str(tmp_path / "partial"), text="red").check(corpus)


def test_encoder_code_is_not_run(encoder: Path, corpus: PromptSet, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(encoder, folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = (folder / "config.json").read_text()
    mapped = config.replace('"model_type": "bert"', '"auto_map": {"AutoModel": "code.Own", "AutoConfig": "code.C"}')
    assert mapped != config
    (folder / "config.json").write_text(mapped)
    with pytest.raises(ConfigError, match=r"cannot be loaded"):
        Encoder(encoder=str(folder), text="red").check(corpus)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "red"}, r"transform\.encoder must name a folder or a hub id"),
        ({"encoder": "a"}, r"transform needs either a value or a text"),
        ({"encoder": "a", "text": "red", "value": "b"}, r"transform needs either a value or a text"),
        ({"encoder": "a", "text": ""}, r"transform\.text must not be empty"),
        ({"encoder": "a", "text": "red", "pooling": "max"}, r"transform\.pooling: .* Available: none, mean, cls, last"),
    ],
)
def test_parameters_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_pipeline({"name": "encoder", **given})


def test_replaced_encoder_is_read_again(encoder: Path, corpus: PromptSet, tmp_path: Path) -> None:
    """Else a second sweep of one process would have the first one's rows under its own fingerprint."""
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    tensors = load_file(folder / "model.safetensors")
    (projector := tmp_path / "p.safetensors").write_bytes(b"")
    save_file({"weight": torch.eye(64, WIDTH)}, projector)
    given = {"encoder": str(folder), "projector": str(projector), "text": "red cat"}
    before = run(corpus, HELD_OUT[0], **given)[1].tensor
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    after = run(corpus, HELD_OUT[0], **given)[1].tensor
    assert not torch.equal(before, after)
    assert torch.equal(after, run(corpus, HELD_OUT[0], **given)[1].tensor)


def test_tokens_without_an_encoder_row_are_named(encoder: Path, corpus: PromptSet, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["purple"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"the encoder's tokenizer returns token 14, but the encoder has only 14 rows"
    ):
        run(corpus, HELD_OUT[0], encoder=str(folder), text="purple")
