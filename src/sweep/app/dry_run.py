"""A dry run: what a sweep would do, told without PyTorch, whose import alone takes longer than an answer should."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sweep.config import SweepConfig
from sweep.disk.archive import Archive
from sweep.disk.journal import Journal
from sweep.identity import Contents
from sweep.memory import Memory
from sweep.plan import describe, make_plan
from sweep.point import Point, with_controls
from sweep.shards.crew import Crew
from sweep.terminal import Terminal

QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


class Preview:
    """What takes a `Runner`'s place where nothing is to be run."""

    def __init__(self, base: SweepConfig, sweep_id: str, terminal: Terminal, crew: Crew | None = None) -> None:
        self._terminal, self._crew = terminal, crew
        self._contents = Contents()
        archive = Archive(base.sweep.root / "sweeps" / sweep_id / "points")
        self._memory = Memory(archive, Journal(base.sweep.root / "journal"), sweep_id, base.sweep.resume)

    def show(self, points: Sequence[Point]) -> None:
        """Check all that can be checked of points without their embeddings, and list them with their controls.

        Raises:
            ConfigError: an input is wrong.
        """
        if not any(point.config.model.trust_remote_code for point in points):
            _import_transformers_alone()
        distinct = {same.key: same for _, same in self._contents.distinct(points)}
        tasks = self._memory.tasks(with_controls(list(distinct.values()), ()), self._contents)
        groups = make_plan(self._memory.todo(tasks), on_paper=True)
        for line in describe(groups, len(tasks), len(self._crew.cut(groups)) if self._crew else None):
            self._terminal.result(line)


def _import_transformers_alone() -> None:
    """Import Transformers as if PyTorch were not there, which it would import for a tokenizer: three seconds more.

    Its configurations and tokenizers are the same without.  In this process it stays without.
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return
    os.environ.setdefault(QUIET, "1")  # that it is without
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from transformers.utils import import_utils

        import_utils.is_torch_available()  # it remembers the answer
    finally:
        del sys.modules["torch"]
