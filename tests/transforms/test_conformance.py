"""Every registered transform holds to the contract, by being registered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from sweep.testing import CHECKS, Check, check_transform, demo_corpus
from sweep.transforms import TRANSFORMS, Context, Transform, TransformError, register

CASES = [
    pytest.param(check, transform, parameters, id=f"{name}-{i}-{check.__name__}")
    for name, transform in sorted(TRANSFORMS.items())
    if transform.__module__.startswith("sweep.")  # others are what other tests have registered
    for i, parameters in enumerate(transform.examples)
    for check in CHECKS
]


@pytest.mark.parametrize(("check", "transform", "parameters"), CASES)
def test_registered_transforms_conform(check: Check, transform: type[Transform], parameters: Mapping[str, Any]) -> None:
    check(transform, parameters, demo_corpus())


def test_every_transform_is_tested() -> None:
    untried = {name for name, transform in TRANSFORMS.items() if not transform.examples}
    assert untried <= {"identity", "encoder"}  # the control, and what needs a model that only its own test makes


DIGEST = """
import hashlib
from sweep.config.dataclass_reader import build_pipeline
from sweep.testing import demo_corpus
from sweep.transforms import TRANSFORMS
corpus, digest = demo_corpus(), hashlib.sha256()
for name, transform in TRANSFORMS.items():
    for parameters in transform.examples:
        for encoded in corpus.prompts:
            rows = corpus.table.rows(encoded.token_ids)
            pipeline = build_pipeline({"name": name, **parameters})
            rows, _ = pipeline.apply(rows, encoded.prompt.id, corpus, 3, corpus.table.dtype)
            digest.update(rows.tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_results_are_the_same_in_every_process() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, other = [process.communicate(timeout=300)[0].strip() for process in running]
    assert one == other and len(one) == 64 and [process.returncode for process in running] == [0, 0]


class TestTheBatteryItself:
    """A transform that breaks a rule is found out, one that breaks none is not."""

    @pytest.mark.parametrize(
        ("what", "said"),
        [
            ("nothing", None),
            ("in place", "changes"),
            ("global generator", "draws from the global generator"),
            ("dose", "is not the identity"),
            ("nan", "returns NaN or infinity for rows of zeros"),
            ("shape", "must return rows of shape"),
            ("dtype", "float"),
            ("order", "depends on the order"),
            ("undo", "undo_rotation does not return the rows before the transform"),
        ],
    )
    def test_checks_detect_broken_transforms(self, what: str, said: str | None) -> None:
        calls = []

        @dataclass(frozen=True)
        class Broken(Transform):
            """Broken; `amount`."""

            dose: ClassVar[str] = "amount"
            neutral: ClassVar[float] = 0.0
            examples: ClassVar = ({"amount": 2.0},)

            amount: float = 0.0

            def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
                calls.append(1)
                if what == "in place":
                    return rows.mul_(1 + self.amount)
                if what == "global generator":
                    return rows + self.amount * torch.randn(rows.shape)
                if what == "dose":
                    return rows + self.amount + 1
                if what == "nan":
                    return rows + self.amount * rows / rows.norm(dim=1, keepdim=True)
                if what == "shape":
                    return rows[:-1] if self.amount else rows
                if what == "dtype":
                    return (rows + self.amount).double()
                if what == "order":
                    return rows + self.amount * len(calls)
                return rows + self.amount

            def undo_rotation(self, rows: torch.Tensor, context: Context) -> torch.Tensor | None:
                return rows if what == "undo" else None

        register(f"broken {what}")(Broken)
        try:
            if said is None:
                check_transform(Broken)
            else:
                with pytest.raises((AssertionError, TransformError), match=said):
                    check_transform(Broken)
        finally:
            del TRANSFORMS[f"broken {what}"]
