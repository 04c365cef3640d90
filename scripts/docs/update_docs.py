"""Write the generated parts of the documentation: reference tables of configuration, transforms, measures, fingerprint.

.venv/bin/python scripts/docs/update_docs.py            # writes them
.venv/bin/python scripts/docs/update_docs.py --check    # exit code 1 if a page is out of date

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else of a page is written by hand. The modules
`*_tables.py` make the parts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from configuration_tables import configuration, judge_keys, plugin_keys, span_keys
from measure_tables import measure_table
from transform_tables import parameter_table, transform_table

from sweep.points import fingerprint_keys
from sweep.scoring.registry import GROUPS

DOCS = Path(__file__).parents[2] / "docs"
ARCHITECTURES = DOCS / "guide" / "models-and-engines.md"  # written by scripts/bench/architectures.py


def pages() -> dict[Path, dict[str, Callable[[], str]]]:
    """Return the generated parts of each page, by name."""
    return {
        DOCS / "reference" / "configuration.md": {"configuration": configuration},
        DOCS / "reference" / "launchers-and-searches.md": {
            f"{kind}s": partial(plugin_keys, kind) for kind in ("launcher", "sweeper")
        },
        DOCS / "reference" / "transforms.md": {
            "transforms": transform_table,
            "span": span_keys,
            "parameters": parameter_table,
        },
        DOCS / "reference" / "measures.md": {group: partial(measure_table, group) for group in GROUPS},
        DOCS / "guide" / "judge-and-similarity.md": {"judge": judge_keys},
        DOCS / "fingerprint.md": {"fingerprint": fingerprint_keys.markdown},
    }


def with_part(text: str, name: str, part: str) -> str:
    """Return a page with `part` between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        SystemExit: the page has no such marks.
    """
    match = re.search(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"The page has no part <!-- {name} -->")
    return text[: match.end(1)] + part + text[match.start(2) :]


def updated(path: Path) -> str:
    """Return a page with its generated parts made anew."""
    text = path.read_text(encoding="utf-8")
    for name, make in pages()[path].items():
        text = with_part(text, name, make())
    return text


def main() -> None:
    """Write all pages, or check them."""
    stale = [path for path in pages() if updated(path) != path.read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is out of date: run scripts/docs/update_docs.py")
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(updated(path), encoding="utf-8")


if __name__ == "__main__":
    main()
