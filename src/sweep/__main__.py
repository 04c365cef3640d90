"""`python -m sweep`, and the command `sweep`."""

from sweep import signals


def main() -> None:
    """Run the command line; see `cli.main`."""
    signals.install()  # before the imports, which take a second
    from sweep.cli import main as run

    run()


if __name__ == "__main__":
    main()
