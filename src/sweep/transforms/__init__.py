"""Transforms of a prompt's embedding rows.  Importing this package registers those of ours; plugins add theirs."""

from sweep.transforms.base import TRANSFORMS, Context, Transform, register
from sweep.transforms.identity import Identity
from sweep.transforms.noise import Noise
from sweep.transforms.scale import Scale

__all__ = ["TRANSFORMS", "Context", "Identity", "Noise", "Scale", "Transform", "register"]
