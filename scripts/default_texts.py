"""Make the default texts of edge_llama/fidelity/data from Debian's packages, Python packages and this repository.

    python scripts/default_texts.py --packages FOLDER [--check]

Debian's packages are looked for in FOLDER and downloaded there by apt-get if they are missing, at the versions of
default_text_sources.py (Debian 12); of Python packages those installed are read, whose version is checked. Texts that
were written for this project lie in the data already and are left alone. ``--check`` compares and writes nothing.
"""

import argparse
import ast
import gzip
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.metadata import distribution, version
from pathlib import Path
from xml.etree import ElementTree

import default_text_tables
from default_text_sources import GENERATED, OWN, PACKAGES, SOURCES, Source

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "edge_llama" / "fidelity" / "data"
BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "pre", "div", "tr"})


class _Page(HTMLParser):
    """A page's paragraphs: white space closed up but in <pre>, navigation left out."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._parts: list[str] = []
        self._stack: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("br", "img", "link", "meta", "hr", "input"):
            return
        kind, named = (dict(attrs).get(name) or "" for name in ("class", "id"))
        hidden = (
            tag in ("head", "script", "style") or kind.startswith(("docnav", "toc")) or named in ("banner", "title")
        )
        if tag in BLOCKS:
            self._flush()
        self._stack.append((tag, hidden))

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self._flush()
        while self._stack and self._stack.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(hidden for _, hidden in self._stack):
            self._parts.append(data)

    def _flush(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        is_verbatim = any(tag == "pre" for tag, _ in self._stack)
        text = text.strip("\n").rstrip() if is_verbatim else " ".join(text.split())
        if text:
            self.paragraphs.append(text)


def html(path: Path) -> str:
    page = _Page()
    page.feed(path.read_text("utf-8"))
    return "\n\n".join(page.paragraphs)


def mallard(path: Path) -> str:
    """A page of GNOME's help: its title, paragraphs, steps and commands."""
    return "\n\n".join(text for element in ElementTree.parse(path).getroot() for text in _mallard_blocks(element))


def _mallard_blocks(element: ElementTree.Element) -> Iterator[str]:
    tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "info"
    if tag in ("info", "links"):
        return
    if tag in ("p", "title", "screen", "code"):
        text = "".join(element.itertext())
        yield text.strip("\n") if tag in ("screen", "code") else " ".join(text.split())
        return
    for child in element:
        yield from _mallard_blocks(child)


def dictionary(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def novel(path: Path, title: str) -> str:
    """One of R's character vectors in a database of them (zlib'd XDR, https://cran.r-project.org/doc/manuals/R-ints.html)."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        unpacker = zlib.decompressobj()
        values = unpacker.decompress(data[at + 4 :])  # after the length
        at = len(data) - len(unpacker.unused_data)
        lines = list(_strings(values))
        if lines[0].upper() == title:
            return "\n".join(lines)
    raise SystemExit(f"{path}: no {title}")


def _strings(values: bytes) -> Iterator[str]:
    for match in re.finditer(rb"\0\x04\0\x09(....)", values, re.DOTALL):
        length = struct.unpack(">I", match[1])[0]
        yield values[match.end() : match.end() + length].decode("ascii")


def docstrings(path: Path) -> str:
    """All strings of a Python file that are longer than a line: of mpmath's and SymPy's, their documentation."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant)]
    nodes.sort(key=lambda node: node.lineno)
    found = [str(node.value) for node in nodes if isinstance(node.value, str) and node.value.count("\n") > 3]
    return "\n\n".join(re.sub(r"^    ", "", text, flags=re.MULTILINE).strip() for text in found)


def plain(path: Path) -> str:
    return path.read_text("utf-8")


READERS: dict[str, Callable[[Path], str]] = {
    "html": html, "mallard": mallard, "dictionary": dictionary, "docstrings": docstrings, "plain": plain,
}  # fmt: skip


def unpacked(package: str, folder: Path) -> Path:
    """The root of a Debian package's files."""
    target = folder / "unpacked" / package
    if not target.exists():
        found = sorted(folder.glob(f"{package}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", f"{package}={PACKAGES[package].version}"], cwd=folder, check=True)
            found = sorted(folder.glob(f"{package}_*.deb"))
        is_version = subprocess.run(
            ["dpkg-deb", "--field", found[0], "Version"], capture_output=True, text=True, check=True
        )
        if is_version.stdout.strip() != PACKAGES[package].version:
            raise SystemExit(f"{found[0]} is {is_version.stdout.strip()}, expected {PACKAGES[package].version}")
        target.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", found[0], target], check=True)
    return target


def text_of(source: Source, folder: Path) -> str:
    """A document as it is in the data: files joined, a part of it, whole paragraphs."""
    package = PACKAGES[source.package]
    if package.kind == "debian":
        root = unpacked(source.package, folder) / package.root
    elif package.kind == "repository":
        return cut("\n\n".join(_of_commit(path, package.version) for path in source.files), source)
    elif package.kind == "python":
        root = Path(str(distribution(source.package).locate_file("")))
        if version(source.package) != package.version:
            raise SystemExit(f"{source.package} is {version(source.package)}, expected {package.version}")
    else:
        root = Path(package.root)
    if source.reader.startswith("novel "):
        return cut(novel(root / source.files[0], source.reader.removeprefix("novel ")), source)
    return cut("\n\n".join(READERS[source.reader](root / name) for name in source.files), source)


def _of_commit(path: str, commit: str) -> str:
    command = ["git", "show", f"{commit}:{path}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout


def cut(text: str, source: Source) -> str:
    """From the first paragraph after ``begin`` letters, up to the last that ends within ``most`` bytes of UTF-8.

    A last paragraph that would leave out more than a quarter ends with a line.
    """
    text = text.replace("\r\n", "\n").replace("\u00ad", "")
    if source.begin:
        text = text[text.index("\n\n", source.begin) + 2 :]
    if len(text.encode()) > source.most:
        text = text.encode()[: source.most].decode("utf-8", "ignore")
        text = text[: max(text.rfind("\n\n"), text.rfind("\n", len(text) * 3 // 4), len(text) // 2)]
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def licences_page(sizes: dict[str, int]) -> str:
    """LICENCES.md: a row for each document, and the licences that ask to go along."""
    parts = [(ROOT / "scripts" / "default_text_licences.md").read_text("utf-8").replace("\r\n", "\n")]
    head, licences = parts[0].split("<!-- tables -->\n")
    return head + "\n".join(f"{_table(half, sizes)}\n" for half in ("calibration", "evaluation")) + licences


def _table(half: str, sizes: dict[str, int]) -> str:
    head = [f"## The {half} half", "", "| text | bytes | from | licence | copyright |", "|---|---|---|---|---|"]
    rows = {source.path: _row(source) for source in SOURCES if source.half == half}
    for path, what in (OWN | GENERATED).items():
        if path.startswith(half):
            how = "computed" if path in GENERATED else "written"
            rows[path] = f"{how} for this project: {what} | MIT | {PACKAGES['edge-llama'].holders}"
    return "\n".join([*head, *(f"| {Path(path).name} | {sizes[path]:,} | {rows[path]} |" for path in sorted(rows))])


def _row(source: Source) -> str:
    package = PACKAGES[source.package]
    files = ", ".join(f"`{name}`" for name in source.files)
    what = f"{source.reader.removeprefix('novel ').title()} in " if source.reader.startswith("novel ") else ""
    return f"{what}{package.title} {package.version}: {files} | {package.licence} | {package.holders}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="Debian's packages, downloaded if missing")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if anything differs")
    options = parser.parse_args()
    options.packages.mkdir(parents=True, exist_ok=True)
    contents = {source.path: text_of(source, options.packages) for source in SOURCES}
    contents |= {path: getattr(default_text_tables, path.partition("/")[0])() for path in GENERATED}
    sizes = {path: len(text.encode()) for path, text in contents.items()}
    sizes |= {path: len((DATA / path).read_text("utf-8").encode()) for path in OWN}
    contents["LICENCES.md"] = licences_page(sizes)
    differing = [path for path, text in contents.items() if _old(DATA / path) != text]
    for path in differing:
        print(path if options.check else f"{path}: written")
        if not options.check:
            (DATA / path).parent.mkdir(parents=True, exist_ok=True)
            (DATA / path).write_text(contents[path], "utf-8", newline="\n")
    for half in ("calibration", "evaluation"):
        print(f"{half}: {sum(size for path, size in sizes.items() if path.startswith(half)):,} bytes")
    return int(options.check and bool(differing))


def _old(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
