"""External tensors: their shapes, what is refused, and that no file is read twice; formats are in test_tensor_files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs import tensors
from sweep.inputs.tensors import count_rows, load_tensor, load_tensors

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def load(path: Path, key: str | None = None, width: int = 8) -> Tensor:
    return load_tensor(str(path), key, width=width, config_key="transform.path")


def save(path: Path, tensor: Tensor) -> None:
    if path.suffix == ".safetensors":
        save_file({"rows": tensor}, path)
    elif path.suffix == ".npy":
        np.save(path, tensor.numpy())
    else:
        torch.save(tensor, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_format_gives_the_same_rows_in_fp32(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    save(tmp_path / f"a{suffix}", ROWS.to(dtype))
    rows = load(tmp_path / f"a{suffix}")
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS.to(dtype).float())


def test_bfloat16_and_another_order_of_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", ROWS.bfloat16())
    assert torch.equal(load(tmp_path / "a.safetensors"), ROWS.bfloat16().float())
    np.save(tmp_path / "a.npy", ROWS.numpy().astype(">f4"))
    assert torch.equal(load(tmp_path / "a.npy"), ROWS)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".pt"])
def test_one_dimensional_tensor_is_one_row(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a{suffix}", ROWS[0].clone())
    assert torch.equal(load(tmp_path / f"a{suffix}"), ROWS[:1])


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".pt"])
@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 1, 3, 8), (3, 1, 8), (1, 3, 1, 8)])
def test_dimensions_of_one_before_the_last_are_dropped(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    file = tmp_path / f"a{suffix}"
    save(file, ROWS.reshape(shape))
    assert torch.equal(load(file), ROWS)
    assert count_rows(str(file), None, width=8, config_key="transform.path") == 3
    save(file, ROWS[:1].reshape(1, 1, 8))
    assert torch.equal(load(file), ROWS[:1])


def test_parameters_are_read_without_gradient(tmp_path: Path) -> None:
    torch.save({"prompt": torch.nn.Parameter(ROWS)}, tmp_path / "a.pt")
    rows = load(tmp_path / "a.pt")
    assert torch.equal(rows, ROWS) and not rows.requires_grad


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensor_is_selected_by_its_key(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    content = {"happy": ROWS, "sad": -ROWS}
    if suffix == ".pt":
        torch.save(content, file)
    else:
        save_file(content, file)
    assert torch.equal(load(file, "sad"), -ROWS)
    with pytest.raises(ConfigError, match=r"transform\.key: .* holds 2 tensors\. Choose one: happy, sad\."):
        load(file)
    with pytest.raises(ConfigError, match=r"no tensor 'hapy'\. Did you mean 'happy'\? Available: happy, sad\."):
        load(file, "hapy")


def test_layers_by_number_are_keys_too(tmp_path: Path) -> None:
    torch.save({3: ROWS, 4: -ROWS}, tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt", "4"), -ROWS)


def test_only_the_selected_tensor_is_checked(tmp_path: Path) -> None:
    save_file({"rows": ROWS, "ids": torch.arange(3), "broken": ROWS * torch.nan}, tmp_path / "a.safetensors")
    assert torch.equal(load(tmp_path / "a.safetensors", "rows"), ROWS)


class Custom:
    pass


def _pickled(path: Path) -> None:
    torch.save({"rows": ROWS, "other": Custom()}, path)


def _object_array(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def _runs_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(os.getcwd, protocol=2))


@pytest.mark.parametrize(
    ("name", "write"), [("a.pt", _pickled), ("a.npy", _object_array), ("b.pt", _runs_code), ("c.bin", _pickled)]
)
def test_pickled_objects_are_refused(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"transform\.path: .*{name} holds pickled objects.*\.safetensors") as raised:
        load(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.safetensors", "a.npy", "a.pt"])
@pytest.mark.parametrize("content", [b"", b"garbage, not numbers"])
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"transform\.path: .*{name} cannot be read as ") as raised:
        load(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.safetensors", "a.npy", "a.pt"])
def test_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, torch.randn(100, 8))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"transform\.path: .* cannot be read"):
        load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".pt"])
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(3, 7), r"has rows of width 7; the model's are 8 wide"),
        (
            torch.zeros(8, 1),
            r"has rows of width 1; the model's are 8 wide. It looks like a column: save its transpose, \[1, 8\]\.",
        ),
        (
            torch.zeros(1, 8, 1),
            r"has rows of width 1; the model's are 8 wide. It looks like a column: save its transpose",
        ),
        (torch.zeros(9, 1), r"has rows of width 1; the model's are 8 wide\.$"),
        (torch.zeros(2, 3, 8), r"has shape \[2, 3, 8\]; expected rows of shape"),
        (torch.tensor(1.0), r"has shape \[\]; expected rows of shape"),
        (torch.zeros(0, 8), r"is empty: its shape is \[0, 8\]"),
        (torch.zeros(3, 8, dtype=torch.int64), r"is int64; it must hold floating-point numbers"),
        (torch.zeros(3, 8, dtype=torch.bool), r"is bool; it must hold floating-point numbers"),
        (torch.zeros(3, 8, dtype=torch.complex64), r"is complex64; it must hold floating-point numbers"),
        (
            torch.tensor([[1.0, torch.nan, torch.inf, 0, 0, 0, 0, 0]]),
            r"has 2 entries that are NaN or infinite in float32, the first at \[0, 1\]\.",
        ),
        (
            torch.full((2, 8), 1e300, dtype=torch.float64),
            r"has 16 entries that are NaN or infinite in float32, the first at \[0, 0\]\.",
        ),
    ],
)
def test_unsuitable_input_is_refused(tmp_path: Path, suffix: str, tensor: Tensor, said: str) -> None:
    save(tmp_path / f"a{suffix}", tensor)
    with pytest.raises(ConfigError, match=rf"transform\.path: .*a{suffix}.* {said}"):
        load(tmp_path / f"a{suffix}")


def test_other_refusals(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "none.pt")
    torch.save(7, tmp_path / "number.pt")
    torch.save(ROWS.to_sparse(), tmp_path / "sparse.pt")
    torch.save(torch.empty(3, 8, device="meta"), tmp_path / "meta.pt")
    torch.save(torch.zeros(1).expand(1 << 40, 8), tmp_path / "expanded.pt")
    np.save(tmp_path / "a.npy", ROWS.numpy())
    (tmp_path / "rows.csv").write_text("1,2")
    (tmp_path / "folder").mkdir()
    for name, key, said in [
        ("missing.npy", None, r"transform\.path: there is no file '.*missing\.npy'\."),
        ("rows.csv", None, r"transform\.path: '\.csv' is not a tensor file format .* Available: \.safetensors, \.npy"),
        (
            "folder",
            None,
            r"transform\.path: the folder '.*folder' holds no adapter_model\.safetensors or adapter_model\.bin\. It has: no files\.",
        ),
        ("none.pt", None, r"holds no tensor\."),
        ("number.pt", None, r"it holds a int; expected a tensor, or tensors by name or number\."),
        ("sparse.pt", None, r"is a sparse tensor; it must hold"),
        ("meta.pt", None, r"is a tensor without data \(on the device meta\); it must hold"),
        ("expanded.pt", None, r"has shape \[1099511627776, 8\]: it needs 3\.28e\+04 GiB; this machine has "),
        ("a.npy", "rows", r"transform\.key: .*a\.npy holds one tensor without a name\. Remove the key 'rows'\."),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / name, key)


def test_file_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save(file, ROWS)
    reads = []
    unwatched = tensors.open_tensors

    def watched(file: Path, what: str) -> Any:
        reads.append(file)
        return unwatched(file, what)

    monkeypatch.setattr(tensors, "open_tensors", watched)
    assert load(file) is load(file)
    assert count_rows(str(file), None, width=8, config_key="transform.path") == 3
    assert len(reads) == 1
    save(file, torch.cat([ROWS, ROWS]))
    assert len(load(file)) == 6
    assert count_rows(str(file), None, width=None, config_key="transform.path") == 6
    assert len(reads) == 2
    with pytest.raises(ConfigError, match=r"rows of width 8; the model's are 9 wide"):
        count_rows(str(file), None, width=9, config_key="transform.path")


def test_all_tensors_of_a_file(tmp_path: Path) -> None:
    save_file({"weight": ROWS, "bias": ROWS[0].clone()}, tmp_path / "a.safetensors")
    found = load_tensors(str(tmp_path / "a.safetensors"), config_key="transform.projector")
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["bias"], ROWS[0])
    save_file({"weight": ROWS, "steps": torch.tensor([3])}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=r"transform\.projector: .*\(steps\) is int64"):
        load_tensors(str(tmp_path / "b.safetensors"), config_key="transform.projector")
