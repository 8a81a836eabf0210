"""What was prefilled outlives the process; whatever is wrong with a file, it is prefilled again."""

import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pytest
from letters import Letters, following
from one_sequence import OneSequence

import converters
import edge_llama
from edge_llama.backends.base import CacheSize
from edge_llama.errors import OutputError
from edge_llama.generation import generate
from edge_llama.runtime import session_file
from edge_llama.runtime.cache_entries import CacheOwner
from edge_llama.runtime.disk_cache import LIMIT_VARIABLE, DiskCache
from edge_llama.runtime.prompt_cache import PromptCache
from edge_llama.sampling.params import SamplingParams

PROMPT = list(range(100, 400))
SETTINGS = {"engine": "letters", "kv_format": "f16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Process:
    """A model that is open, with its cache on disk."""

    def __init__(
        self,
        folder: Path,
        *,
        model: str = "a",
        settings: dict[str, Any] = SETTINGS,
        room: int = 10**9,
        n_cells: int = 4096,
    ) -> None:
        self.tower = Letters(CacheSize(min(2048, n_cells), n_cells, 4))
        self.disk = DiskCache(folder, model, f"identity of {model}", settings, settings, self.tower.n_ctx)
        self.cache = PromptCache(self.tower, lambda _used: room, disk=self.disk)

    def use(self, prompt: list[int], owner: CacheOwner | None = None) -> int:
        """Have the prompt, and leave it; how many tokens were there."""
        beginning = self.cache.begin(np.array(prompt, np.int32), owner)
        assert beginning is not None
        held, one = beginning.held, OneSequence(self.tower, beginning.held.number)
        for at in range(beginning.reused, len(prompt), self.tower.n_batch):
            one.decode(prompt[at : at + self.tower.n_batch])
            self.cache.appended(held, prompt[at : at + self.tower.n_batch])
        self.cache.end(held, self.tower._logits(held.number))
        assert self.tower.tokens(held.number) == prompt
        return beginning.reused


def used(folder: Path, *prompts: list[int], **options: Any) -> list[int]:
    """What a process found of each prompt; it has ended since."""
    process = Process(folder, **options)
    found = [process.use(prompt) for prompt in prompts]
    process.cache.close()
    return found


def test_another_process_goes_on_with_all_of_it(folder: Path) -> None:
    assert used(folder, PROMPT) == [0]
    process = Process(folder)
    beginning = process.cache.begin(np.array(PROMPT, np.int32))
    assert beginning is not None
    assert beginning.reused == len(PROMPT)
    assert beginning.held.logits is not None
    assert int(beginning.held.logits.argmax()) == following(PROMPT)
    assert process.tower.decoded == []


def test_files_are_their_owners_only(folder: Path) -> None:
    used(folder, PROMPT)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_went_before_in_a_conversation_is_not_kept_beside_it(folder: Path) -> None:
    used(folder, PROMPT)
    assert used(folder, [*PROMPT, 1, 2]) == [300]
    assert len(list(folder.iterdir())) == 1
    assert used(folder, [*PROMPT, 1, 2, 3]) == [302]


def test_other_models_and_settings_have_their_own(folder: Path) -> None:
    used(folder, PROMPT)
    other = {**SETTINGS, "kv_format": "f32"}
    assert used(folder, PROMPT, model="b") == [0]
    assert used(folder, PROMPT, settings=other) == [0]
    assert [used(folder, PROMPT, **each) for each in ({}, {"model": "b"}, {"settings": other})] == [[300]] * 3
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("room", [0, 1700, 6000])
def test_what_has_no_room_in_memory_is_on_disk(folder: Path, room: int) -> None:
    prompts = [[number, *PROMPT] for number in range(4)]
    assert used(folder, *prompts, *prompts, room=room) == [0, 0, 0, 0, 301, 301, 301, 301]
    assert used(folder, *prompts) == [301, 301, 301, 301]


def test_a_conversation_has_one_file_and_is_forgotten(folder: Path) -> None:
    process, owner = Process(folder), CacheOwner()
    process.use(PROMPT, owner)
    process.cache.tag(owner, "talk-1")
    process.use([*PROMPT, 7], owner)
    process.cache.close()
    assert [path.name for path in folder.iterdir()] == ["talk-1.session"]
    again = Process(folder)
    again.cache.forget("talk-1")
    assert again.use(PROMPT) == 0
    assert not (folder / "talk-1.session").exists()


def test_one_that_is_forgotten_while_it_is_in_use_is_not_written_later(folder: Path) -> None:
    process, owner = Process(folder), CacheOwner()
    process.cache.tag(owner, "talk-1")
    process.use(PROMPT, owner)
    process.cache.forget("talk-1")
    process.use([*PROMPT, 1], owner)
    process.cache.close()
    assert list(folder.iterdir()) == []


def test_one_that_is_forgotten_while_it_waits_to_be_written_is_not(folder: Path) -> None:
    process, owner = Process(folder, room=0), CacheOwner()
    process.cache.tag(owner, "talk-1")
    process.use(PROMPT, owner)
    assert process.cache.make_cells(process.tower.n_cells)  # for which it leaves the engine
    process.cache.forget("talk-1")
    assert process.use(PROMPT) == 0
    process.cache.close()
    assert not (folder / "talk-1.session").exists()


def test_nothing_is_written_for_who_wants_conversations_alone(folder: Path) -> None:
    process, owner = Process(folder), CacheOwner()
    process.disk.keeps_untagged = False
    process.cache.tag(owner, "talk-1")
    process.use(PROMPT, owner)
    process.use([9, *PROMPT])
    process.cache.close()
    assert [path.name for path in folder.iterdir()] == ["talk-1.session"]


def test_why_a_conversation_is_read_again_is_known(folder: Path) -> None:
    process, owner = Process(folder), CacheOwner()
    process.cache.tag(owner, "talk-1")
    process.use(PROMPT, owner)
    process.cache.close()
    other = Process(folder, settings={**SETTINGS, "kv_format": "f32"})
    assert other.disk.why_not_kept("talk-1") == "kv_format was f16 and is f32"
    assert other.disk.why_not_kept("talk-2") == "its KV cache is not kept any more"


def test_the_least_recently_used_files_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        used(folder, [number, *PROMPT])
    size = max(path.stat().st_size for path in folder.iterdir())
    for age, path in enumerate(sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (10 + age, 10 + age))
    assert used(folder, [0, *PROMPT]) == [301], "it is the last used now"
    monkeypatch.setenv(LIMIT_VARIABLE, str(3 * size + 100))
    used(folder, [3, *PROMPT])
    assert len(list(folder.iterdir())) == 3
    assert used(folder, *([number, *PROMPT] for number in (0, 2, 3))) == [301, 301, 301]
    assert Process(folder).cache.known(np.array([1, *PROMPT], np.int32)) == 0


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def resealed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The header is changed, and the hash made to fit."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        prefix = session_file._PREFIX
        magic, version, length = prefix.unpack(data[: prefix.size])
        header = json.loads(data[prefix.size : prefix.size + length])
        change(header)
        text = json.dumps(header).encode()
        content = prefix.pack(magic, version, len(text)) + text + data[prefix.size + length : -32]
        path.write_bytes(content + hashlib.sha256(content).digest())

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flipped,
    "cut short": lambda path: os.truncate(path, 200),
    "the end is cut": lambda path: os.truncate(path, path.stat().st_size - 8),
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_bytes(b"x" * 5000),
    "gone": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a newer version": lambda path: path.write_bytes(path.read_bytes()[:8] + b"\xff" + path.read_bytes()[9:]),
    "no tokens": resealed(lambda header: header.update(tokens=None)),
    "tokens in rows": resealed(lambda header: header.update(tokens=[[1, 2], [3, 4]])),
    "a token that is text": resealed(lambda header: header.update(tokens=["a"])),
    "huge tokens": resealed(lambda header: header.update(tokens=[2**40])),
    "fewer tokens than the engine's bytes": resealed(lambda header: header["tokens"].pop()),
    "no settings": resealed(lambda header: header.update(settings=5)),
    "no identity": resealed(lambda header: header.pop("identity")),
    "more logits than there are bytes": resealed(lambda header: header.update(n_logits=10**9)),
}


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_costs_no_more_than_to_prefill_again(
    folder: Path, damage: Callable[[Path], object], is_open: bool
) -> None:
    """``is_open``: it is damaged after the model was opened."""
    used(folder, PROMPT)
    process = Process(folder) if is_open else None
    damage(next(folder.iterdir()))
    process = process or Process(folder)
    assert process.use(PROMPT) < len(PROMPT)
    assert process.use([*PROMPT, 5]) == len(PROMPT)
    process.cache.close()


def test_a_damaged_file_is_told_and_removed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    used(folder, PROMPT)
    (path,) = folder.iterdir()
    flipped(path)
    process = Process(folder)
    assert process.use(PROMPT) == 0
    assert f"prefilled again: {path}: its contents are not as they were written" in caplog.text
    assert not path.exists()


def test_a_conversation_that_is_longer_than_the_context_now_is_not_loaded(folder: Path) -> None:
    used(folder, PROMPT)
    assert used(folder, PROMPT[:100], n_cells=200) == [0]


def test_what_has_to_wait_for_cells_is_not_loaded_until_there_are_some(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(folder, PROMPT)
    process = Process(folder, n_cells=400)
    running = process.cache.begin(np.array([9] * 200, np.int32))
    assert running is not None
    OneSequence(process.tower, running.held.number).decode([9] * 64)
    process.cache.appended(running.held, [9] * 64)
    OneSequence(process.tower, running.held.number).decode([9] * 64)
    process.cache.appended(running.held, [9] * 64)
    loads: list[object] = []
    load = process.disk.load
    monkeypatch.setattr(process.disk, "load", lambda stored: loads.append(stored) or load(stored))
    assert process.cache.begin(np.array([*PROMPT, 1], np.int32)) is None
    assert loads == []
    process.cache.end(running.held)
    assert process.use([*PROMPT, 1]) == 300
    assert len(loads) == 1


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't be made"):
        Process(tmp_path / "file" / "cache")


def test_what_cannot_be_written_is_told_and_the_engine_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(folder)
    process.use(PROMPT)
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        process.cache.close()
    assert "300 tokens can't be kept on disk" in caplog.text


def test_what_is_being_answered_when_the_model_is_closed_is_kept(folder: Path) -> None:
    tower = Letters()
    engine = letters.scheduler(tower, disk=DiskCache(folder, "a", "identity of a", SETTINGS, SETTINGS, 4096))

    def slowly(_ids: Any, logits: Any) -> Any:  # it would fill its context before the model is closed
        time.sleep(0.01)
        return logits

    running = generate(engine, PROMPT, SamplingParams(temperature=0, logits_processor=slowly))
    next(running)
    engine.close()
    assert running.result().finish_reason == "cancelled"
    assert used(folder, PROMPT) == [len(PROMPT) - 1]


def test_two_processes_share_a_folder(folder: Path) -> None:
    first, second = Process(folder), Process(folder)
    first.use(PROMPT)
    second.use([9, *PROMPT])
    first.cache.close()
    second.cache.close()
    assert used(folder, PROMPT, [9, *PROMPT]) == [300, 301]
    third, fourth = Process(folder), Process(folder)
    for path in folder.iterdir():
        path.unlink()
    assert (third.use(PROMPT), fourth.use([9, *PROMPT])) == (0, 0), "what another removed is as good as none"


def test_a_real_model_goes_on_after_a_restart(llama3: Path, tmp_path: Path, folder: Path) -> None:
    converters.convert(llama3, tmp_path / "a.gguf", quant="f32")
    text = "the old man and the sea " * 8

    def asked(**options: Any) -> edge_llama.Answer:
        with edge_llama.open(tmp_path / "a.gguf", n_ctx=512, threads=1, cache_dir=folder, **options) as model:
            return model.generate(text, temperature=0, max_tokens=6).result()

    first, again = asked(), asked()
    assert again.tokens == first.tokens
    assert (first.timings.cached_tokens, again.timings.cached_tokens) == (0, first.timings.prompt_tokens - 1)
    assert asked(kv_format="f32").timings.cached_tokens == 0


def test_a_file_is_not_read_again_and_again_beside_a_longer_copy_that_is_not_worth_it(folder: Path) -> None:
    short = PROMPT[:50]
    first = Process(folder)
    first.use([*short, 7])
    first.cache.close()
    process = Process(folder)
    process.use([*short, *range(1900)])
    assert process.cache.make_cells(process.tower.n_cells)
    assert process.use([*short, 9]) == len(short)


def test_a_conversation_that_memory_has_no_room_for_goes_to_disk_when_it_leaves(folder: Path) -> None:
    process, owner = Process(folder, room=0), CacheOwner()
    process.cache.tag(owner, "talk-1")
    process.use(PROMPT, owner)
    assert process.cache.make_cells(process.tower.n_cells)
    process.disk.close()
    assert (folder / "talk-1.session").exists()
