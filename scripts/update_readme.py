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
    """Return the README with its generated parts made anew, each between `<!-- name -->` and `<!-- /name -->`."""
    for name, make in PARTS.items():
        whole = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        match = whole.search(text)
        if match is None:
            raise SystemExit(f"README.md has no part <!-- {name} -->")
        text = text[: match.end(1)] + make() + text[match.start(2) :]
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
