"""Who begins at docs/README.md finds every page, and every link leads somewhere."""

import re
from pathlib import Path

import pytest
from page_code import PAGES, ROOT, name_of

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OTHERS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "THREATS.md")]


def links(page: Path) -> list[str]:
    """Links to files and headings of this repository, outside code."""
    text = re.sub(r"`[^`\n]*`(?!\])", "", FENCED.sub("", page.read_text("utf-8")))
    return [link for link in LINK.findall(text) if ":" not in link]


def anchors(page: Path) -> set[str]:
    """As code hosts name headings: small letters, dashes for blanks, no other signs."""
    headings = re.sub(r"\]\([^)]*\)", "", "\n".join(HEADING.findall(FENCED.sub("", page.read_text("utf-8")))))
    return set(re.sub(r"[^\w\- \n]", "", headings).lower().replace(" ", "-").split("\n"))


def test_every_page_is_in_a_table_of_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    rows = [line.split("|")[1] for line in index.read_text("utf-8").splitlines() if line.startswith("| [")]
    named = {(index.parent / link.partition("#")[0]).resolve() for row in rows for link in LINK.findall(row)}
    pages = {page for page in PAGES if page not in (index, ROOT / "README.md")}
    assert {name_of(page) for page in pages - named} == set()
    assert {str(page) for page in named - pages} == set()


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{link}: no such heading"


def test_every_example_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    found = sorted(path.name for path in (ROOT / "examples").iterdir() if path.name != "__pycache__")
    assert [name for name in found if f"(examples/{name}" not in text] == []
