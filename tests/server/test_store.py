"""Responses are kept under a cap, found again after a restart, and no id names another file."""

import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_llama.errors import OutputError
from edge_llama.server.store import ResponseStore, Stored

NAMES = [f"resp_{number:032x}" for number in range(6)]


def stored(name: str, text: str = "") -> Stored:
    read = [{"id": "msg_1", "type": "message", "role": "user", "content": text}]
    return Stored({"id": name, "output": [{"id": "msg_2", "type": "message"}]}, read)


def store(folder: Path | None = None, number: int = 3, size: int = 1 << 20) -> ResponseStore:
    return ResponseStore(folder, max_number=number, max_bytes=size)


def kept(responses: ResponseStore) -> list[str]:
    return [name for name in NAMES if responses.get(name)]


def test_what_is_kept_comes_back_whole() -> None:
    responses = store()
    responses.put(stored(NAMES[0], "\ud800 é"))
    found = responses.get(NAMES[0])
    assert found == stored(NAMES[0], "\ud800 é")
    assert [item["id"] for item in found.items] == ["msg_1", "msg_2"]
    assert responses.get(NAMES[1]) is None


class Watched(dict[str, Any]):
    """Knows the threads that put it into JSON."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.threads: list[int] = []

    def items(self) -> Any:
        self.threads.append(threading.get_ident())
        return super().items()


def test_who_has_one_kept_does_not_wait_until_it_is_written_as_json(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        responses, given = store(folder), stored(NAMES[0])
        watched = Watched(given.response)
        responses.put(Stored(watched, given.read))
        assert responses.get(NAMES[0]) == given  # but who asks for it does
        responses.close()
        assert len(watched.threads) == 1
        assert threading.get_ident() not in watched.threads


def test_one_that_can_not_be_kept_keeps_none_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    responses = store()
    responses.put(Stored({"id": NAMES[0], "output": object()}, []))
    responses.put(stored(NAMES[1]))
    assert kept(responses) == [NAMES[1]]
    assert "a response is not kept: TypeError" in caplog.text


def test_the_least_recently_used_make_room() -> None:
    responses = store(number=3)
    for name in NAMES[:3]:
        responses.put(stored(name))
    assert responses.get(NAMES[0])
    responses.put(stored(NAMES[3]))
    assert kept(responses) == [NAMES[0], NAMES[2], NAMES[3]]


def test_bytes_are_counted_too_and_the_newest_stays() -> None:
    responses = store(number=9, size=1000)
    for name in NAMES[:3]:
        responses.put(stored(name, "x" * 300))
    assert kept(responses) == NAMES[1:3]
    responses.put(stored(NAMES[3], "x" * 5000))
    assert kept(responses) == [NAMES[3]]
    responses.put(stored(NAMES[4]))
    assert kept(responses) == [NAMES[4]]


def test_the_same_id_counts_once() -> None:
    responses = store(number=9, size=1000)
    for _ in range(5):
        responses.put(stored(NAMES[0], "x" * 300))
    responses.put(stored(NAMES[1], "x" * 300))
    assert kept(responses) == NAMES[:2]


def test_what_is_deleted_is_gone(tmp_path: Path) -> None:
    for responses in (store(), store(tmp_path)):
        responses.put(stored(NAMES[0]))
        assert responses.delete(NAMES[0])
        assert not responses.delete(NAMES[0])
        assert responses.get(NAMES[0]) is None
        responses.close()
    assert list(tmp_path.iterdir()) == []


def test_a_restart_finds_them_in_their_order(tmp_path: Path) -> None:
    responses = store(tmp_path)
    for name in NAMES[:3]:
        responses.put(stored(name, name))
    responses.close()
    for age, name in enumerate(NAMES[:3]):
        os.utime(tmp_path / f"{name}.json", (1000 - age, 1000 - age))
    again = store(tmp_path)
    assert again.get(NAMES[2]) == stored(NAMES[2], NAMES[2])  # the oldest, but for this
    again.put(stored(NAMES[3]))
    again.close()
    assert kept(again) == [NAMES[0], NAMES[2], NAMES[3]]
    assert sorted(path.stem for path in tmp_path.iterdir()) == [NAMES[0], NAMES[2], NAMES[3]]
    assert len(store(tmp_path, number=2)) == 2


def test_only_the_owner_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "responses"
    responses = store(folder)
    responses.put(stored(NAMES[0]))
    responses.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_no_id_names_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    record = json.dumps({"response": {"id": "x", "output": []}, "read": []})
    secret.write_text(record)
    folder = tmp_path / "responses"
    folder.mkdir()
    (folder / "other.json").write_text(record)
    (folder / f"{NAMES[0]}.txt").write_text(record)
    responses = store(folder)
    for name in ("../secret", "/etc/passwd", "other", "", f"../responses/{NAMES[0]}", f"{NAMES[0]}.txt", "resp_\0"):
        assert responses.get(name) is None
        assert not responses.delete(name)
    responses.close()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"response": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_as_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / f"{NAMES[0]}.json").write_bytes(damage)
    assert store(tmp_path).get(NAMES[0]) is None


def test_a_deleted_file_is_as_none(tmp_path: Path) -> None:
    responses = store(tmp_path)
    responses.put(stored(NAMES[0]))
    responses.close()
    (tmp_path / f"{NAMES[0]}.json").unlink()
    assert responses.get(NAMES[0]) is None


def test_what_can_not_be_written_stays_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "responses"
    responses = store(folder)
    folder.rmdir()
    responses.put(stored(NAMES[0]))
    responses.close()
    assert responses.get(NAMES[0]) == stored(NAMES[0])
    assert "stays in memory alone" in caplog.text


def test_a_folder_that_can_not_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="responses can't be kept there"):
        store(tmp_path / "file")
