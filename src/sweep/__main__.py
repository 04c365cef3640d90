"""`python -m sweep`, and the command `sweep`."""

import atexit
import sys

from sweep import signals


def main() -> None:
    """Run the command line and end the process; see `cli.main`."""
    signals.install()  # before the imports, which take a second
    from sweep.cli import main as run

    code = 0
    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):  # as a library may
            print(end.code, file=sys.stderr)
    if "torch" in sys.modules:  # to take PyTorch and vLLM to pieces would take two seconds, with all said and written
        atexit._run_exitfuncs()
        signals.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
