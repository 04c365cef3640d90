"""`engine.args` on the real engine: each argument reaches vLLM, and embeddings stay equal to token ids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sweep.engines import VLLMConfig
from sweep.engines.request_errors import first_line
from sweep.engines.vllm.signatures import Parameter, parameters
from sweep.errors import ConfigError

SCRIPT = """
import json, sys
from pathlib import Path
from sweep.engines import VLLMConfig
from sweep.engines.base import Request, Sampling
from sweep.engines.identity_check import IdentityPrompt, check_identity
from sweep.errors import SweepError
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table

PROMPTS = [tuple(range(5 + i, 20 + 2 * i)) for i in range(4)]
for name, folder, dtype, args in json.loads(sys.argv[1]):
    checkpoint = find(ModelConfig(id=folder, dtype=dtype))
    table = open_table(checkpoint)
    rows = [table.rows(ids).to(table.dtype) for ids in PROMPTS]
    try:
        config = VLLMConfig(args=args, max_num_seqs=4, window=8, kv_cache_gib=0.1)
        engine = config.open(checkpoint.files, 128, Path(sys.argv[2]))
    except SweepError as error:
        print("OUTPUT", json.dumps([name, type(error).__name__, str(error)]), flush=True)
        continue
    check_identity(engine, [IdentityPrompt(str(i), ids, rows[i]) for i, ids in enumerate(PROMPTS)], 8)
    sampling = Sampling(8, ignore_eos=True)
    answers = engine.generate([Request(i, ids, rows[i], sampling) for i, ids in enumerate(PROMPTS)])
    tokens = {answer.key: answer.completions[0].token_ids for answer in answers}
    settings = engine.llm.llm_engine.vllm_config
    seen = [settings.model_config.quantization, settings.scheduler_config.max_num_batched_tokens]
    seen += [str(settings.cache_config.cache_dtype), str(settings.model_config.head_dtype)]
    engine.close()
    print("OUTPUT", json.dumps([name, seen, [tokens[i] for i in range(4)]]), flush=True)
"""


def compressed(model: Path, folder: Path) -> Path:
    """Write a model in the format of compressed-tensors: int8 weights per channel, int8 activations per token."""
    shutil.copytree(model, folder)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        tensors[name] = weight
        if "_proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors[name] = (weight / scale).round().to(torch.int8)
            tensors[name.removesuffix("weight") + "weight_scale"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": integers | {"strategy": "channel", "dynamic": False},
        "input_activations": integers | {"strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_arguments_reach_vllm(tiny: Path, vllm_cache: Path, tmp_path: Path) -> None:
    small = str(compressed(tiny, tmp_path / "compressed"))
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        ("plain", str(tiny), "auto", {}),
        ("quantized", small, "auto", {"quantization": "compressed-tensors", "load_format": "safetensors"}),
        ("batched", str(tiny), "auto", {"max_num_batched_tokens": 32}),
        ("cache", str(tiny), "auto", {"kv_cache_dtype": "fp8"}),
        ("head", str(tiny), "bfloat16", {"hf_overrides": {"head_dtype": "float32"}}),
        ("pipeline", str(tiny), "auto", {"pipeline_parallel_size": 2}),
        ("unknown", str(tiny), "auto", {"quantization": "awqq"}),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases), str(vllm_cache)], capture_output=True, text=True, timeout=400
    )
    lines = [line.removeprefix("OUTPUT ") for line in done.stdout.splitlines() if line.startswith("OUTPUT ")]
    assert len(lines) == len(cases), done.stderr[-3000:]
    found = {name: rest for name, *rest in map(json.loads, lines)}
    plain = found["plain"][1]
    assert found["quantized"][0][0] == "compressed-tensors"
    # Which of the first tokens stay depends on the processor's kernels; by chance it would be one of 272.
    pairs = [
        (a, b)
        for one, other in zip(found["quantized"][1], plain, strict=True)
        for a, b in zip(one[:2], other[:2], strict=True)
    ]
    assert sum(a == b for a, b in pairs) >= len(pairs) // 2 and found["quantized"][1] != plain
    assert found["batched"][0][1] == 32 and found["batched"][1] == plain
    if "avx512" in Path("/proc/cpuinfo").read_text():
        assert found["cache"][0][2].startswith("fp8") and found["cache"][1] != plain
    else:
        kind, message = found["cache"]
        assert kind == "EngineError" and "FP8 KV cache on CPU requires x86 with AVX-512" in message
    assert found["head"][0][3] == "torch.float32"
    assert found["pipeline"] == [
        "ConfigError",
        "engine.args.pipeline_parallel_size must be 1 on a CPU, where vLLM's pipelines fail without compilation. "
        "Set engine.tensor_parallel_size instead.",
    ]
    kind, message = found["unknown"]
    assert kind == "EngineError" and "awqq" in message and "1 validation error for ModelConfig: " in message


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("kv_cache_dtype", "auto", "fp9"),
        ("max_num_batched_tokens", 8192, "8192"),
        ("enable_chunked_prefill", True, 1),
        ("cpu_offload_gb", 4, "4"),
        ("hf_overrides", {"head_dtype": "float32"}, None),
        ("kv_cache_dtype_skip_layers", ["0"], "0"),
        ("gdn_prefill_backend", "triton", "tritn"),
        ("quantization", "my-plugin", 8),
    ],
)
def test_types_of_arguments(name: str, valid: Any, invalid: Any) -> None:
    parameter = parameters("engine.arg_utils", "EngineArgs")[name]
    assert parameter.accepts(valid) and parameter.accepts(None)
    assert invalid is None or not parameter.accepts(invalid)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"hf_overrides": "foo"}, "hf_overrides must be a mapping with names as keys; got 'foo'."),
        ({"hf_overrides": {1: 2}}, "hf_overrides must be a mapping with names as keys; got {1: 2}."),
        ({"pipeline_parallel_size": 0}, "pipeline_parallel_size must be at least 1; got 0."),
        ({"hf_token": "hf_x"}, "hf_token is a secret, and arguments are recorded. Set $HF_TOKEN instead. Remove it."),
        (
            {"model_loader_extra_config": {"s3_secret_access_key": "x"}},
            "model_loader_extra_config.s3_secret_access_key is a secret, and arguments are recorded. Remove it, and set "
            "the environment variable that its library reads, such as $AWS_SECRET_ACCESS_KEY.",
        ),
    ],
)
def test_refused_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VLLMConfig(args=args)
    assert str(caught.value) == f"engine.args.{message}"


FILES: list[tuple[str, str, dict[str, Any]]] = [
    ("counts", "own_code/processors.py", {"logits_processors": ["own_code.processors:Mine"]}),
    ("counts", "own_code/processors.py", {"worker_extension_cls": "own_code.processors.Mine"}),
    ("counts", "own_code/processors.py", {"compilation_config": {"backend": "own_code.processors.Mine"}}),
    ("counts", "own_plugin.py", {"reasoning_parser_plugin": "own_plugin"}),
    ("counts", "own_plugin.py", {"reasoning_parser_plugin": "own_plugin.py"}),
    ("counts", "draft/model.safetensors", {"speculative_config": {"model": "draft", "num_speculative_tokens": 2}}),
    ("counts", "draft/config.json", {"hf_config_path": "./draft"}),
    ("counts", "draft/generation_config.json", {"generation_config": "draft"}),
    ("ignored", "draft/model.safetensors", {"hf_config_path": "draft"}),  # only its configuration is read
    ("ignored", "auto", {"kv_cache_dtype": "auto"}),
    ("ignored", "own_plugin.py", {"speculative_config": {"model": "org/own_plugin", "num_speculative_tokens": 2}}),
]


@pytest.mark.parametrize(("kind", "file", "args"), FILES)
def test_files_and_modules_count_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, file: str, args: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, name, _ in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit  # one")  # nothing is imported
    config = VLLMConfig(args=args)
    before = config.generation_settings()
    assert config.generation_settings() == before
    (tmp_path / file).write_text("raise SystemExit  # two, and longer")
    assert (config.generation_settings() != before) is (kind == "counts")
    assert before["args"] | {"contents": None} == args | {"contents": None}


def test_arguments_without_files_count_as_they_are() -> None:
    args = {"worker_cls": "vllm.v1.worker.gpu_worker.Worker", "quantization": "fp8", "hf_overrides": {"a": "b.c/d"}}
    assert VLLMConfig(args=args).generation_settings()["args"] == args


def test_signatures_equal_those_of_the_imported_classes() -> None:
    """The source is parsed, because an import is slow; here it is compared with the imported class."""
    import dataclasses

    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import StructuredOutputsParams

    def public(names: Any) -> set[str]:
        return {name for name in names if not name.startswith("_")}

    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(parameters("engine.arg_utils", "EngineArgs")) == public(fields)
    assert set(parameters("sampling_params", "SamplingParams")) == public(SamplingParams.__struct_fields__)
    names = {field.name for field in dataclasses.fields(StructuredOutputsParams)}
    assert set(parameters("sampling_params", "StructuredOutputsParams")) == public(names)
    assert parameters("sampling_params", "Nothing") == parameters("nothing", "Nothing") == {}


def test_a_class_accepts_anything() -> None:
    assert Parameter(is_open=True).accepts(object())
    assert str(Parameter(frozenset(["int", "str"]), ("auto",))) == "auto or an integer or text"


def test_the_first_line_of_a_validation_error() -> None:
    text = """ValidationError: 1 validation error for CacheConfig
block_size
  Input should be 8 or 16 [type=literal_error, input_value=7, input_type=int]
    For further information visit https://errors.pydantic.dev/"""
    assert (
        first_line(text) == "ValidationError: 1 validation error for CacheConfig: block_size: Input should be 8 or 16"
    )
    assert first_line("\n one\n two") == "one"
