"""Every registered transform holds to the contract, by being registered."""

from __future__ import annotations

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
    for i, parameters in enumerate(transform.examples)
    for check in CHECKS
]


@pytest.mark.parametrize(("check", "transform", "parameters"), CASES)
def test_registered_transforms_conform(check: Check, transform: type[Transform], parameters: Mapping[str, Any]) -> None:
    check(transform, parameters, demo_corpus())


def test_every_transform_is_tried() -> None:
    untried = {name for name, transform in TRANSFORMS.items() if not transform.examples}
    assert untried <= {"identity", "encoder"}  # the control, and what needs a model that only its own test makes


class TestTheBatteryItself:
    """A transform that breaks a rule is found out."""

    @pytest.mark.parametrize("what", ["in place", "global generator", "dose", "nan", "shape", "dtype", "order"])
    def test_it_notices(self, what: str) -> None:
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

        register(f"broken {what}")(Broken)
        try:
            with pytest.raises((AssertionError, TransformError)):
                check_transform(Broken)
        finally:
            del TRANSFORMS[f"broken {what}"]
