"""Transforms of a prompt's embedding rows. Importing this package registers the built-in ones; plugins add others."""

from sweep.errors import TransformError
from sweep.inputs.span import Span, parse_span
from sweep.transforms.base import TRANSFORMS, Rearranged, Rearrangement, Transform, register
from sweep.transforms.context import Context, Corpus, Table
from sweep.transforms.identity import Identity
from sweep.transforms.pipeline import CONTROLS, Pipeline, Stage
from sweep.transforms.rows import Rows

# Each module registers its transforms. This is the order of the table in docs/reference/transforms.md.
from sweep.transforms import norms, noise, direction, mixing, geometry, precision  # isort: skip  # noqa: F401
from sweep.transforms import masking, order, length, vocabulary  # isort: skip  # noqa: F401
from sweep.transforms import injection, encoder, text  # isort: skip  # noqa: F401

__all__ = [
    "CONTROLS",
    "TRANSFORMS",
    "Context",
    "Corpus",
    "Identity",
    "Pipeline",
    "Rearranged",
    "Rearrangement",
    "Rows",
    "Span",
    "Stage",
    "Table",
    "Transform",
    "TransformError",
    "parse_span",
    "register",
]
