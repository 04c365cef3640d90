"""Dry run: show what a sweep would do, without importing PyTorch, which would take most of the time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sweep.config.combinations import describe_zip
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.execution.resume import ResumeIndex
from sweep.inputs.clock import SweepClock, describe_read
from sweep.inputs.input_store import InputStore
from sweep.inputs.packaged_model import Packages
from sweep.launch.backend import ShardBackend
from sweep.planning.plan import describe, describe_prompts, make_plan
from sweep.planning.shown_prompts import Shown, shown_prompts
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point, with_controls
from sweep.storage.archive import Archive
from sweep.storage.journal import Journal

QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # variable that keeps Transformers from warning about missing PyTorch


class DryRun:
    """Replacement of `SweepRunner` that checks and lists points and starts nothing. Owned by the main thread."""

    def __init__(
        self, base: SweepConfig, sweep_id: str, terminal: Terminal, backend: ShardBackend | None = None
    ) -> None:
        self._terminal, self._backend, self._zip = terminal, backend, base.sweep.zip
        self._show_prompt, self._shown = base.sweep.show_prompt, Shown()
        folder = base.sweep.root / "sweeps" / sweep_id
        packages = Packages(base.sweep.root, terminal.waiting)
        self._fingerprints = Fingerprints(InputStore(SweepClock(folder, keep=False), packages))
        archive = Archive(folder / "points")
        self._resume = ResumeIndex(
            archive, Journal(base.sweep.root / "journal"), sweep_id, base.sweep.resume, query_servers=False
        )

    def show(self, points: Sequence[Point]) -> None:
        """List points and their controls, after all checks that need no embeddings.

        Raises:
            ConfigError: An input is wrong.
        """
        if not any(point.config.model.trust_remote_code for point in points):
            _import_transformers_without_torch()
        distinct = {point.key: point for _, point in self._fingerprints.distinct(points)}
        tasks = self._resume.tasks(with_controls(list(distinct.values()), ()), self._fingerprints)
        groups = make_plan(self._resume.todo(tasks), self._fingerprints.inputs, dry_run=True)
        for shown in shown_prompts(points, self._fingerprints.inputs, self._show_prompt, self._shown):
            self._terminal.marked(shown.title, shown.pieces)
        notes = [
            *describe_zip(self._zip),
            *(describe_read(instant) for instant in self._fingerprints.inputs.clock.reads),
        ]
        if groups and (older := self._resume.older_answers()):
            notes.append(older)
        for line in describe_prompts(groups):
            self._terminal.say(line)
        for line in dict.fromkeys(notes):
            self._terminal.result(line)
        for line in describe(groups, len(tasks), len(self._backend.cut(groups)) if self._backend else None):
            self._terminal.result(line)


def _import_transformers_without_torch() -> None:
    """Import Transformers as if PyTorch were not installed, which saves three seconds.

    Configurations and tokenizers do not depend on PyTorch. Transformers stays without it in this process.
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return
    os.environ.setdefault(QUIET, "1")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from transformers.utils import import_utils

        import_utils.is_torch_available()  # Transformers caches the answer
    finally:
        del sys.modules["torch"]
