"""Journals for tests: points, answers, and the files that hold them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from sweep.engines.base import Completion, Generation
from sweep.points.fingerprint import PointFingerprint
from sweep.storage.journal import Journal, Recovered

HEADER = {"sweep": "first", "engine": "vllm 0.32.0"}


def identity(name: object) -> PointFingerprint:
    canonical = f'{{"name":"{name}"}}'
    return PointFingerprint((canonical,), sha256(canonical.encode()).hexdigest(), "")


def answer(text: str = "an answer", tokens: int = 64) -> Generation:
    return Generation("key", (Completion(text, tuple(range(1000, 1000 + tokens)), "length"),))


def path_of(root: Path, name: object) -> Path:
    """Return the only file of a fingerprint."""
    (path,) = root.glob(f"*/{identity(name).fingerprint}/*.jsonl")
    return path


def texts(recovered: Recovered) -> dict[tuple[str, str], str]:
    return {key: entry.completions[0].text for key, entry in recovered.entries.items()}


def three_answers(journal: Journal) -> Path:
    """Write three answers of a point into a journal; return the journal's folder."""
    writer = journal.writer(HEADER)
    for prompt in "abc":
        writer.append(identity(0), "answer", prompt, answer(prompt))
    writer.close()
    return journal._root
