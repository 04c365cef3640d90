"""`python -m sweep.tracking.local DIR`: prepare the store in a folder of sweeps for MLflow's server.

Prints the address of the store and that of the artifact folder, one per line. Used by `scripts/ui`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweep.errors import ConfigError
from sweep.tracking import sqlite
from sweep.tracking.store import first_line, import_mlflow, store_lock


def main() -> None:
    """Migrate and relocate the store if needed; exit with code 2 if it cannot be used."""
    root = Path(sys.argv[1]).resolve()
    file = root / sqlite.FILE
    import_mlflow()
    import sqlalchemy

    from sweep.tracking import schema

    try:
        uri = sqlite.uri_of(file)
        with store_lock(root):
            for note in schema.prepare(sqlalchemy.make_url(uri), root):
                print(note, file=sys.stderr)
    except Exception as error:  # SQLite and MLflow's migrations may raise anything
        print(f"{file}: {error if isinstance(error, ConfigError) else first_line(error)}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    print(uri)
    print((root / "artifacts").as_uri())


if __name__ == "__main__":
    main()
