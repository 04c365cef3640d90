"""Write the parts of README.md that are made from the code: the table of transforms.

.venv/bin/python scripts/update_readme.py
"""

from __future__ import annotations

import re
from pathlib import Path

from sweep.transforms import catalogue

README = Path(__file__).parents[1] / "README.md"
PARTS = {"transforms": catalogue.markdown}


def updated(text: str) -> str:
    """Return the README with its generated parts made anew."""
    for name, make in PARTS.items():
        text = with_part(text, name, make())
    return text


def with_part(text: str, name: str, part: str) -> str:
    """Return the README with this between `<!-- name -->` and `<!-- /name -->`."""
    match = re.search(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"README.md has no part <!-- {name} -->")
    return text[: match.end(1)] + part + text[match.start(2) :]


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
