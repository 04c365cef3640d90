"""Write the generated parts of the documentation: reference tables of configuration, transforms, measures, fingerprint.

.venv/bin/python scripts/docs/update_docs.py            # writes them
.venv/bin/python scripts/docs/update_docs.py --check    # exit code 1 if a page is out of date

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else of a page is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import hydra_plugins.sweep_launchers.local as local_launcher
import hydra_plugins.sweep_launchers.plan as plan_launcher
import hydra_plugins.sweep_launchers.ray as ray_launcher
import hydra_plugins.sweep_launchers.slurm as slurm_launcher
import hydra_plugins.sweep_sweepers.optuna as optuna_sweeper
from sweep.config.schema import SECTIONS
from sweep.engines import ENGINES
from sweep.inputs.span import Span
from sweep.points import fingerprint_keys
from sweep.scoring import divergence, health
from sweep.scoring.distributions import Distance
from sweep.scoring.scorers import QUALITY
from sweep.transforms import TRANSFORMS, Transform, reference_table
from sweep.transforms.vectors import VectorSource

DOCS = Path(__file__).parents[2] / "docs"
ARCHITECTURES = DOCS / "guide" / "models-and-engines.md"  # written by scripts/bench/architectures.py

# Descriptions that can be read alone: of keys whose docstring has none, or one that needs its context.
DESCRIPTIONS = {
    "model.id": "hub id, local folder, or `demo` for the embedded model",
    "model.revision": "revision on the hub",
    "model.dtype": "`auto` (the checkpoint's), `float32`, `bfloat16` or `float16`; `model=demo` sets float32",
    "model.trust_remote_code": "run the model's own code",
    "model.embedder": "`safetensors` reads the rows that are needed, `transformers` loads the model for its table",
    "prompts.items": "the prompts themselves, in place of a file",
    "prompts.path": "a file of prompts",
    "prompts.chat": "apply the model's chat template",
    "prompts.system": "system message for every prompt",
    "prompts.limit": "read only the first prompts",
    "prompts.id_key": "key or path of an entry's id",
    "prompts.prompt_key": "key or path of an entry's text",
    "prompts.reference_key": "key or path of an entry's references",
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
    "scoring.quality": "measures against references: names, or functions of your own as `module.function`",
    "scoring.primary": "the measure that is shown first; null: the first of `scoring.quality`",
    "tracking.in_process": "publish from the process with the engine: less memory, slower generation",
    "sweep.resume": "`true`: continue what the same command began; `false`: begin anew; `force`: mix engine versions",
    "sweep.on_error": "`continue`, or `stop` at the first point that fails",
    "sweep.max_failures": "end the sweep when more points than this have failed; null: never",
    "sweep.objective": "objective of a search: `minimize:MEASURE`, `maximize:MEASURE`, `closest:MEASURE:0.5`, `…:50%`",
    "sweep.helpers": "worker processes; 0: threads; null: one for every four cores, at least one and at most four",
    "sweep.gpu_scoring": "find nearest tokens of large vocabularies on the GPU, in at most 3 % of its memory",
    "engine.served_model": "name of the model on the server; null: its only one",
    "engine.max_in_flight": "requests sent at a time",
    "engine.connect_timeout": "seconds for a connection",
    "engine.read_timeout": "seconds for a whole answer, once connected",
    "engine.url": "address of the server, with or without `/v1`",
    "engine.threads": "threads on a CPU; null: one for a small model, else one per core",
    "engine.prefix_caching": "reuse the KV cache of equal beginnings, such as an untouched system prompt",
    "hydra.launcher.workers": "processes, each with its own engine; 1: only this one",
    "hydra.launcher.shards": "number of shards; null: chosen by the launcher",
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
LAUNCHERS = {
    "local": local_launcher.LocalLauncher,
    "slurm": slurm_launcher.SlurmLauncher,
    "ray": ray_launcher.RayLauncher,
    "plan": plan_launcher.PlanLauncher,
}
SLURM_TIMES = {
    "timeout_min": "limit of a task, in minutes",
    "array_parallelism": "tasks at a time",
    "signal_delay_s": "seconds of warning before the limit",
}

# Measures that no function or class of their own describes: name, range, meaning.
DISTRIBUTIONS = (
    ("divergence/first_token_", "at the first token"),
    ("divergence/prefix_", "mean over the common prefix, with the first token that differs"),
)
DISTANCES = {
    "kl": ("0 to ∞", "KL(control‖point), nats"),
    "js": ("0 to ln 2", "Jensen-Shannon divergence, nats"),
    "top1": ("0 to 1", "agreement of the most probable token"),
    "unlisted": ("0 to 1", "probability beyond the listed tokens; KL and JS are too low where it is large"),
    "control_unlisted": ("0 to 1", "the same of the control"),
}
FORCED = (
    ("divergence/control_answer_logprob", "-∞ to 0", "control's answer under the transformed prompt"),
    ("divergence/control_answer_logprob_change", "-∞ to ∞", "the same, less that under the clean prompt"),
    ("divergence/answer_logprob", "-∞ to 0", "the point's answer under the clean prompt"),
)
PERTURBATION = (
    ("relative_l2", "0 to ∞", "‖ΔE‖/‖E‖ (Frobenius) over the whole prompt"),
    ("snr_db", "-∞ to ∞", "20·log10(‖E‖/‖ΔE‖); left out where nothing changed"),
    ("cosine", "-1 to 1", "mean cosine of a row with what it was"),
    ("norm_ratio", "0 to ∞", "‖E+ΔE‖/‖E‖"),
    ("changed", "0 to 1", "share of entries that differ after the cast"),
    ("nearest_token_flips", "0 to 1", "share of rows whose nearest token (L2) changed, of `scoring.nearest_rows`"),
    ("dose_requested", "", "dose that was asked for, in the unit of its parameter"),
    ("dose_achieved", "", "dose after the cast; in a composition each step has its own, `perturbation/0/dose_…`"),
    ("largest_entry", "0 to ∞", "largest absolute entry that was sent"),
    ("rows", "0 to ∞", "rows that were sent"),
    ("rows_kept", "0 to 1", "share of rows, before and after, that have a counterpart"),
)
COSTS = (
    ("cost/output_tokens", "mean length of an answer"),
    ("cost/truncated", "share of answers that ended at `sampling.max_tokens`"),
    ("cost/requests", "requests sent, with those of teacher forcing"),
    ("cost/prompt_tokens", "their prompt tokens"),
    ("cost/cached_prompt_tokens", "prompt tokens found in the engine's prefix cache"),
    ("cost/generated_tokens", "tokens generated"),
    ("cost/build_seconds", "seconds to build the requests"),
    ("cost/transform_seconds", "of these, in transforms"),
    ("cost/score_seconds", "seconds to score the point"),
    ("cost/shared/tokens_per_second", "speed of the batch that all points share"),
    ("cost/shared/engine_start_seconds", "seconds that engine starts took so far"),
    ("cost/shared/gpu_memory_gib", "GPU memory that the engine holds; only with a GPU"),
)
HEALTH = {
    "health/distinct_1": ("0 to 1", "different tokens over all tokens (Li et al. 2016, arXiv:1510.03055)"),
    "health/distinct_2": ("0 to 1", "the same for pairs of tokens"),
    "health/distinct_3": ("0 to 1", "the same for triples of tokens"),
    "health/longest_repeat": ("0 to ∞", "length in tokens of the longest n-gram that occurs twice"),
    "health/loop": ("0 or 1", "the answer ends in a repetition of some length"),
    "health/compression_ratio": ("0 to ∞", "bytes of the text over those that zlib makes of them"),
    "health/empty": ("0 or 1", "nothing but white space"),
    "health/non_printable": ("0 to 1", "share of control, surrogate, private-use and replacement characters"),
    "health/refusal": ("0 or 1", "a heuristic: English phrases at the start, listed in `scoring/health.py`"),
    "health/characters": ("0 to ∞", "length in characters"),
    "health/tokens": ("0 to ∞", "length in tokens"),
}


def pages() -> dict[Path, dict[str, Callable[[], str]]]:
    """Return the generated parts of each page, by name."""
    return {
        DOCS / "reference" / "configuration.md": {"configuration": configuration},
        DOCS / "reference" / "transforms.md": {
            "transforms": transform_table,
            "span": span_keys,
            "parameters": parameter_table,
        },
        DOCS / "reference" / "measures.md": {
            "quality": quality,
            "divergence": divergences,
            "health": healths,
            "perturbation": perturbations,
            "cost": costs,
        },
        DOCS / "fingerprint.md": {"fingerprint": fingerprint_keys.markdown},
    }


def with_part(text: str, name: str, part: str) -> str:
    """Return a page with `part` between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        SystemExit: the page has no such marks.
    """
    match = re.search(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"The page has no part <!-- {name} -->")
    return text[: match.end(1)] + part + text[match.start(2) :]


def updated(path: Path) -> str:
    """Return a page with its generated parts made anew."""
    text = path.read_text(encoding="utf-8")
    for name, make in pages()[path].items():
        text = with_part(text, name, make())
    return text


def main() -> None:
    """Write all pages, or check them."""
    stale = [path for path in pages() if updated(path) != path.read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is out of date: run scripts/docs/update_docs.py")
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(updated(path), encoding="utf-8")


# Configuration


def configuration() -> str:
    """Return a table of each section of the configuration."""
    lines = ["### Top level", "", *_table(("key", "default", "meaning"), _marked(TOP_LEVEL))]
    for name, section in SECTIONS.items():
        lines += ["", f"### {name}", "", *_key_table(name, section)]
    for name in ("vllm", "transformers", "server"):
        lines += ["", f"### engine={name}", "", *_key_table("engine", ENGINES[name])]
    for name, launcher in LAUNCHERS.items():
        lines += ["", f"### hydra/launcher={name}", "", *_node_table("hydra.launcher", f"launcher/{name}", launcher)]
    lines += ["", "### hydra/sweeper=optuna", ""]
    lines += _node_table("hydra.sweeper", "sweeper/optuna", optuna_sweeper.OptunaSweeper)
    return "\n".join(lines)


def span_keys() -> str:
    """Return a table of the keys of a span."""
    return "\n".join(_key_table("transform.span", Span))


def _key_table(prefix: str, section: type) -> list[str]:
    described = attributes(section)
    rows = []
    for field in fields(section):
        key = f"{prefix}.{field.name}"
        meaning = DESCRIPTIONS.get(key) or described[field.name]
        rows.append((key, _default(field), meaning))
    return _table(("key", "default", "meaning"), _marked(rows))


def _node_table(prefix: str, group: str, launcher: type) -> list[str]:
    node: Any = ConfigStore.instance().load(f"hydra/{group}.yaml").node
    described = attributes(launcher) | (SLURM_TIMES if group == "launcher/slurm" else {})
    rows, plain = [], []
    for key, value in OmegaConf.to_container(node).items():
        name = f"{prefix}.{key}"
        if meaning := DESCRIPTIONS.get(name) or described.get(key):
            rows.append((f"`{name}`", f"`{_show(value)}`", meaning))
        elif key != "_target_":
            plain.append(f"`{key}`")
    options = [(", ".join(plain), "`null`", "options of `sbatch`, under `hydra.launcher.`")] if plain else []
    return _table(("key", "default", "meaning"), options + rows)


def attributes(described: type) -> dict[str, str]:
    """Return what the sections `Attributes:` and `Args:` of a class's docstring say, by name, in YAML's words."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(described.__doc__ or "")
    for section in re.findall(r"^(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE):
        for names, meaning in re.findall(r"^ {4}([\w, ]+): ((?:.*\n?)(?: {8,}.*\n?)*)", section, re.MULTILINE):
            for name in names.split(", "):
                found[name] = _yaml_words(" ".join(meaning.split()).rstrip("."))
    return found


def _yaml_words(text: str) -> str:
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text


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
    return "{}" if value == {} else f"{value:g}" if isinstance(value, float) else str(value)


# Transforms


def transform_table() -> str:
    """Return the table of formulae."""
    return reference_table.markdown(own_transforms())


def own_transforms() -> list[type[Transform]]:
    """Return the transforms of this project, in their order."""
    return [transform for transform in TRANSFORMS.values() if transform.__module__.startswith("sweep.")]


def parameter_table() -> str:
    """Return a table of all parameters that docstrings describe, with the default span of each transform."""
    rows = [
        (f"`{transform.name}`", f"`{name}`", meaning)
        for transform in own_transforms()
        for name, meaning in attributes(transform).items()
    ]
    rows += [("with a vector", f"`vector.{name}`", meaning) for name, meaning in attributes(VectorSource).items()]
    return "\n".join(_table(("`transform=`", "parameter", "meaning"), rows))


# Measures


def quality() -> str:
    """Return the table of measures against references."""
    rows = [(f"`{name}`", _range(s.limits, s.yes_or_no), _summary(s.function)) for name, s in QUALITY.items()]
    return _measures(rows)


def divergences() -> str:
    """Return the table of measures against the control."""
    functions = (
        (divergence.first_divergence, "0 to ∞"),
        (divergence.prefix_agreement, "0 to 1"),
        (divergence.token_agreement, "0 to 1"),
        (divergence.edit_distance, "0 to 1"),
    )
    rows = [(f"`divergence/{function.__name__}`", values, _summary(function)) for function, values in functions]
    for prefix, where in DISTRIBUTIONS:
        for name in Distance.__slots__:  # type: ignore[attr-defined]
            values, meaning = DISTANCES[name]
            rows.append((f"`{prefix}{name}`", values, f"{meaning}; {where}"))
    rows += [(f"`{name}`", values, f"mean log-probability per token: {meaning}") for name, values, meaning in FORCED]
    return _measures(rows)


def healths() -> str:
    """Return the table of measures of an answer by itself."""
    missing = health.health("text", [1, 2, 3]).keys() ^ HEALTH.keys()
    assert not missing, f"HEALTH does not match sweep.scoring.health: {missing}"
    return _measures([(f"`{name}`", *described) for name, described in HEALTH.items()])


def perturbations() -> str:
    """Return the table of measures of the change of the embeddings."""
    return _measures([(f"`perturbation/{name}`", values, meaning) for name, values, meaning in PERTURBATION])


def costs() -> str:
    """Return the table of costs."""
    return "\n".join(_table(("measure", "meaning"), [(f"`{name}`", meaning) for name, meaning in COSTS]))


def measure_names() -> set[str]:
    """Return the names of all measures that the pages list."""
    text = "\n".join(make() for make in (quality, divergences, healths, perturbations, costs))
    return set(re.findall(r"^\| `([\w/]+)`", text, re.MULTILINE))


def _measures(rows: Iterable[tuple[str, str, str]]) -> str:
    return "\n".join(_table(("measure", "values", "meaning"), rows))


def _range(limits: tuple[float, float], yes_or_no: bool) -> str:
    low, high = limits
    return "0 or 1" if yes_or_no else f"{low:g} to {high:g}"


def _summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring, without its verb."""
    paragraph = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)])\. ", paragraph)[0].rstrip(".")
    return re.sub(r"^Return (the )?", "", first)


def _marked(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    for key, default, meaning in rows:
        yield f"`{key}`", f"`{default}`", meaning


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]]


if __name__ == "__main__":
    assert all(is_dataclass(section) for section in SECTIONS.values())
    main()
