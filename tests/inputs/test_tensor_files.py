"""Formats of external tensors: all that a file names can be read by that name, and broken files say how."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs.tensors import load_tensor

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def load(path: Path, key: str | None = None, width: int = 8) -> Tensor:
    return load_tensor(str(path), key, width=width, config_key="transform.vector.path")


def test_nested_tensors_are_named_with_dots_and_lists_by_number(tmp_path: Path) -> None:
    content = {
        "vectors": {3: ROWS, "4": -ROWS},
        "state_dict": {"layers": [2 * ROWS, {"bias": 3 * ROWS}]},
        "layers": [3, 4],
        "about": "refusal",
    }
    torch.save(content, tmp_path / "a.pt")
    for key, expected in [
        ("vectors.3", ROWS),
        ("vectors.4", -ROWS),
        ("state_dict.layers.0", 2 * ROWS),
        ("state_dict.layers.1.bias", 3 * ROWS),
    ]:
        assert torch.equal(load(tmp_path / "a.pt", key), expected)
    known = r"state_dict\.layers\.0, state_dict\.layers\.1\.bias, vectors\.3, vectors\.4\.$"
    with pytest.raises(ConfigError, match=rf"^transform\.vector\.key: .* holds 4 tensors\. Choose one: {known}"):
        load(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=rf"holds no tensor '3'\. Did you mean 'vectors\.3'\? Available: {known}"):
        load(tmp_path / "a.pt", "3")


def test_lists_and_wrapped_tensors(tmp_path: Path) -> None:
    torch.save([ROWS, -ROWS], tmp_path / "list.pt")
    assert torch.equal(load(tmp_path / "list.pt", "1"), -ROWS)
    with pytest.raises(ConfigError, match=r"holds 2 tensors\. Choose one: 0, 1\.$"):
        load(tmp_path / "list.pt")
    torch.save({"state_dict": {"prompt": torch.nn.Parameter(ROWS)}}, tmp_path / "one.pt")
    assert torch.equal(load(tmp_path / "one.pt"), ROWS)


def test_tensors_with_equal_names_are_refused(tmp_path: Path) -> None:
    for content, name in [({3: ROWS, "3": -ROWS}, "3"), ({"a.b": ROWS, "a": {"b": -ROWS}}, r"a\.b")]:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ConfigError, match=rf"cannot be read as \.pt: two of its tensors are named '{name}'\.$"):
            load(tmp_path / "a.pt")


def test_cyclic_containers_are_entered_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"rows": ROWS}
    inner["self"] = inner
    many: Any = [inner]
    for _ in range(40):  # 2^40 paths to one tensor
        many = [many, many]
    torch.save(many, tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt"), ROWS)


def test_array_archive_is_read_by_key(tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    np.savez(
        file,
        W_dec=ROWS.numpy(),
        big=ROWS.numpy().astype(">f8"),
        fortran=np.asfortranarray(ROWS.numpy()),
        one=np.float32(1),
    )
    for key in ("W_dec", "big", "fortran"):
        assert torch.equal(load(file, key), ROWS)
    with pytest.raises(ConfigError, match=r"holds 4 tensors\. Choose one: W_dec, big, fortran, one\.$"):
        load(file)
    with pytest.raises(ConfigError, match=r"\(one\) has shape \[\]; expected rows of shape"):
        load(file, "one")
    np.savez_compressed(file, ROWS.half().numpy())
    assert torch.equal(load(file), ROWS.half().float())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8", "g"])
def test_arrays_of_any_byte_and_memory_order_are_read(tmp_path: Path, order: Any, dtype: str) -> None:
    np.save(tmp_path / "a.npy", ROWS.half().numpy().astype(dtype, order=order))
    assert torch.equal(load(tmp_path / "a.npy"), ROWS.half().float())


def _member(array: np.ndarray[Any, Any], **changes: Any) -> bytes:
    """Return an array's file, with another shape in its header."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_member(ROWS.numpy(), shape=(1 << 40, 8)), r"it ends early: found 96 of 35184372088832 bytes"),
        (
            _member(ROWS.numpy(), descr="<V2", shape=(6, 8)),
            r"no name for its numbers of 2 bytes, such as bfloat16\. Save them as",
        ),
        (_member(ROWS.numpy())[:-4], r"it ends early: found 92 of 96 bytes"),
    ],
)
def test_arrays_that_contradict_their_header_are_refused(
    tmp_path: Path, suffix: str, content: bytes, said: str
) -> None:
    file = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("rows.npy", content)
    with pytest.raises(ConfigError, match=rf"^transform\.vector\.path: .* cannot be read as \{suffix}: .*{said}"):
        load(file)


def test_pickles_in_an_archive_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows=ROWS.numpy(), other=np.array([{}], dtype=object))
    assert torch.equal(load(tmp_path / "a.npz", "rows"), ROWS)
    with pytest.raises(ConfigError, match=r"a\.npz holds pickled objects, which could run any code"):
        load(tmp_path / "a.npz", "other")


def test_steering_vectors_in_json(tmp_path: Path) -> None:
    file = tmp_path / "refusal.svec"
    layers = {str(layer): row.tolist() for layer, row in enumerate(ROWS)}
    file.write_text(json.dumps({"model_type": "llama", "directions": layers, "explained_variances": {"0": 1.0}}))
    assert torch.equal(load(file, "directions.2"), ROWS[2:])
    with pytest.raises(
        ConfigError, match=r"holds 3 tensors\. Choose one: directions\.0, directions\.1, directions\.2\.$"
    ):
        load(file)
    for text, said in [
        ("{", r"Expecting property name"),
        ("[]", r'it is not \{"directions": \{layer: \[numbers\]\}'),
        ('{"directions": {"0": ["a"]}}', r"\(directions\.0\) cannot be read as \.svec"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"cannot be read as \.svec.*{said}|{said}"):
            load(file)


def test_control_vectors_in_gguf_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        ConfigError, match=r"^transform\.vector\.path: .*a\.gguf: reading \.gguf needs the package gguf\. Install it"
    ):
        load(tmp_path / "a.gguf")


def test_control_vectors_in_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, whose own reader and writer `test_gguf_files` uses where it is installed."""
    names = ["direction.1", "direction.2", "general.note"]
    tensors = [SimpleNamespace(name=name, data=ROWS.numpy()[i], tensor_type=0) for i, name in enumerate(names)]
    reader = SimpleNamespace(tensors=tensors, get_field=lambda _: SimpleNamespace(contents=lambda: "llama"))
    stand_in = SimpleNamespace(GGUFReader=lambda _: reader, dequantize=lambda data, _: 2 * data)
    monkeypatch.setitem(sys.modules, "gguf", stand_in)
    (tmp_path / "a.gguf").write_bytes(b"")
    assert torch.equal(load(tmp_path / "a.gguf", "direction.2"), 2 * ROWS[1:2])
    with pytest.raises(ConfigError, match=r"holds 2 tensors\. Choose one: direction\.1, direction\.2\.$"):
        load(tmp_path / "a.gguf")
    del tensors[:2]
    (tmp_path / "b.gguf").write_bytes(b"")
    said = (
        r"holds no control vector .*: it has architecture 'llama' and 1 other tensors\. Whole models in \.gguf are not"
    )
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "b.gguf")


def test_gguf_files(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "controlvector")
    writer.add_tensor("direction.1", ROWS[0].numpy())
    writer.add_tensor("direction.2", ROWS[1].half().numpy())
    bytes_of_bf16 = ROWS[2].bfloat16().view(torch.uint8).numpy()
    writer.add_tensor("direction.3", bytes_of_bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    assert torch.equal(load(tmp_path / "a.gguf", "direction.1"), ROWS[:1])
    assert torch.equal(load(tmp_path / "a.gguf", "direction.2"), ROWS[1:2].half().float())
    assert torch.equal(load(tmp_path / "a.gguf", "direction.3"), ROWS[2:].bfloat16().float())
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-200])
    with pytest.raises(ConfigError, match=r"b\.gguf.* cannot be read as \.gguf: "):
        load(tmp_path / "b.gguf", "direction.3")
