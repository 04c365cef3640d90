"""Pages: short, linked to what exists, in plain words, and current where they are generated."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest
from doc_pages import README, ROOT, docs_script, pages

from sweep.config.schema import SECTIONS

README_LINES, README_WORDS, PAGE_LINES = 180, 1200, 200
# Words of an earlier style that readers stumbled over, and what private places look like.
BANNED = (
    r"what is (said|told|asked)",
    r"let(ting)? go of",
    r"\bof (ours|mine|one's own)\b",
    r"\blest\b",
    r"(?<!there )\b(is|are) no (?!longer|more than|less than)[a-z]+",
    r"\bha(s|ve) not the\b",
    r"\bgoes on\b",
    r"\boutwait",
    r"none the less",
    r"\bbesides? (the|a|an|it|them|each|other|your|its)\b",
    r"\btak(e|es|en|ing) up\b(?! to)",
    r"\bbear(s|ing)?\b",
    r"in the making",
    r"whose life",
    r"\bas of `",
    r"/(tmp|work|root)/",  # paths of one machine
)
GENERATED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)  # their words are those of docstrings
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= README_LINES
    assert len(text.split()) <= README_WORDS


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("\n") <= PAGE_LINES


@pytest.mark.parametrize("page", pages()[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_page_begins_with_a_title_and_a_command(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    first = next(number for number, line in enumerate(lines) if line.startswith("```"))
    assert first <= 4 and lines[first] in ("```sh", "```console", "```python"), f"{lines[first]} in line {first + 1}"


@pytest.mark.parametrize("page", [*pages(), ROOT / "docs" / "llms.txt"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    missing = []
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_index() -> None:
    index = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index)}
    assert set(pages()[1:]) - linked == set()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_words_are_plain(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    private = re.findall(BANNED[-1], text)
    words = CODE.sub("`code`", GENERATED.sub("", text))
    found = [match[0] for pattern in BANNED[:-1] for match in re.finditer(pattern, words, re.IGNORECASE)]
    assert not found + private


@pytest.mark.parametrize("package", sorted(path.name for path in (ROOT / "src" / "sweep").iterdir() if path.is_dir()))
def test_strings_and_comments_of_the_code_use_no_banned_phrase(package: str) -> None:
    found = []
    for path in (ROOT / "src" / "sweep" / package).rglob("*.py"):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in (tokenize.STRING, tokenize.COMMENT):
                    text = CODE.sub("`code`", token.string)
                    phrases = [match[0] for pattern in BANNED for match in re.finditer(pattern, text, re.IGNORECASE)]
                    phrases += re.findall(r"[a-z]\.  [A-Z]", text)  # two spaces after a full stop
                    found += [f"{path.name}:{token.start[0]}: {phrase}" for phrase in phrases]
    assert not found


def test_generated_pages_are_current() -> None:
    script = docs_script("update_docs")
    for path in script.pages():
        assert script.updated(path) == path.read_text(encoding="utf-8"), "run scripts/docs/update_docs.py"


def test_page_has_the_table_of_architectures() -> None:
    text = docs_script("update_docs").ARCHITECTURES.read_text(encoding="utf-8")
    assert "<!-- architectures -->" in text and "| `llama` |" in text


def test_configuration_lists_every_key() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    for section, schema in SECTIONS.items():
        for name in schema.__dataclass_fields__:
            assert f"| `{section}.{name}` |" in text


def test_configuration_lists_every_engine_and_launcher() -> None:
    """Also one that is only a module or a registration: nothing else names it."""
    pages = (ROOT / "docs" / "reference" / name for name in ("configuration.md", "launchers-and-searches.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    listed = set(re.findall(r"^### (engine|hydra/launcher|hydra/sweeper)=(\w+)$", text, re.MULTILINE))
    source = ROOT / "src"
    expected = {("engine", file.parent.name) for file in (source / "sweep" / "engines").glob("*/config.py")}
    for kind in ("launcher", "sweeper"):
        modules = (source / "hydra_plugins" / f"sweep_{kind}s").glob("[!_]*.py")
        expected |= {(f"hydra/{kind}", file.stem) for file in modules}
    assert listed == expected


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "developer").glob("*.md")), ids=lambda page: page.name)
def test_names_in_developer_pages_are_in_the_code(page: Path) -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "pyproject.toml"]
    known = set(re.findall(r"\w+", "\n".join(file.read_text(encoding="utf-8") for file in files)))
    known |= {file.stem for file in files}
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", text)
    names = {name for span in spans for name in re.findall(r"\w+", span)}
    compound = {name for name in names if re.search(r"[a-z][A-Z]|_", name)}
    assert compound - known == set()
