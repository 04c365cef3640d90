"""Reference tables of transforms: formulae and parameters."""

from __future__ import annotations

from doc_markdown import attributes, table

from sweep.transforms import TRANSFORMS, Transform, reference_table
from sweep.transforms.vectors import VectorSource


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
    return "\n".join(table(("`transform=`", "parameter", "meaning"), rows))
