"""Entry point of `python -m sweep` and of the command `sweep`."""

import atexit
import sys

from sweep.console import signals, streams
from sweep.core import provenance


def main() -> None:
    """Run the command line and exit; see `cli.main` and, for `sweep vectors`, `cli.vectors`."""
    streams.install()
    if "--version" in sys.argv[1:]:
        print(provenance.summary())
        return
    signals.install()  # before the imports, which take a second
    code = 0
    try:
        _run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):  # libraries may exit with a message
            print(end.code, file=sys.stderr)
    if "torch" in sys.modules:  # a regular interpreter shutdown with PyTorch and vLLM takes two seconds
        atexit._run_exitfuncs()
        signals.leave(code)
    sys.exit(code)


def _run() -> None:
    if sys.argv[1:2] == ["vectors"]:  # an override would have an equals sign
        from sweep.cli.vectors import main as list_vectors

        list_vectors(sys.argv[2:])
        return
    from sweep.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
