"""Where each default text is from: packages with their licences, and the files and parts of them that are taken.

Nothing here is under the GPL or the GFDL, so that the wheel needs no licence besides those in data/LICENCES.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """What is taken from, at one version."""

    kind: str
    """``debian``, ``python`` or ``repository`` (this one, at the commit ``version``)."""
    version: str
    root: str
    """The folder in it that files are named from."""
    title: str
    licence: str
    holders: str


@dataclass(frozen=True, slots=True)
class Source:
    """A default text: these files of a package, from somewhere, so many bytes at most."""

    half: str
    text: str
    package: str
    reader: str
    files: tuple[str, ...]
    most: int
    begin: int = 0

    @property
    def path(self) -> str:
        """Its file among the data."""
        return f"{self.half}/{self.text}.txt"


_HANDBOOK = "usr/share/doc/debian-handbook/html"
PACKAGES = {
    "debian-handbook": Package(
        "debian",
        "11.20220922",
        _HANDBOOK,
        "The Debian Administrator's Handbook, Debian package debian-handbook",
        "CC-BY-SA-3.0 (or GPL-2.0+)",
        "2003-2015 Raphaël Hertzog, 2006-2015 Roland Mas, 2013-2015 Freexian SARL; translators",
    ),
    "gnome-user-docs": Package(
        "debian",
        "43.0-2",
        "usr/share/help",
        "GNOME Help, Debian package gnome-user-docs",
        "CC-BY-SA-3.0",
        "2010-2014 Shaun McCance and the GNOME Documentation Project; translators",
    ),
    "r-cran-janeaustenr": Package(
        "debian",
        "1.0.0-1",
        "usr/lib/R/site-library/janeaustenr/data",
        "Jane Austen's novels, Debian package r-cran-janeaustenr",
        "public domain",
        "expired (Jane Austen, died 1817); the package: 2016-2017 Julia Silge, MIT",
    ),
    "dict-jargon": Package(
        "debian",
        "4.4.7-3.1",
        "usr/share/dictd",
        "The Jargon File, version 4.4.7, 29 Dec 2003, Debian package dict-jargon",
        "public domain",
        'none: "The Jargon File is in the public domain"',
    ),
    "uthash-dev": Package(
        "debian",
        "2.3.0-1+b1",
        "usr/include",
        "uthash, Debian package uthash-dev",
        "BSD-1-Clause",
        "2003-2021 Troy D. Hanson",
    ),
    "librust-semver-dev": Package(
        "debian",
        "1.0.14-1",
        "usr/share/cargo/registry/semver-1.0.14",
        "semver for Rust, Debian package librust-semver-dev",
        "MIT (or Apache-2.0)",
        "2012-2022 Steve Klabnik, 2012-2014 The Rust Project Developers",
    ),
    "golang-github-burntsushi-toml-dev": Package(
        "debian",
        "1.2.0-2",
        "usr/share/gocode/src/github.com/BurntSushi/toml",
        "TOML for Go, Debian package golang-github-burntsushi-toml-dev",
        "MIT",
        "2013 TOML authors",
    ),
    "node-semver": Package(
        "debian",
        "7.3.5+~7.3.9-2",
        "usr/share/nodejs/semver",
        "semver for Node.js, Debian package node-semver",
        "ISC",
        "2009-2016 Isaac Z. Schlueter and Contributors",
    ),
    "libsqlite3-dev": Package(
        "debian",
        "3.40.1-2+deb12u2",
        "usr/include",
        "SQLite, Debian package libsqlite3-dev",
        "public domain",
        'none: "The author disclaims copyright to this source code"',
    ),
    "mpmath": Package(
        "python",
        "1.3.0",
        "",
        "mpmath, Python package",
        "BSD-3-Clause",
        "2005-2021 Fredrik Johansson and mpmath contributors",
    ),
    "sympy": Package(
        "python", "1.14.0", "", "SymPy, Python package", "BSD-3-Clause", "2006-2023 SymPy Development Team"
    ),
    "jinja2": Package("python", "3.1.6", "", "Jinja, Python package", "BSD-3-Clause", "2007 Pallets"),
    "edge-llama": Package(
        "repository",
        "ff31f5a4f72bab57919ce846e018b1716ff619dc",
        "",
        "this project at the commit",
        "MIT",
        "2026 The edge-llama authors",
    ),
}


def _handbook(language: str, *pages: str) -> tuple[str, ...]:
    return tuple(f"{language}/{page}.html" for page in pages)


def _help(language: str, *pages: str) -> tuple[str, ...]:
    return tuple(f"{language}/gnome-help/{page}.page" for page in pages)


_Row = tuple[str, str, str, tuple[str, ...], int] | tuple[str, str, str, tuple[str, ...], int, int]


def _all(half: str, *rows: _Row) -> list[Source]:
    return [Source(half, *row) for row in rows]


_H, _G = ("debian-handbook", "html"), ("gnome-user-docs", "mallard")
_AUSTEN = ("Rdata.rdb",)
SOURCES = [
    *_all(
        "calibration",
        ("prose.emma", "r-cran-janeaustenr", "novel EMMA", _AUSTEN, 12_000, 250_000),
        ("prose.mansfield-park", "r-cran-janeaustenr", "novel MANSFIELD PARK", _AUSTEN, 8_000, 400_000),
        ("encyclopaedic.jargon", "dict-jargon", "dictionary", ("jargon.dict.dz",), 12_000, 560_000),
        ("encyclopaedic.networks", *_H, _handbook("en-US", "sect.virtual-private-network"), 8_000),
        (
            "code.python",
            "edge-llama",
            "plain",
            ("edge_llama/sampling/stop_strings.py", "edge_llama/host/atomic.py"),
            7_000,
        ),
        ("code.javascript", "edge-llama", "plain", ("edge_llama/server/page/markdown.js",), 7_000),
        ("code.rust", "librust-semver-dev", "plain", ("src/parse.rs",), 8_000),
        ("code.c", "uthash-dev", "plain", ("utarray.h",), 7_000),
        ("mathematics.mpmath", "mpmath", "docstrings", ("mpmath/function_docs.py",), 12_000, 30_000),
        ("formal.debian", *_H, _handbook("en-US", "sect.foundation-documents"), 9_000),
        (
            "dialogue.instructions",
            *_G,
            _help("C", "files-copy", "files-search", "net-wireless-connect", "power-suspendfail"),
            8_000,
        ),
        ("languages.de", *_H, _handbook("de-DE", "sect.kernel-role-and-tasks"), 6_000),
        ("languages.fr", *_H, _handbook("fr-FR", "sect.user-space"), 6_000),
        ("languages.es", *_H, _handbook("es-ES", "sect.foundation-documents"), 6_000),
        ("languages.it", *_H, _handbook("it-IT", "the-debian-project"), 5_000),
        ("languages.pt", *_H, _handbook("pt-BR", "sect.dealing-with-compromised-machine"), 5_000),
        ("languages.vi", *_H, _handbook("vi-VN", "sect.user-space"), 6_000),
        ("languages.id", *_G, _help("id", "color-whatisspace", "disk-repair"), 5_000),
        ("scripts.ru", *_H, _handbook("ru-RU", "sect.user-space"), 9_000),
        ("scripts.el", *_G, _help("el", "keyboard-nav", "mouse-problem-notmoving"), 8_000),
        ("scripts.ar", *_H, _handbook("ar-MA", "sect.user-space"), 8_000),
        ("scripts.fa", *_H, _handbook("fa-IR", "sect.user-space"), 5_000),
        (
            "scripts.zh",
            *_H,
            _handbook("zh-CN", "sect.regular-upgrades", "sect.apt-file", "sect.creating-accounts"),
            8_000,
        ),
        ("scripts.ja", *_H, _handbook("ja-JP", "sect.user-space"), 8_000),
        (
            "scripts.ko",
            *_G,
            _help("ko", "disk-partitions", "disk-repair", "color-whatisspace", "color-whyimportant"),
            8_000,
        ),
    ),
    *_all(
        "evaluation",
        ("prose.persuasion", "r-cran-janeaustenr", "novel PERSUASION", _AUSTEN, 9_000, 180_000),
        ("prose.northanger-abbey", "r-cran-janeaustenr", "novel NORTHANGER ABBEY", _AUSTEN, 5_000, 220_000),
        ("encyclopaedic.layers", *_H, _handbook("en-US", "sect.filesystem-hierarchy", "sect.computer-layers"), 8_000),
        ("code.python", "jinja2", "plain", ("jinja2/utils.py",), 5_000, 5_000),
        ("code.go", "golang-github-burntsushi-toml-dev", "plain", ("lex.go",), 5_000),
        ("code.javascript", "node-semver", "plain", ("classes/range.js",), 5_000),
        ("code.c", "libsqlite3-dev", "plain", ("sqlite3.h",), 5_000, 200_000),
        (
            "mathematics.sympy",
            "sympy",
            "docstrings",
            (
                "sympy/ntheory/continued_fraction.py",
                "sympy/ntheory/egyptian_fraction.py",
                "sympy/ntheory/multinomial.py",
            ),
            7_000,
        ),
        ("dialogue.instructions", *_G, _help("C", "user-goodpassword", "sound-nosound", "tips-specialchars"), 6_000),
        ("languages.de", *_G, _help("de", "shell-exit", "video-sending"), 4_000),
        ("languages.fr", *_G, _help("fr", "net-slow", "user-goodpassword"), 4_000),
        ("languages.es", *_G, _help("es", "gnome-classic", "shell-notifications"), 4_000),
        ("languages.pl", *_G, _help("pl", "sound-nosound", "tips-specialchars"), 4_000),
        ("languages.tr", *_H, _handbook("tr-TR", "preface", "case-study"), 4_000),
        ("scripts.ru", *_G, _help("ru", "net-vpn-connect", "power-hotcomputer"), 4_000),
        ("scripts.uk", *_G, _help("uk", "mouse-touchpad-click"), 4_000),
        ("scripts.el", *_G, _help("el", "files-rename", "power-suspendfail"), 5_000),
        ("scripts.ar", *_H, _handbook("ar-MA", "preface", "case-study", "sect.master-plan"), 5_000),
        ("scripts.zh", *_H, _handbook("zh-CN", "preface", "case-study", "sect.master-plan"), 5_000),
        ("scripts.ja", *_H, _handbook("ja-JP", "sect.office-suites", "sect.master-plan"), 5_000),
        ("scripts.ko", *_G, _help("ko", "files-rename", "keyboard-layouts", "mouse-touchpad-click"), 5_000),
    ),
]
OWN = {
    "calibration/dialogue.chats.txt": "questions and answers",
    "calibration/prose.station-clock.txt": "a story",
    "calibration/scripts.he.txt": "Hebrew, a memory and an explanation",
    "calibration/scripts.hi.txt": "Hindi, a memory and an explanation",
    "calibration/scripts.th.txt": "Thai, a story and an explanation",
    "evaluation/dialogue.chats.txt": "questions and answers",
    "evaluation/formal.statutes.txt": "statutes of an association",
    "evaluation/prose.the-ferry.txt": "a story",
    "evaluation/scripts.he.txt": "Hebrew, instructions and a notice",
    "evaluation/scripts.hi.txt": "Hindi, advice and an explanation",
    "evaluation/scripts.th.txt": "Thai, instructions and a notice",
}
"""Written for this project by a language model, where no free text was at hand: they lie in the data alone."""
GENERATED = {
    "calibration/mathematics.tables.txt": "calculations and a table, by scripts/default_text_tables.py",
    "evaluation/mathematics.tables.txt": "calculations and a table, by scripts/default_text_tables.py",
}
