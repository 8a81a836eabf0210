"""What MkDocs does to the pages beyond docs/ as it lies there (``make docs``; see mkdocs.yml).

- The navigation is docs/README.md: its headings, and the pages that its tables link in their first column.
- A link that leaves docs/ (``../README.md``, a test, a file of results) leads to a copy of the file in the site.
- A page of docs/reference/ is a table of names; below it each name's docstring follows, by mkdocstrings.
- Roles in docstrings (``:class:`Chat```) become links.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
COPIES = "repository"
"""The folder of the site where files lie that docs/ has not."""
LANGUAGES = {".py": "python", ".json": "json", ".sh": "sh", ".toml": "toml"}
GIVEN = {"edge_llama.Chat", "edge_llama.Generation", "edge_llama.Model"}
"""Classes whose objects calls give: how they are constructed is nobody's business."""
_AS_GIVEN = "    options:\n      merge_init_into_class: false\n"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_NAME = re.compile(r"^\| \[`(edge_llama[\w.]*)`\]\([^)]*\)", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>([^<]+)</code>")
_sources: dict[str, str] = {}
"""Pages that are copies, by their place in the site: where their files lie in the repository."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = navigation((ROOT / "docs" / "README.md").read_text("utf-8"))
    return config


def navigation(index: str) -> list[Any]:
    """Of the index's text: each heading with the pages below it."""
    nav: list[Any] = ["README.md"]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| [")]
        pages = [{name: link} for cell in cells for name, link in re.findall(r"\[([^\]]+)\]\(([^)#]+\.md)\)", cell)]
        if pages:
            nav.append({title.strip(): [page for page in pages if not next(iter(page.values())).startswith("..")]})
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    _sources.clear()  # of the build before, where `mkdocs serve` builds again
    todo = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    while todo:
        source = todo.pop()
        for target in linked(source, (ROOT / source).read_text("utf-8")):
            place = place_of(target)
            if not target.startswith("docs/") and place not in _sources:
                _sources[place] = target
                files.append(File.generated(config, place, content=copied(target)))
                todo += [target] * target.endswith(".md")
    return files


def linked(source: str, markdown: str) -> Iterator[str]:
    """Files of the repository that a page links to."""
    for _, link, _ in _LINK.findall(markdown):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if not target.startswith("..") and (ROOT / target).is_file():
            yield target


def place_of(target: str) -> str:
    """Where a file of the repository lies in the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"{COPIES}/{target}" if target.endswith((".md", ".png", ".svg")) else f"{COPIES}/{target}.md"


def copied(target: str) -> str | bytes:
    """A page with the text of a file; what is no text as it is."""
    data = (ROOT / target).read_bytes()
    if target.endswith((".png", ".svg")):
        return data
    text = data.decode("utf-8")
    if target.endswith(".md"):
        return text
    return f"# `{target}`\n\n````{LANGUAGES.get(Path(target).suffix, 'text')}\n{text}\n````\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs'
    place = page.file.src_uri
    source = _sources.get(place, f"docs/{place}")
    if source.startswith("docs/reference/"):
        names = _NAME.findall(markdown)
        markdown = _NAME.sub(r"| [`\1`][\1]", markdown)
        markdown += "".join(f"\n::: {name}\n{_AS_GIVEN * (name in GIVEN)}" for name in names)
    if source.endswith(".md"):
        markdown = _LINK.sub(lambda found: found[1] + in_site(found[2], source, place) + found[3], markdown)
    return markdown


def in_site(link: str, source: str, place: str) -> str:
    """A link of the file ``source``, as it must be on the site's page at ``place``."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target.startswith("..") or not (ROOT / target).is_file():
        return link
    return posixpath.relpath(place_of(target), posixpath.dirname(place))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs'
    return _ROLE.sub(lambda found: reference(html.unescape(found[1])), content)


def reference(name: str) -> str:
    """A link to a name's docstring, if it has one in the site; the name from its class on, as code."""
    parts = name.split(".")
    begin = next((at for at, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)  # a class, or the last
    shown = html.escape(".".join(parts[begin:]))
    whole = name if name.startswith("edge_llama") else f"edge_llama.{name}"
    return f'<autoref identifier="{html.escape(whole)}" optional><code>{shown}</code></autoref>'
