"""Reference tables of the configuration: sections, engines, launchers, the sweeper, and spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from doc_markdown import attributes, marked, table
from hydra.core.config_store import ConfigStore
from hydra.utils import get_class
from omegaconf import OmegaConf

from sweep.config.schema import SECTIONS
from sweep.engines import ENGINES
from sweep.inputs.span import Span
from sweep.scoring.judge_config import JudgeConfig

# Descriptions that can be read alone: of keys whose docstring has none, or one that needs its context.
DESCRIPTIONS = {
    "model.id": "hub id, local folder, `demo` (the embedded model), or `smollm2` (from a package index)",
    "model.revision": "revision on the hub",
    "model.dtype": "`auto` (the checkpoint's), `float32`, `bfloat16` or `float16`; `model=demo` sets float32",
    "model.trust_remote_code": "run the model's own code",
    "model.embedder": "`safetensors` reads the rows that are needed, `transformers` loads the model for its table",
    "prompts.items": "the prompts themselves, in place of a file",
    "prompts.path": "a file of prompts, a pattern, or a folder of `save_to_disk`",
    "prompts.chat": "apply the model's chat template",
    "prompts.system": "system message for every prompt",
    "prompts.limit": "read only the first prompts",
    "prompts.id_key": "key or path of an entry's id",
    "prompts.prompt_key": "key or path of an entry's text",
    "prompts.reference_key": "key or path of an entry's references",
    "prompts.choices_key": "key or path of an entry's choices; null: they are not read",
    "sampling.max_tokens": "most tokens of an answer",
    "sampling.temperature": "0: greedy",
    "sampling.top_p": "nucleus sampling; 1: all tokens",
    "sampling.top_k": "0: all tokens",
    "sampling.repetition_penalty": "1: none",
    "sampling.seed": "seed of samples; each request's seed derives from it and the prompt",
    "sampling.n": "samples per prompt",
    "sampling.stop": "strings that end an answer",
    "sampling.ignore_eos": "do not stop at the end-of-text token",
    "tracking.uri": "any MLflow tracking URI; null: an SQLite file in `sweep.dir`",
    "tracking.experiment": "name of the MLflow experiment",
    "sweep.dir": "everything that a run writes lies under this folder",
    "sweep.name": "name of the sweep; null: what it sweeps, such as `scale factor=1.2,1.5`",
    "sweep.dry_run": "list points, engines, requests and tokens; start nothing",
    "engine.max_model_len": "tokens of prompt and answer together; null: what the sweep needs",
    "prompts.placeholders": "names whose `{name}` stays in the text as one unit, for a transform to replace",
    "prompts.special_tokens": "control tokens in a prompt's own text: `warn`, `allow`, `escape` or `refuse`",
    "scoring.confidence": "level of all intervals",
    "scoring.noise_floor": "run each control a second time, in different batches",
    "scoring.logprobs": "log-probabilities of so many most probable tokens at each step, at most 20; 0: none",
    "scoring.teacher_forced": "measure how probable the control's answer is under each point's prompt, and vice versa",
    "scoring.reference_logprob": "measure how probable each reference is after each point's prompt",
    "scoring.choices": "answers whose likelihoods are compared, for prompts without choices of their own",
    "scoring.target_delimiter": "text before references and choices that do not begin with white space; null: a space "
    "after plain text",
    "scoring.quality": "measures against references: names, or functions of your own as `module.function`",
    "scoring.measures": "measures that see all answers of a point: built-in ones, or names given to `register_measure`",
    "scoring.judge": "language model of `quality/judge_score` ([its keys](../guide/judge-and-similarity.md#judge))",
    "scoring.primary": "the measure that is shown first; null: the first of `scoring.quality`",
    "tracking.in_process": "publish from the process with the engine: less memory, slower generation",
    "sweep.resume": "`true`: continue what the same command began; `false`: begin anew; `force`: mix engine versions",
    "sweep.on_error": "`continue`, or `stop` at the first point that fails",
    "sweep.max_failures": "end the sweep when more points than this have failed; null: never",
    "sweep.objective": "objective of a search: `minimize:MEASURE`, `maximize:MEASURE`, `closest:MEASURE:0.5`, `…:50%`",
    "sweep.helpers": "pool processes, which build requests and score points; 0: threads; null: one per 4 cores, 1 to 4",
    "sweep.gpu_scoring": "find nearest tokens of large vocabularies on the GPU, in at most 3 % of its memory",
    "engine.served_model": "name of the model on the server; null: its only one",
    "engine.max_in_flight": "requests sent at a time",
    "engine.connect_timeout": "seconds for a connection",
    "engine.read_timeout": "seconds for a whole answer, once connected",
    "engine.url": "address of the server, with or without `/v1`",
    "engine.threads": "threads on a CPU; null: one for a small model, else one per core",
    "engine.prefix_caching": "reuse the KV cache of equal beginnings, such as an untouched system prompt",
    "hydra.launcher.workers": "processes with an engine each; 1: only this one",
    "hydra.launcher.shards": "number of shards; null: see "
    "[the guide](../guide/launchers/local.md#rules-for-all-launchers)",
    "hydra.launcher.gpus": "GPUs of each worker or actor; null: see the guide",
    "hydra.launcher.address": "running cluster (`auto`, `host:6379`, `ray://…`); null: start one for this sweep",
    "hydra.launcher.actors": "number of actors; null: as many as fit",
    "hydra.launcher.cpus": "cores of each actor",
    "hydra.launcher.requeues": "how often a task that ran out of time is put back into the queue",
    "hydra.launcher.linger_seconds": "how long an idle task keeps its engine, for the next batch of a search",
    "hydra.launcher.wait": "`false`: submit and end",
    "hydra.launcher.folder": "folder of the plan; null: among the sweep's files",
    "hydra.sweeper.n_trials": "points in all, including those of earlier runs of the command",
    "hydra.sweeper.n_jobs": "points chosen at a time; they share an engine and a batch",
    "hydra.sweeper.sampler": "`tpe`, `gp`, `random` or `grid`",
    "hydra.sweeper.seed": "seed of the sampler; null: a new one each time",
    "hydra.sweeper.params": "what is searched, for configuration files",
    "transform.span.part": "`all`, `content` (the messages' own text), `template` (the rest) or `injected`",
    "transform.span.role": "messages of this role: `user`, `system`, `assistant`",
    "transform.span.substring": "each occurrence of a text",
    "transform.span.regex": "each match of a regular expression",
    "transform.span.placeholder": "the text that replaces `{name}`",
    "transform.span.positions": "numbers among the rows that the keys above select; negative ones from the end",
    "transform.span.window": "[start, stop) among these rows; either may be null or negative",
    "transform.span.exclude": "spans whose rows are left out",
}
TOP_LEVEL = (
    ("seed", "0", "seed of transforms that draw random numbers"),
    ("verbose", "false", "show what vLLM, Transformers and MLflow print, instead of writing it to `sweep.log`"),
    ("plugins", "[]", "Python modules to import first; they may register transforms, measures and engines"),
)
PROVIDER = "sweep"  # of this project's launchers and sweepers in Hydra's config store
# Options of `sbatch`, which Slurm's documentation describes.
SBATCH = ("partition", "account", "qos", "gres", "constraint", "cpus_per_task", "mem_gb")
SLURM_TIMES = {
    "timeout_min": "limit of a task, in minutes",
    "array_parallelism": "tasks at a time",
    "signal_delay_s": "seconds of warning before the limit",
}


# Configuration
def configuration() -> str:
    """Return a table of each section of the configuration, and of each engine."""
    lines = ["### Top level", "", *table(("key", "default", "meaning"), marked(TOP_LEVEL))]
    for name, section in SECTIONS.items():
        lines += ["", f"### {name}", "", *_key_table(name, section)]
    for name, engine in own_engines().items():
        lines += ["", f"### engine={name}", "", *_key_table("engine", engine)]
    return "\n".join(lines)


def plugin_keys(kind: str) -> str:
    """Return a table of each launcher or sweeper of this project.

    Args:
        kind: `launcher` or `sweeper`.
    """
    lines: list[str] = []
    for name in own_plugins(kind):
        lines += ["", f"### hydra/{kind}={name}", "", *_node_table(f"hydra.{kind}", f"{kind}/{name}")]
    return "\n".join(lines[1:])


def own_engines() -> dict[str, type]:
    """Return the engines of this project by name, in the order of registration."""
    return {name: engine for name, engine in ENGINES.items() if engine.__module__.startswith("sweep.engines.")}


def own_plugins(kind: str) -> list[str]:
    """Return the launchers or sweepers that this project's modules have put into Hydra's config store.

    Args:
        kind: `launcher` or `sweeper`.
    """
    package = import_module(f"hydra_plugins.sweep_{kind}s")
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):  # those are not plugins
            import_module(module.name)
    store = ConfigStore.instance()
    files = store.list(f"hydra/{kind}")
    return [file.removesuffix(".yaml") for file in files if store.load(f"hydra/{kind}/{file}").provider == PROVIDER]


def judge_keys() -> str:
    """Return a table of the keys of a judge."""
    return "\n".join(_key_table("scoring.judge", JudgeConfig))


def span_keys() -> str:
    """Return a table of the keys of a span."""
    return "\n".join(_key_table("transform.span", Span))


def _key_table(prefix: str, section: type) -> list[str]:
    return table(("key", "default", "meaning"), marked(list(_key_rows(prefix, section))))


def _key_rows(prefix: str, section: type) -> Iterator[tuple[str, str, str]]:
    described = attributes(section)
    for field in fields(section):
        key = f"{prefix}.{field.name}"
        nested = field.default_factory
        if prefix in SECTIONS and isinstance(nested, type) and is_dataclass(nested):
            yield key, "its keys", DESCRIPTIONS[key]  # too many for this page
        else:
            yield key, _default(field), DESCRIPTIONS.get(key) or _as_cell(described[field.name])


def _node_table(prefix: str, group: str) -> list[str]:
    """Return a table of a plugin's options: its node in the config store, described by its class.

    Raises:
        SystemExit: an option has no description.
    """
    node: Any = ConfigStore.instance().load(f"hydra/{group}.yaml").node
    described = attributes(get_class(node["_target_"])) | (SLURM_TIMES if group == "launcher/slurm" else {})
    rows, plain = [], []
    for key, value in OmegaConf.to_container(node).items():
        name = f"{prefix}.{key}"
        if meaning := DESCRIPTIONS.get(name) or _as_cell(described.get(key, "")):
            rows.append((f"`{name}`", f"`{_show(value)}`", meaning))
        elif key in SBATCH and group == "launcher/slurm":
            plain.append(f"`{key}`")
        elif key != "_target_":
            raise SystemExit(f"{name} ({group}) has no description: add it to the class's `Args:` or DESCRIPTIONS.")
    options = [(", ".join(plain), "`null`", "options of `sbatch`, under `hydra.launcher.`")] if plain else []
    return table(("key", "default", "meaning"), options + rows)


def _as_cell(text: str) -> str:
    """Return a docstring's description in the style of the tables: lower case, and `null:` for "null means"."""
    text = re.sub(r"[,;] null means ", "; null: ", text)
    first = text.partition(" ")[0]
    return text[0].lower() + text[1:] if first[1:].islower() else text


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return _show(field.default_factory())
    return _show(field.default)


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, str) and "\n" in value:
        return f"{value.splitlines()[0]} …"
    return "{}" if value == {} else f"{value:g}" if isinstance(value, float) else str(value)
