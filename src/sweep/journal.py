"""What has been generated, on disk: one JSON line for each generation, in one file for each point.

The journal is written before anything is scored or published, so that no tracker's failure loses a generation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from sweep.engines.base import Completion


class Journal:
    """An append-only record of finished generations."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def append(self, fingerprint: str, prompt_id: str, completions: Sequence[Completion]) -> None:
        """Record one prompt's answers under a point's fingerprint; the operating system has the line on return."""
        file = self._files.get(fingerprint)
        if file is None:
            file = self._files[fingerprint] = (self._folder / f"{fingerprint}.jsonl").open("a", encoding="utf-8")
        answers = [
            {"text": c.text, "token_ids": list(c.token_ids), "finish_reason": c.finish_reason} for c in completions
        ]
        file.write(json.dumps({"prompt_id": prompt_id, "completions": answers}) + "\n")
        file.flush()

    def finish(self, fingerprint: str) -> None:
        """Close the file of a point whose last generation is in."""
        file = self._files.pop(fingerprint, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close all files."""
        for fingerprint in list(self._files):
            self.finish(fingerprint)
