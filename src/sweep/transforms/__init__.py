"""Transforms of a prompt's embedding rows.  Importing this package registers those of ours; plugins add theirs."""

from sweep.errors import TransformError
from sweep.transforms.base import TRANSFORMS, Rearranged, Rearrangement, Transform, register
from sweep.transforms.context import Context, Corpus, Table
from sweep.transforms.identity import Identity
from sweep.transforms.pipeline import CONTROLS, Pipeline, Stage
from sweep.transforms.rows import Rows
from sweep.transforms.span import Span, parse_span

# Each registers its transforms, in the order in which the catalogue lists them.
from sweep.transforms import size, noise, direction, mixing, geometry, precision  # isort: skip  # noqa: F401
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
