"""The code on Markdown pages: which blocks there are, what is run of them, and why something is not.

What is run: ```` ```python ````, ```` ```console ```` (its ``$`` lines; what follows is their output) and
```` ```sh ````. A ```` ```text ```` block right below Python is what that prints. Comments above a block speak of it:

- ``<!-- not run: REASON -->``: nothing of it is run;
- ``<!-- not run "edge-llama chat": REASON -->``: its commands that begin so are not;
- ``<!-- output varies: REASON -->``, the same with a command: it is run, and what it prints is not compared.

``PYTHONPATH=.:tests python tests/page_code.py`` writes the table of what is not run into docs/checked.md anew.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""The pages whose code is run; CONTRIBUTING's commands are those of `make` and take minutes to hours."""
RUN = ("python", "console", "sh")
OTHER_CODE = ("kotlin", "csharp")
_FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
_COMMENT = re.compile(r'^<!-- (not run|output varies)(?: "([^"]+)")?: (.+) -->$')
_LISTED = ROOT / "docs" / "checked.md"
BEGIN, END = "<!-- not run on pages: tests/page_code.py -->\n", "<!-- /not run on pages -->\n"


@dataclass(frozen=True, slots=True)
class Comment:
    """What a comment above a block says of it, or of its commands that begin with ``prefix``."""

    what: str
    prefix: str
    reason: str


@dataclass(frozen=True, slots=True)
class Command:
    """A line at a shell's prompt, and the lines that it printed when the page was written."""

    line: int
    text: str
    printed: str


@dataclass(frozen=True, slots=True)
class Block:
    """Code on a page; ``line`` is where its first line stands there."""

    page: Path
    line: int
    language: str
    code: str
    comments: tuple[Comment, ...]

    def why(self, what: str, text: str = "") -> str | None:
        """The reason that is given for all of it, or for the command ``text``: ``not run`` or ``output varies``."""
        for comment in self.comments:
            if comment.what == what and text.startswith(comment.prefix):
                return comment.reason
        return None

    def commands(self) -> Iterator[Command]:
        """Those of a console with what they print; every line of a shell script as one command without."""
        if self.language == "sh":
            yield Command(self.line, self.code, "")
            return
        lines = self.code.splitlines()
        begins = [at for at, line in enumerate(lines) if line.startswith("$ ")]
        for at, end in zip(begins, [*begins[1:], len(lines)], strict=False):  # none: two lists of 0 and 1
            yield Command(self.line + at, lines[at][2:], "\n".join(lines[at + 1 : end]))


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    comments: list[Comment] = []
    fence, language, begin, code = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if fence and line == fence:
            yield Block(page, begin, language, "".join(f"{each}\n" for each in code), tuple(comments))
            fence, comments = "", []
        elif fence:
            code.append(line)
        elif found := _FENCE.match(line):
            fence, language, begin, code = found[1], found[2], number + 1, []
        elif found := _COMMENT.match(line):
            comments.append(Comment(found[1], found[2] or "", found[3]))
        elif line:
            comments = []


def name_of(page: Path) -> str:
    """As people name it: ``docs/python.md``."""
    return page.relative_to(ROOT).as_posix()


def not_run() -> Iterator[tuple[str, str, str]]:
    """Page, what is not run there (the beginning of a command, or of a block), and why; each once."""
    found: dict[tuple[str, str, str], None] = {}
    for block in (block for page in PAGES for block in blocks(page)):
        first = block.code.partition("\n")[0].removeprefix("$ ").partition(" #")[0].strip()
        for comment in (comment for comment in block.comments if comment.what == "not run"):
            found[name_of(block.page), comment.prefix or first, comment.reason] = None
    yield from found


def listed() -> str:
    """The table that docs/checked.md shall have."""
    rows = [f"| [{page}]({_link(page)}) | `{_cell(what)}` | {reason} |\n" for page, what, reason in not_run()]
    return "".join(["| page | what begins so | why it is not run |\n", "|---|---|---|\n", *rows])


def _link(page: str) -> str:
    return page.removeprefix("docs/") if page.startswith("docs/") else f"../{page}"


def _cell(text: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return shown.replace("|", "\\|").replace("`", "'")


def on_page() -> str:
    """The table that it has."""
    return _LISTED.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = _LISTED.read_text("utf-8")
    _LISTED.write_text(text.replace(BEGIN + on_page() + END, BEGIN + listed() + END), "utf-8")
