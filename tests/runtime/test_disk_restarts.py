"""The cache on disk and an engine: what is kept when it closes, what is of use then, folders that can't be written."""

import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import letters
import numpy as np
import old_files
import pytest
from engines import CAPITAL
from letters import Letters
from refusals import refusal

import edge_llama
from edge_llama.backends.base import CacheSize
from edge_llama.errors import OptionError, OutputError
from edge_llama.generation import generate
from edge_llama.runtime import session_file
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.disk_cache import LIMIT_VARIABLE, DiskCache, Stored
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.runtime.session_file import State
from edge_llama.sampling.params import SamplingParams

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
SETTINGS = {"engine": "letters", "kv_format": "f16"}
PROMPT = tuple(at * at % 23 for at in range(100))
OTHER = tuple(at * 7 % 19 + 1 for at in range(100))


def disk(
    folder: Path,
    *,
    identity: str = "a",
    settings: Mapping[str, str] = SETTINGS,
    n_ctx: int = 4096,
    keeps_untagged: bool = True,
) -> DiskCache:
    return DiskCache(folder, "letters", identity, settings, settings, n_ctx, keeps_untagged=keeps_untagged)


@contextmanager
def opened(cache: DiskCache, tower: Letters | None = None, **options: object) -> Iterator[Scheduler]:
    engine = letters.scheduler(tower or Letters(), disk=cache, **options)
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: Scheduler, prompt: Sequence[int], owner: CacheOwner | None = None) -> int:
    """Have it answered, rightly; how many tokens of the prompt were prefilled."""
    before = engine.stats().prompt_tokens
    answer = generate(engine, prompt, SamplingParams(max_tokens=5, temperature=0), owner=owner).result()
    assert answer.text == letters.said(prompt, 5)
    return engine.stats().prompt_tokens - before


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state(tag: str, *tokens: int, nbytes: int = 100) -> State:
    return State(np.array(tokens, np.int32), np.zeros(nbytes, np.uint8), None, tag=tag)


def test_forks_outlive_the_process_and_images_too(tmp_path: Path) -> None:
    """Images are negative ids. What both forks have is in either's file."""
    image = (*PROMPT, -7, -8, -9, 1)
    with opened(disk(tmp_path)) as engine:
        for prompt in (image, (*image, *OTHER[:40]), (*image, *OTHER[50:])):
            engine.call(lambda prompt=prompt: _prefill(engine, prompt))
    assert len(names(tmp_path)) == 2
    with opened(disk(tmp_path)) as engine:
        cache, tower = engine.cache, engine.tower
        both = [np.array((*image, *end), np.int32) for end in (OTHER[:40], OTHER[50:])]
        assert engine.call(lambda: [cache.known(prompt) for prompt in both]) == [144, 154]
        held = engine.call(lambda: cache.begin(np.array(image, np.int32)))
        assert held
        assert isinstance(tower, Letters)
        assert tower.tokens(held.held.number) == list(image[:-1])


def _prefill(engine: Scheduler, prompt: Sequence[int]) -> None:
    beginning = engine.cache.begin(np.array(prompt, np.int32))
    assert beginning
    held, new = beginning.held, prompt[beginning.reused :]
    assert isinstance(engine.tower, Letters)
    engine.tower.sequences[held.number] += [(1000 + len(held.tokens) + at, token) for at, token in enumerate(new)]
    engine.cache.appended(held, list(new))
    engine.cache.end(held)


def test_of_a_conversation_the_last_is_kept_in_one_file(tmp_path: Path) -> None:
    """Also if what went before was longer."""
    with opened(disk(tmp_path)) as engine:
        owner = CacheOwner()
        ask(engine, PROMPT, owner)
        engine.call(lambda: engine.cache.tag(owner, "abcd"))
        ask(engine, (*PROMPT, *OTHER), owner)
        ask(engine, OTHER)
        ask(engine, (*PROMPT, 1, 2, 3), owner)
    assert [name for name in names(tmp_path) if not name.startswith("-")] == ["abcd.session"]
    last = session_file.peek(tmp_path / "abcd.session").tokens.tolist()
    assert last[:103] == [*PROMPT, 1, 2, 3]


def test_deterministic_answers_use_nothing_of_the_disk(tmp_path: Path) -> None:
    with opened(disk(tmp_path)) as engine:
        ask(engine, PROMPT)
    with opened(disk(tmp_path), is_deterministic=True) as engine:
        assert ask(engine, PROMPT) == 100


def test_a_file_is_loaded_only_for_a_worthy_part_of_it(tmp_path: Path) -> None:
    with opened(disk(tmp_path)) as engine:
        ask(engine, PROMPT)
    tower = Letters()
    with opened(disk(tmp_path), tower) as engine:
        ask(engine, (*PROMPT[:2], *OTHER))
        assert tower.loads == 0
        ask(engine, (*PROMPT[:20], *OTHER))
        assert tower.loads == 1


@pytest.mark.parametrize("kind", ["cut", "empty", "version", "folder", "another", "settings", "long"])
def test_a_file_that_is_of_no_use_is_left_alone(tmp_path: Path, kind: str) -> None:
    with opened(disk(tmp_path)) as engine:
        owner = CacheOwner()
        ask(engine, PROMPT, owner)
        engine.call(lambda: engine.cache.tag(owner, "abcd"))
    path = tmp_path / "abcd.session"
    data, n_ctx = path.read_bytes(), 4096
    here = disk(tmp_path)
    if kind == "cut":
        data = data[:100]
    elif kind == "empty":
        data = b""
    elif kind == "version":
        data = data[:8] + b"\x03" + data[9:]
    elif kind == "another":
        here = disk(tmp_path, identity="b")
    elif kind == "settings":
        here = disk(tmp_path, settings={**SETTINGS, "kv_format": "q8_0"})
    elif kind == "long":
        n_ctx = 64
        here = disk(tmp_path, n_ctx=n_ctx)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(data)
    with opened(here, Letters(CacheSize(n_ctx, n_ctx, 8))) as engine:
        assert ask(engine, PROMPT[:50]) == 50
        reason = here.why_not_kept("abcd")
    expected = {
        "cut": "cut short",
        "empty": "no session",
        "version": "session format 3",
        "folder": "can't be read",
        "another": "another model's",
        "settings": "kv_format was f16 and is q8_0",
        "long": "104 tokens don't fit the context of 64",
    }[kind]
    assert expected in str(reason)
    assert path.exists()


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = disk(tmp_path)
    for age, tag in enumerate(("new", "middle", "old", "oldest")):
        assert cache.write(state(tag, age, nbytes=1000))
        os.utime(tmp_path / f"{tag}.session", (1e9 - 100 * age,) * 2)
    oldest = next(stored for stored in cache.entries() if stored.tag == "oldest")
    assert cache.load(oldest), "which makes it the newest"
    size = (tmp_path / "new.session").stat().st_size
    monkeypatch.setenv(LIMIT_VARIABLE, str(int(3.5 * size)))
    assert cache.write(state("last", 9, nbytes=1000))
    assert names(tmp_path) == ["last.session", "new.session", "oldest.session"]
    assert [stored.tag for stored in disk(tmp_path).entries()] == ["new", "oldest", "last"]
    assert cache.write(state("last", 9, nbytes=10**6)) is None
    assert names(tmp_path) == ["new.session", "oldest.session"], "what is larger than all is not written"
    monkeypatch.setenv(LIMIT_VARIABLE, "many")
    with refusal(OptionError, LIMIT_VARIABLE, "many"):
        cache.write(state("x", 1))


@posix
def test_a_full_disk_is_told_and_answers_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with opened(disk(tmp_path), room=lambda _used: 0) as engine:
            for at in range(12):
                ask(engine, (at, *PROMPT))
            ask(engine, (0, *PROMPT))
        with pytest.raises(OutputError, match=r"abcd\.session: the session can't be written: File too large"):
            disk(tmp_path).write(state("abcd", 1, nbytes=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("can't be kept on disk") == 1, "told once"
    assert names(tmp_path) == []


READ_ONLY = """
import os, sys
from pathlib import Path
import test_disk_restarts as tests
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.seteuid(65534)  # nobody
with tests.opened(tests.disk(folder)) as engine:
    print(tests.ask(engine, tests.PROMPT), tests.ask(engine, tests.OTHER))
"""


@posix
def test_from_a_folder_that_may_not_be_written_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        with opened(disk(folder)) as engine:
            ask(engine, PROMPT)
        (path,) = folder.iterdir()
        path.chmod(0o444)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        command = [sys.executable, "-c", READ_ONLY, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        folder.chmod(0o755)
        assert int(done.stdout.split()[0]) <= 1
        assert "can't be kept on disk" in done.stderr
        assert names(folder) == [path.name]


def test_many_that_write_and_remove_at_once_leave_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Each as a process of its own would: they have nothing in common but the folder."""
    monkeypatch.setenv(LIMIT_VARIABLE, "6000")

    def work(number: int) -> None:
        draw, cache = random.Random(seed + number), disk(tmp_path)
        for _ in range(12):
            tag = f"t{draw.randrange(6)}"
            assert cache.write(state(tag, *range(draw.randrange(1, 9)), nbytes=1000))
            for stored in cache.entries():
                cache.load(stored)
            cache.put(state("", draw.randrange(1000), nbytes=500))
        cache.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert caplog.text == ""
    files = list(tmp_path.iterdir())
    assert 0 < sum(path.stat().st_size for path in files) <= 6000
    assert all(session_file.read(path).state for path in files)


WITHOUT_CLOSING = """
import sys, edge_llama
model = edge_llama.open(sys.argv[1], n_ctx=512, cache_dir=sys.argv[2])
print(model.chat().send(sys.argv[3], temperature=0).result().text)
"""


def test_a_program_that_ends_without_closing_keeps_what_it_prefilled(small_talk: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_CLOSING, str(small_talk), str(tmp_path), CAPITAL]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    with edge_llama.open(small_talk, n_ctx=512, cache_dir=tmp_path) as model:
        answer = model.chat().send(CAPITAL, temperature=0).result()
        assert model.stats().prompt_tokens <= 1
    assert f"{answer.text}\n" == done.stdout


def test_a_picture_is_embedded_in_no_later_process(tmp_path: Path) -> None:
    digits = Path(__file__).parents[1] / "data" / "old_files" / "digits"
    texts = []
    for is_known in (False, True):
        with edge_llama.open(digits, n_ctx=512, cache_dir=tmp_path) as model:
            chat = model.chat(temperature=0)
            answer = chat.send(old_files.DIGITS, images=[old_files.picture()]).result()
            assert (answer.timings.tiles == 0) == is_known
            texts.append(answer.text)
    assert texts[0] == texts[1]


class SlowDisk(DiskCache):
    """One that reads nothing before ``go`` is set."""

    go = threading.Event()

    def load(self, stored: Stored) -> State | None:
        assert self.go.wait(60)
        return super().load(stored)


def test_while_a_file_is_read_others_are_answered(tmp_path: Path) -> None:
    with opened(disk(tmp_path)) as engine:
        ask(engine, PROMPT)
    slow = SlowDisk(tmp_path, "letters", "a", SETTINGS, SETTINGS, 4096)
    with opened(slow) as engine:
        params = SamplingParams(max_tokens=5, temperature=0)
        waiting = [generate(engine, PROMPT, params, owner=CacheOwner()) for _ in range(3)]
        assert ask(engine, OTHER, CacheOwner()) == 100
        waiting[0].cancel()
        assert waiting[0].result().finish_reason == "cancelled"
        slow.go.set()
        assert [each.result().text for each in waiting[1:]] == [letters.said(PROMPT, 5)] * 2
        assert engine.stats().prompt_tokens < 110, "those of the other prompt, and the last of theirs"


def test_closing_while_a_file_is_read_waits_for_nobody(tmp_path: Path) -> None:
    with opened(disk(tmp_path)) as engine:
        ask(engine, PROMPT)
    slow = SlowDisk(tmp_path, "letters", "a", SETTINGS, SETTINGS, 4096)
    slow.go = threading.Event()
    with opened(slow) as engine:
        waiting = generate(engine, PROMPT, SamplingParams(max_tokens=5))
        ask(engine, OTHER, CacheOwner())
        threading.Timer(0.05, slow.go.set).start()
    assert waiting.result().finish_reason == "cancelled"
