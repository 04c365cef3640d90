"""Command `sweep vectors FILE…`: lists the tensors of files for `transform.vector`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import sweep.util.environment  # noqa: F401 - before PyTorch, which reads these variables
from sweep.cli.messages import format_error
from sweep.errors import ConfigError
from sweep.inputs.vector_listing import describe

DESCRIPTION = "List the tensors of a file of vectors, and the overrides that use one."


def main(arguments: Sequence[str]) -> None:
    """Print what each file holds, and exit.

    Exit codes: 0; 2 if a file cannot be read.

    Args:
        arguments: the command line after `vectors`.
    """
    parser = argparse.ArgumentParser("sweep vectors", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=".safetensors, .npy, .npz, .pt, .gguf or .svec, or the folder of a sparse autoencoder or PEFT checkpoint",
    )
    code = 0
    for path in parser.parse_args(arguments).files:
        try:
            print(describe(path))
        except ConfigError as error:
            code = error.exit_code
            print(format_error(_sentence(error), code), file=sys.stderr)
    sys.exit(code)


def _sentence(error: ConfigError) -> str:
    text = str(error).removeprefix("transform.vector.path: ")
    return f"{text[:1].upper()}{text[1:]}" if text.startswith("there ") else text
