"""Soft prompts and injected tensors: where their rows come to lie, and that all others stay as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError, TransformError
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import PromptsConfig
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.transforms import Rows
from sweep.transforms.injection import Inject, SoftPrompt

WIDTH = 64
ROWS = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
SPAN = {"substring": "the sky"}


@pytest.fixture(scope="module")
def images(checkpoint: Checkpoint, table: EmbeddingTable) -> PromptSet:
    """Prompts that say `{image}` once or twice."""
    items = [
        {"id": "one", "prompt": "What is {image}?"},
        {"id": "two", "prompt": "Is {image} like {image}, or not?"},
    ]
    config = PromptsConfig(items=items, placeholders=["image"])
    return PromptSet(encode(prompts.load(config), checkpoint), table, checkpoint)


def run(corpus: PromptSet, prompt_id: str, *stages: dict[str, Any], seed: int = 0) -> tuple[Tensor, Rows]:
    """Return a prompt's rows before and after."""
    pipeline = build_pipeline(list(stages))
    pipeline.check(corpus)
    rows = corpus.table.rows(corpus.layout(prompt_id).token_ids)
    return rows, pipeline.apply(rows, prompt_id, corpus, seed, torch.float32)[0]


@pytest.mark.parametrize("folder", [True, False])
def test_peft_rows_are_put_before_the_prompt(corpus: PromptSet, tmp_path: Path, folder: bool) -> None:
    save_file({"prompt_embeddings": ROWS}, tmp_path / "adapter_model.safetensors")
    path = tmp_path if folder else tmp_path / "adapter_model.safetensors"
    rows, after = run(corpus, "sky", {"name": "soft_prompt", "path": str(path)})
    assert torch.equal(after.tensor, torch.cat([ROWS, rows]))
    assert after.resolved_origins() == [()] * 5 + [(i,) for i in range(len(rows))]
    assert SoftPrompt(path=str(path)).files() == (tmp_path / "adapter_model.safetensors",)


@pytest.mark.parametrize(("place", "at"), [("before", 0), ("after", 1)])
def test_text_is_inserted_next_to_its_span(corpus: PromptSet, place: str, at: int) -> None:
    rows, after = run(corpus, "sky", {"name": "soft_prompt", "text": "Hm! ", "place": place, "span": SPAN})
    start = corpus.layout("sky").text.index("the sky")
    first = corpus.layout("sky").offsets.index((start, start + 1)) + at * len("the sky")
    new = corpus.table.rows(corpus.tokenize("Hm! "))
    assert torch.equal(after.tensor, torch.cat([rows[:first], new, rows[first:]]))


def test_span_with_gaps_gets_one_insertion(corpus: PromptSet) -> None:
    span = {"positions": [2, 5, 9]}
    stage = {"name": "soft_prompt", "random": 3, "span": span}
    rows, after = run(corpus, "sky", stage)
    assert torch.equal(after.tensor[[0, 1]], rows[:2])
    assert torch.equal(after.tensor[5:], rows[2:])
    _, [dose] = build_pipeline(stage).apply(rows, "sky", corpus, 0, torch.float32)
    assert dose is not None and dose.achieved == 3


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(0, 6), seed=st.integers(0, 99))
def test_fewer_tokens_are_the_first_of_more(corpus: PromptSet, tokens: int, seed: int) -> None:
    stage = {"name": "soft_prompt", "random": 6}
    rows, everything = run(corpus, "sky", stage, seed=seed)
    _, some = run(corpus, "sky", {**stage, "tokens": tokens}, seed=seed)
    assert torch.equal(some.tensor[:tokens], everything.tensor[:tokens])
    assert torch.equal(some.tensor[tokens:], rows)
    assert len(some.tensor) == SoftPrompt(random=6, tokens=tokens).max_rows(len(rows))


def test_random_rows_have_the_tables_moments_and_are_shared_by_prompts(corpus: PromptSet) -> None:
    stage = {"name": "soft_prompt", "random": 2000}
    _, sky = run(corpus, "sky", stage)
    _, hello = run(corpus, "hello", stage)
    _, other = run(corpus, "sky", stage, seed=1)
    drawn, std = sky.tensor[:2000], corpus.table.std
    assert torch.equal(drawn, hello.tensor[:2000])
    assert not torch.equal(drawn, other.tensor[:2000])
    assert torch.allclose(drawn.mean(0), corpus.table.mean, atol=5 * std / 2000**0.5)
    assert torch.allclose(drawn.std(0), torch.full((WIDTH,), std), rtol=0.1)


def test_later_steps_find_old_and_new_rows(corpus: PromptSet) -> None:
    soft = {"name": "soft_prompt", "random": 4, "span": SPAN}
    rows, plain = run(corpus, "sky", soft)
    numbers = [i for i, stem in enumerate(plain.resolved_origins()) if not stem]
    assert len(numbers) == 4
    _, after = run(corpus, "sky", soft, {"name": "scale", "factor": 2.0, "span": "injected"})
    assert torch.equal(after.tensor[numbers], 2 * plain.tensor[numbers])
    old = [i for i in range(len(plain.tensor)) if i not in numbers]
    assert torch.equal(after.tensor[old], rows)
    _, after = run(corpus, "sky", soft, {"name": "scale", "factor": 2.0, "span": SPAN})
    assert torch.equal(after.tensor[numbers], plain.tensor[numbers])
    assert int((after.tensor != plain.tensor).all(1).sum()) == len("the sky")


def test_a_placeholder_becomes_the_tensors_rows(images: PromptSet, tmp_path: Path) -> None:
    save_file({"image": ROWS}, tmp_path / "image.safetensors")
    stage = {"name": "inject", "path": str(tmp_path / "image.safetensors"), "span": {"placeholder": "image"}}
    rows, after = run(images, "one", stage)
    text, offsets = images.layout("one").text, images.layout("one").offsets
    inside = images.numbers(build_pipeline(stage).stages[0].span, "one")
    first, last = inside[0], inside[-1]
    assert text[offsets[first][0] : offsets[last][1]] == "{image}"
    assert torch.equal(after.tensor, torch.cat([rows[:first], ROWS, rows[last + 1 :]]))
    assert after.resolved_origins()[first : first + 5] == [tuple(inside)] * 5


def test_every_run_of_the_span_is_replaced(images: PromptSet) -> None:
    rows, after = run(images, "two", {"name": "inject", "text": "a cat", "span": {"placeholder": "image"}})
    new = images.table.rows(images.tokenize("a cat"))
    assert len(after.tensor) == len(rows) - 2 * len("{image}") + 2 * len("a cat")
    assert images.table.nearest(after.tensor)[1][:, 0].tolist() == images.tokenize_prompt(
        "two", images.layout("two").text.replace("{image}", "a cat")
    )
    assert sum(torch.equal(after.tensor[i : i + 5], new) for i in range(len(after.tensor) - 4)) == 2


def test_later_spans_find_injected_rows_by_the_placeholder(images: PromptSet) -> None:
    inject = {"name": "inject", "text": "a cat", "span": {"placeholder": "image"}}
    _, plain = run(images, "one", inject)
    _, after = run(images, "one", inject, {"name": "scale", "factor": 2.0, "span": {"placeholder": "image"}})
    changed = (after.tensor != plain.tensor).any(1)
    assert torch.equal(after.tensor[changed], 2 * images.table.rows(images.tokenize("a cat")))


def test_scaling_to_the_table_keeps_the_proportions(images: PromptSet, tmp_path: Path) -> None:
    rows = ROWS * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    save_file({"image": rows}, tmp_path / "image.safetensors")
    stage = {"name": "inject", "path": str(tmp_path / "image.safetensors"), "span": {"placeholder": "image"}}
    _, after = run(images, "one", {**stage, "scale": "table_rms"})
    [new] = [after.tensor[i : i + 5] for i, stem in enumerate(after.resolved_origins()) if len(stem) > 1][:1]
    assert float(new.square().mean().sqrt()) == pytest.approx(images.table.rms, rel=1e-5)
    assert torch.allclose(new / new.norm(), rows / rows.norm(), atol=1e-6)


def test_each_prompt_can_have_a_file_of_its_own(images: PromptSet, tmp_path: Path) -> None:
    path = str(tmp_path / "of {id}.npy")
    span = {"placeholder": "image"}
    with pytest.raises(ConfigError, match=r"transform\.path: there is no file '.*of \{id\}\.npy' for any id"):
        Inject(path=path).check(images)
    for prompt_id, count in (("one", 2), ("two", 4)):
        (tmp_path / f"of {prompt_id}.npy").write_bytes(_npy(ROWS[:count]))
    for prompt_id, count in (("one", 2), ("two", 4)):
        _, after = run(images, prompt_id, {"name": "inject", "path": path, "span": span})
        assert sum(len(stem) > 1 for stem in after.resolved_origins()) == count * (1 if prompt_id == "one" else 2)
    assert Inject(path=path).files() == [tmp_path / "of one.npy", tmp_path / "of two.npy"]
    assert Inject(path=path).max_rows(10) == 14
    (tmp_path / "of one.npy").unlink()
    with pytest.raises(TransformError, match=r"inject: transform\.path: there is no file '.*of one\.npy'$"):
        run(images, "one", {"name": "inject", "path": path, "span": span})
    (tmp_path / "of one.npy").write_bytes(_npy(ROWS[:, :32]))
    with pytest.raises(ConfigError, match=r"of one\.npy has rows of width 32; the model's are 64 wide"):
        Inject(path=path).check(images)


def test_brackets_in_a_path_are_literal(images: PromptSet, tmp_path: Path) -> None:
    (tmp_path / "[1]").mkdir()
    (tmp_path / "[1]" / "one.npy").write_bytes(_npy(ROWS))
    assert Inject(path=str(tmp_path / "[1]" / "{id}.npy")).files() == [tmp_path / "[1]" / "one.npy"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "soft_prompt"}, r"transform needs one of path, text, random"),
        ({"name": "soft_prompt", "text": "a", "random": 2}, r"transform needs one of .*; got \['text', 'random'\]"),
        ({"name": "soft_prompt", "text": "a", "key": "b"}, r"transform\.key selects a tensor in a file"),
        ({"name": "soft_prompt", "random": 0}, r"transform\.random must be at least 1"),
        ({"name": "soft_prompt", "random": 2, "tokens": -2}, r"transform\.tokens must be 0 or more, or -1"),
        ({"name": "soft_prompt", "random": 2, "place": "start"}, r"transform\.place: .* Available: before, after"),
        ({"name": "soft_prompt", "random": 2, "tokens": 3}, r"transform\.tokens: the soft prompt has 2 rows; got 3"),
        ({"name": "soft_prompt", "text": ""}, r"transform\.text: '' has no tokens"),
        ({"name": "inject"}, r"transform needs one of path, text"),
        ({"name": "inject", "path": "missing.npy"}, r"transform\.path: there is no file 'missing\.npy'"),
        ({"name": "inject", "text": "a", "scale": "row"}, r"transform\.scale: .* Available: none, table_rms"),
    ],
)
def test_invalid_injections_are_refused(corpus: PromptSet, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_pipeline(values).check(corpus)


def test_a_soft_prompt_of_another_width_is_refused(corpus: PromptSet, tmp_path: Path) -> None:
    save_file({"prompt_embeddings": ROWS[:, :10].contiguous()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors has rows of width 10; the model's are 64 wide"):
        SoftPrompt(path=str(tmp_path)).check(corpus)


def _npy(rows: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, rows.numpy())
    return stream.getvalue()
