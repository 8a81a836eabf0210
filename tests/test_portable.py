"""What only one system has is used in named modules alone, each for a reason: the rest is for Windows and macOS too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for package in ("edge_llama", "converters", "quant") for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = {
    *("fcntl", "pwd", "grp", "spwd", "resource", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"),
    *("msvcrt", "winreg", "_winapi"),
}
"""Modules that not every system has."""
OF_OS = {
    *("fork", "forkpty", "register_at_fork", "wait", "wait3", "wait4", "waitid", "killpg", "setsid", "getsid"),
    *("getpgid", "getpgrp", "setpgid", "setpgrp", "tcgetpgrp", "tcsetpgrp", "nice", "posix_spawn", "posix_spawnp"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "getlogin", "chown", "lchown"),
    *("fchown", "fchmod", "chroot", "mkfifo", "mknod", "makedev", "openpty", "ttyname", "ctermid", "uname"),
    *("sysconf", "confstr", "statvfs", "fstatvfs", "pathconf", "getloadavg", "sched_getaffinity", "sched_setaffinity"),
    *("pread", "pwrite", "preadv", "pwritev", "readv", "writev", "sendfile", "posix_fallocate", "posix_fadvise"),
    *("memfd_create", "MFD_CLOEXEC", "eventfd", "pidfd_open", "pipe2", "lockf", "sync", "fdatasync", "set_blocking"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECT", "O_TMPFILE", "O_SYNC", "O_DSYNC"),
    *("symlink", "link", "rename", "renames", "replace", "startfile"),
}
"""What ``os`` has on some systems, needs rights for on some (links), or does otherwise (rename)."""
OF_SIGNAL = {
    *("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGQUIT", "SIGTSTP", "SIGSTOP"),
    *("SIGCONT", "SIGWINCH", "SIGTTIN", "SIGTTOU", "alarm", "setitimer", "pthread_kill", "pthread_sigmask"),
    *("sigwait", "sigwaitinfo", "siginterrupt", "pause", "CTRL_C_EVENT", "CTRL_BREAK_EVENT"),
}
OF_PATHS = {"symlink_to", "hardlink_to", "rename", "is_mount"}
KEYWORDS = {"preexec_fn", "pass_fds", "start_new_session", "process_group", "creationflags", "startupinfo", "dir_fd"}
PLACES = ("/tmp", "/proc", "/dev", "/sys", "/etc", "/usr", "/var", "/opt", "/home", "/run", "C:\\")

ALLOWED = {
    "edge_llama.backends.crash_probe": (
        {"resource", "creationflags"},
        "a child that may crash leaves no core on POSIX, and opens no window on Windows",
    ),
    "edge_llama.backends.device_names": ({"/proc", "/dev", "/sys"}, "where Linux tells of its drivers; none elsewhere"),
    "edge_llama.backends.local_models": ({"/usr"}, "where Ollama's service keeps models on Linux; elsewhere none"),
    "edge_llama.backends.onnxruntime.compiled_bundle": ({"link"}, "weights are copied where no link can be had"),
    "edge_llama.cli.chat_session.plain_lines": ({"readline"}, "lines are read without it where there is none"),
    "edge_llama.cli.serve": ({"resource"}, "POSIX's limit of open files, which Windows has none of"),
    "edge_llama.cli.terminal.modes": ({"termios"}, "POSIX's modes of a terminal, which Windows has none of"),
    "edge_llama.host.anonymous": ({"C:\\"}, "how paths begin that are taken out of reports"),
    "edge_llama.host.atomic": ({"O_DIRECTORY"}, "a folder is synced where it can be"),
    "edge_llama.host.child": ({"killpg"}, "a child's own children, where there are groups"),
    "edge_llama.host.devices": (
        {"/proc", "/sys", "/usr", "sched_getaffinity"},
        "where Linux and macOS tell of processors, load and limits; psutil elsewhere",
    ),
    "edge_llama.host.regular_files": ({"/proc", "/dev"}, "how shells name a pipe that is open already"),
    "edge_llama.host.windows": ({"winreg", "Path.replace"}, "the one place where a file takes another's place"),
    "edge_llama.isolation.child": (
        {"resource", "msvcrt", "getpgrp", "killpg", "SIGKILL"},
        "a process of its own, by each system's means",
    ),
    "edge_llama.isolation.launch": (
        {"msvcrt", "pass_fds", "start_new_session", "creationflags", "startupinfo"},
        "how the child inherits what is shared, by each system's means",
    ),
    "edge_llama.isolation.process": ({"killpg", "SIGKILL"}, "the child's own children, where there are groups"),
    "edge_llama.isolation.shared_file": (
        {"memfd_create", "MFD_CLOEXEC", "posix_fallocate", "pwrite"},
        "each is asked for by hasattr, and a mapping does it else",
    ),
    "edge_llama.media.documents.child": (
        {"resource", "sysconf", "/proc"},
        "a bound of memory and processor time, where the system has one for a process",
    ),
    "edge_llama.media.documents.reading": ({"creationflags"}, "a child that opens no window on Windows"),
    "quant.loading": ({"creationflags"}, "likewise"),
}
"""Which modules use what, and why they may: by a branch for each system."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def particular(tree: ast.AST) -> Iterator[str]:
    """What a module uses that not every system has, or has otherwise."""
    docstrings = {id(text) for node in ast.walk(tree) for text in _docstrings(node)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name in MODULES)
            case ast.ImportFrom(module=module, names=names):
                yield from (each for each in _imported_from(module, names))
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in OF_OS:
                yield name
            case ast.Attribute(value=ast.Name(id="signal"), attr=name) if name in OF_SIGNAL:
                yield name
            case ast.Attribute(value=ast.Name(id="socket"), attr="AF_UNIX" | "SO_REUSEPORT" as name):
                yield name
            case ast.Attribute(attr=name) if name in OF_PATHS:
                yield name
            case ast.Call(func=ast.Attribute(attr="replace"), args=[_], keywords=[]):  # a text's takes two
                yield "Path.replace"
            case ast.Call(func=ast.Attribute(attr="get_context" | "set_start_method"), args=[ast.Constant("fork")]):
                yield "fork"
            case ast.keyword(arg=str(name)) if name in KEYWORDS:
                yield name
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield from (place for place in PLACES if text == place or text.startswith(f"{place}/"))


def _docstrings(node: ast.AST) -> Iterator[ast.AST]:
    """Texts that stand alone: docstrings, also of attributes."""
    body = getattr(node, "body", None)
    yield from (line.value for line in body if isinstance(line, ast.Expr)) if isinstance(body, list) else ()


def _imported_from(module: str | None, names: list[ast.alias]) -> Iterator[str]:
    if module in MODULES:
        yield str(module)
    of = {"os": OF_OS, "signal": OF_SIGNAL}.get(module or "", set())
    yield from (alias.name for alias in names if alias.name in of)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_only_one_system_has_is_in_named_modules(path: Path) -> None:
    found = set(particular(ast.parse(path.read_text("utf-8"))))
    allowed, reason = ALLOWED.get(name_of(path), (set(), ""))
    assert found - allowed == set(), "use what every system has, or say in ALLOWED why not"
    assert allowed - found == set(), f"no longer used: {reason}"


def test_every_module_that_is_named_exists() -> None:
    assert set(ALLOWED) <= {name_of(path) for path in SOURCES}


def test_text_is_written_and_read_as_utf_8_whatever_the_system_would_choose() -> None:
    """Windows chooses by the country."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _chooses_no_encoding(node)
    ]
    assert found == []


def _chooses_no_encoding(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    least = {"read_text": 1, "write_text": 2}.get(call.func.attr)
    return least is not None and len(call.args) < least and "encoding" not in {each.arg for each in call.keywords}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import fcntl", "fcntl"),
        ("from signal import SIGKILL", "SIGKILL"),
        ("import os\nos.rename(a, b)", "rename"),
        ("path.replace(other)", "Path.replace"),
        ("path.symlink_to(other)", "symlink_to"),
        ("open('/tmp/x')", "/tmp"),
        ("f'/proc/{pid}/maps'", "/proc"),
        ("multiprocessing.get_context('fork')", "fork"),
        ("subprocess.run(words, preexec_fn=first)", "preexec_fn"),
    ],
)
def test_it_is_found(code: str, found: str) -> None:
    assert list(particular(ast.parse(code))) == [found]


def test_what_is_no_use_of_it_is_not_found() -> None:
    code = '"""/tmp"""\ntext.replace("a", "b")\nreplace(value, name=1)\nos.getpid()\n"/temporary"\n'
    assert list(particular(ast.parse(code))) == []
