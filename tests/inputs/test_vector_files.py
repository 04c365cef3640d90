"""Vectors in files: layouts of the libraries that write them, rows, layers, columns, and what `sweep vectors` lists.

`data/vectors` was written by repeng 0.4.0 (`ControlVector.export_gguf`) and SAELens 6.54.12 (`StandardSAE.save_model`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs.vector_files import by_number, load_vectors
from sweep.inputs.vector_listing import describe

DATA = Path(__file__).parents[1] / "data" / "vectors"
WIDTH = 8
ROWS = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0))


def load(path: Path, key: str | None = None, row: int | None = None, width: int = WIDTH) -> Tensor:
    return load_vectors(str(path), key, row, width=width, config_key="transform.vector.path")


def refused(path: Path, key: str | None = None, row: int | None = None, width: int = WIDTH) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path, key, row, width)
    message = str(raised.value).replace(str(path), "PATH")
    assert "\n" not in message
    return message


def llama_cpp(path: Path, layers: dict[int, Tensor]) -> Path:
    """Write a control vector as llama.cpp's cvector-generator does: layers from 1, their number as an int32."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_int32("controlvector.layer_count", len(layers))
    for layer, vector in layers.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def svec(path: Path, layers: dict[int, Tensor]) -> Path:
    """Write a steering vector as activation-steering's `SteeringVector.save` does."""
    directions = {str(layer): vector.tolist() for layer, vector in layers.items()}
    variances = {str(layer): 0.5 for layer in layers}
    path.write_text(json.dumps({"model_type": "llama", "directions": directions, "explained_variances": variances}))
    return path


def test_control_vectors_by_layer(tmp_path: Path) -> None:
    layers = {1: ROWS[1], 2: ROWS[2], 5: ROWS[5]}
    for file in (llama_cpp(tmp_path / "a.gguf", layers), svec(tmp_path / "a.svec", layers)):
        for layer, vector in layers.items():
            assert torch.equal(load(file, row=layer), vector[None])
        assert refused(file, row=3) == ("transform.vector.row: PATH holds no vector of number 3. Available: 1 to 2, 5.")
        assert refused(file).endswith("Or set transform.vector.row to one of 1 to 2, 5.")
    one = llama_cpp(tmp_path / "one.gguf", {7: ROWS[7]})
    assert torch.equal(load(one), ROWS[7:8]) and torch.equal(load(one, row=7), ROWS[7:8])


def test_files_of_repeng_and_saelens() -> None:
    reader = gguf.GGUFReader(DATA / "repeng.gguf")
    for layer, tensor in enumerate(reader.tensors, 1):
        assert torch.equal(load(DATA / "repeng.gguf", row=layer), torch.tensor(tensor.data)[None])
    weights = load_file(DATA / "saelens" / "sae_weights.safetensors")
    assert weights["W_dec"].shape == (12, WIDTH)
    assert torch.equal(load(DATA / "saelens", row=11), weights["W_dec"][11:])
    assert torch.equal(load(DATA / "saelens"), weights["W_dec"])
    assert torch.equal(load(DATA / "saelens", "W_enc", 3), weights["W_enc"][:, 3][None])  # the feature that is read
    assert torch.equal(load(DATA / "saelens", "b_dec"), weights["b_dec"][None])
    assert refused(DATA / "saelens", row=12).endswith("(W_dec) has rows 0 to 11; got 12.")
    assert refused(DATA / "saelens", row=0, width=12) == (
        "transform.vector.path: PATH is the SAELens SAE of gpt2-small at blocks.0.hook_resid_pre, 8 wide; "
        "the model's rows are 12 wide."
    )


def sae_folder(folder: Path, kind: str) -> Path:
    """Write an SAE whose decoder's rows are `ROWS`, in the layout of a library."""
    folder.mkdir(parents=True)
    linear = {"encoder.weight": ROWS.contiguous(), "encoder.bias": torch.zeros(12)}
    if kind == "sparsify":
        save_file({**linear, "W_dec": ROWS.clone(), "b_dec": torch.zeros(WIDTH)}, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"expansion_factor": 32, "k": 4, "num_latents": 12, "d_in": WIDTH}))
    elif kind == "dictionary_learning":
        torch.save({"bias": torch.zeros(WIDTH), **linear, "decoder.weight": ROWS.T.contiguous()}, folder / "ae.pt")
        trainer = {"activation_dim": WIDTH, "dict_size": 12, "lm_name": "gemma", "submodule_name": "resid_post_layer_3"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": WIDTH}}))
    else:
        arrays = {"W_enc": ROWS.T.numpy(), "W_dec": ROWS.numpy(), "b_dec": np.zeros(WIDTH), "threshold": np.ones(12)}
        np.savez(folder / "params.npz", **arrays)
    return folder


@pytest.mark.parametrize("kind", ["sparsify", "dictionary_learning", "Gemma Scope"])
def test_features_of_sparse_autoencoders(tmp_path: Path, kind: str) -> None:
    folder = sae_folder(tmp_path / "saes" / "layer_3", kind)
    for path in (folder, folder.parent):  # also the only folder of its parent
        for row in (0, 5, 11):
            assert torch.equal(load(path, row=row), ROWS[row : row + 1])
    [file] = [file for file in folder.iterdir() if file.suffix != ".json"]
    assert torch.equal(load(file, row=4), ROWS[4:5])
    assert f"{kind} SAE" in describe(str(folder)) and "row=0" in describe(str(folder))
    sae_folder(tmp_path / "saes" / "layer_4", kind)
    assert "holds 2 SAEs: layer_3, layer_4. Choose one, such as transform.vector.path=PATH/layer_3." in refused(
        folder.parent, row=1
    )


def test_damaged_sae_folders(tmp_path: Path) -> None:
    folder = sae_folder(tmp_path / "a", "sparsify")
    for text in ("", "[]", "{", "[" * 100_000):
        (folder / "cfg.json").write_text(text)
        assert "cfg.json is not the configuration of an SAE; expected a JSON object" in refused(folder, row=1)
    (folder / "cfg.json").write_text('{"d_in": "eight", "metadata": 3, "model_name": ["a"]}')
    assert torch.equal(load(folder, row=1), ROWS[1:2])
    (folder / "sae.safetensors").rename(folder / "weights.safetensors")
    assert "holds no sae_weights.safetensors, sae.safetensors, ae.pt," in refused(folder, row=1)


def test_a_square_decoder_of_a_pytorch_layer_has_columns(tmp_path: Path) -> None:
    save_file({"decoder.weight": ROWS[:8].T.contiguous(), "encoder.weight": ROWS[:8]}, tmp_path / "a.safetensors")
    assert torch.equal(load(tmp_path / "a.safetensors", row=3), ROWS[3:4])


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".npz", ".pt"])
def test_rows_columns_and_dimensions_of_one(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    for tensor, row, expected in [
        (ROWS, 3, ROWS[3:4]),
        (ROWS.reshape(12, 1, WIDTH), 3, ROWS[3:4]),  # one batch for each layer
        (ROWS.reshape(1, 12, WIDTH), 11, ROWS[11:]),
        (ROWS[0], None, ROWS[:1]),
        (ROWS[0].reshape(WIDTH, 1), None, ROWS[:1]),
        (ROWS[0].reshape(WIDTH, 1), 0, ROWS[:1]),
        (ROWS[0].reshape(1, WIDTH, 1), None, ROWS[:1]),
        (ROWS.reshape(12, WIDTH, 1), 2, ROWS[2:3]),
        (ROWS.T, 5, ROWS[5:6]),
        (ROWS.half(), 5, ROWS[5:6].half().float()),
    ]:
        save(file, tensor.contiguous())
        assert torch.equal(load(file, row=row), expected)
    save(file, ROWS.T.contiguous())
    assert "has rows of width 12; the model's are 8 wide. It has columns of this width: set transform.vector.row=0 (to 11)" in refused(file)  # fmt: skip
    save(file, ROWS[0])
    assert refused(file, row=1).endswith("has a single row, 0; got 1.")


def save(file: Path, tensor: Tensor) -> None:
    writers: dict[str, Callable[[], Any]] = {
        ".safetensors": lambda: save_file({"rows": tensor}, file),
        ".npy": lambda: np.save(file, tensor.numpy()),
        ".npz": lambda: np.savez(file, rows=tensor.numpy()),
        ".pt": lambda: torch.save(tensor, file),
    }
    writers[file.suffix]()


def test_only_the_row_that_is_read_must_be_finite(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", torch.cat([ROWS[:1], torch.full((1, WIDTH), torch.nan)]))
    assert torch.equal(load(tmp_path / "a.npy", row=0), ROWS[:1])
    assert "has 8 entries that are NaN" in refused(tmp_path / "a.npy", row=1)
    assert "has 8 entries that are NaN" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "key", "rows"),
    [
        ({"steering_vectors": {3: ROWS[3], 10: ROWS[10]}}, None, (3, 10)),
        ([ROWS[0], ROWS[1]], None, (0, 1)),
        ({"layer_3": ROWS[3], "layer_04": ROWS[4]}, None, (3, 4)),
        ({"blocks.3.resid": ROWS[3], "blocks.4.resid": ROWS[4]}, None, (3, 4)),
        ({"happy": {3: ROWS[3], 4: ROWS[4]}, "sad": {3: -ROWS[3], 4: -ROWS[4]}}, "happy", (3, 4)),
    ],
)
def test_tensors_for_layers_are_rows_too(tmp_path: Path, content: Any, key: str | None, rows: tuple[int, ...]) -> None:
    torch.save(content, tmp_path / "a.pt")
    for row in rows:
        assert torch.equal(load(tmp_path / "a.pt", key, row), ROWS[row : row + 1])
    assert "holds no vector of number 7. Available:" in refused(tmp_path / "a.pt", key, 7)


def test_ambiguous_numbers_are_refused(tmp_path: Path) -> None:
    assert by_number(["a.1.b.1", "a.2.b.2"]) == {} and by_number(["1", "01"]) == {} and by_number(["a", "b"]) == {}
    assert by_number(["direction.12"]) == {12: "direction.12"}
    torch.save({"happy": {3: ROWS[3]}, "sad": {3: ROWS[4]}}, tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt", row=3) == (
        "transform.vector.key: PATH holds 2 tensors. Choose one: happy.3, sad.3."
    )


NAMES = st.sampled_from(
    ["W_dec", "decoder.weight", "1", "2", "layer.1", "layer.2", "", "ü", "a.b", "prompt_embeddings"]
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, WIDTH, 12]), max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
TENSORS = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), SHAPES, DTYPES)
LEAVES = TENSORS | st.integers() | st.text(max_size=4) | st.none() | st.lists(st.floats(), max_size=9)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers(0, 3), inner, max_size=4), max_leaves=8)  # fmt: skip


def _real(tensor: Tensor) -> Tensor:
    return (tensor.real if tensor.is_complex() else tensor).float()


def write_mixture(file: Path, content: Any) -> None:
    """Write content in the format of the suffix, as far as it can hold it."""
    items = (
        content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else [content])
    )
    named = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, file)
    elif file.suffix == ".npz":
        np.savez(file, **{name: _real(tensor).numpy() for name, tensor in named.items() if name not in ("", "file")})
    elif file.suffix == ".svec":
        plain = json.loads(json.dumps({"directions": content}, default=lambda value: _real(value).tolist()))
        file.write_text(json.dumps(plain))
    else:
        torch.save(content, file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=NESTED,
    suffix=st.sampled_from([".safetensors", ".npz", ".svec", ".pt"]),
    key=st.none() | NAMES,
    row=st.none() | st.integers(0, 13),
    cut=st.integers(0, 60),
    config=st.none()
    | st.sampled_from(["{}", '{"d_in": 8}', '{"d_in": [8], "metadata": {"model_name": 3}}', "nonsense"]),
)
def test_any_content_is_read_or_refused_in_one_line(
    tmp_path: Path, content: Any, suffix: str, key: str | None, row: int | None, cut: int, config: str | None
) -> None:
    names = {".safetensors": "sae_weights", ".npz": "params", ".pt": "ae", ".svec": "a"}
    for old in tmp_path.iterdir():
        old.unlink()
    file = tmp_path / f"{names[suffix]}{suffix}"
    write_mixture(file, content)
    if cut < 20:
        file.write_bytes(file.read_bytes()[: -1 - cut])
    if config is not None:
        (tmp_path / "cfg.json").write_text(config)
    for path in (file, tmp_path):
        try:
            assert load(path, key, row).shape[1:] == (WIDTH,)
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1, error
        try:
            assert describe(str(path)).startswith(f"{path}: ")
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1, error


def test_the_command_lists_a_file(tmp_path: Path) -> None:
    torch.save({"vectors": {3: ROWS[0], 4: ROWS[1]}, "ids": torch.arange(3), "about": "refusal"}, tmp_path / "a b.pt")
    command = [sys.executable, "-m", "sweep", "vectors", str(DATA / "repeng.gguf"), "a b.pt", "none.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "sweep: There is no file 'none.npy'.\n"
    assert done.stdout == (
        f"{DATA / 'repeng.gguf'}: control vector for llama, 3 tensors\n"
        "  direction.1  [8]  float32\n  direction.2  [8]  float32\n  direction.3  [8]  float32\n"
        f"Use one: transform=add_vector transform.vector.path={DATA / 'repeng.gguf'} transform.vector.row=1,2,3\n"
        "a b.pt: 3 tensors\n"
        "  vectors.3  [8]  float32\n  vectors.4  [8]  float32\n  ids        [3]  int64\n"
        "  not read: about\n"
        "Use one: transform=add_vector 'transform.vector.path=a b.pt' transform.vector.key=vectors.3\n"
    )


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("PROMPT_TUNING", "Use it: transform=soft_prompt transform.path="),
        ("LORA", "It holds changes of the model's weights, not vectors or a soft prompt."),
    ],
)
def test_a_listing_of_an_adapter(tmp_path: Path, kind: str, usage: str) -> None:
    save_file({"prompt_embeddings": ROWS}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    first, *_, last = describe(str(tmp_path)).splitlines()
    assert first == f"{tmp_path}: PEFT adapter of type {kind}, 1 tensor" and last.startswith(usage)


def test_a_listing_of_what_cannot_be_used(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3), "cube": torch.zeros(2, 3, 4)}, tmp_path / "a.safetensors")
    assert describe(str(tmp_path / "a.safetensors")).endswith(
        "It holds no vector that can be used: a tensor of floating-point numbers with one or two dimensions."
    )
    svec(tmp_path / "b.svec", {0: ROWS[0]})
    (tmp_path / "b.svec").write_text('{"directions": {"0": ["a"], "1": [1.0]}}')
    text = describe(str(tmp_path / "b.svec"))
    assert "(directions.0) cannot be read as .svec" in text and "directions.1  [1]" in text
