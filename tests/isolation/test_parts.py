"""What crosses between a model's process and its parent, piece by piece: frames, values, shared memory, logprobs."""

import gc
import io
import os
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edge_llama import Alternative, ContextFullError, EngineError, Message, OptionError, TokenLogprobs, ToolCall
from edge_llama.backends.base import Choice, Figure, Placement, Setting
from edge_llama.errors import EdgeLlamaError, SessionError, error_from_json, error_to_json
from edge_llama.generation import Diverged, Piece, Timings
from edge_llama.isolation import frames, wire
from edge_llama.isolation.logprob_table import LogprobTable, table_bytes
from edge_llama.isolation.shared_file import ClosedError, SharedFile, view
from edge_llama.media.images import Image
from edge_llama.planning.memory import ContextSize


def test_frames_come_as_they_were_written(rng: np.random.Generator) -> None:
    sent = [({"text": "a\ud800\n🦙", "numbers": [1, 2.5, None]}, b""), ({"": {}}, rng.bytes(100_000)), ({}, b"x")]
    file = io.BytesIO(b"".join(frames.frame(*each) for each in sent))
    assert [frames.read(file) for _ in sent] == sent
    assert frames.read(file) is None


def test_a_frame_that_breaks_off_is_the_end() -> None:
    whole = frames.frame({"a": 1}, b"bytes")
    assert all(frames.read(io.BytesIO(whole[:size])) is None for size in range(len(whole)))


def test_what_is_no_frame_is_told() -> None:
    with pytest.raises(ValueError, match="begins no frame"):
        frames.read(io.BytesIO(b"something that was printed"))
    with pytest.raises(ValueError, match="a frame is list"):
        frames.read(io.BytesIO(frames.frame({}).replace(b"{}", b"[]")))
    with pytest.raises(TypeError, match="set"):
        frames.frame({"a": {1}})


def image(data: bytes, name: str = "a.png") -> Image:
    return Image(data, name, 3, 2, f"{len(data):064x}", ("animated",))


def test_messages_keep_their_parts_in_order() -> None:
    call = ToolCall("find", {"city": "Kyōto", "days": [1, 2]})
    messages = [
        Message("system", ""),
        Message("user", [image(b"1"), "What", image(b"22"), image(b"22"), " is this?"]),
        Message("assistant", "Let me see", [call]),
        Message("tool", "rain", tool_call_id=call.id, name="find"),
    ]
    images: list[Image] = []
    sent = wire.messages_to_json(messages, images)
    assert wire.messages_from_json(sent, images) == messages
    assert [each.data for each in images] == [b"1", b"22", b"22"]


def test_options_are_those_that_were_given() -> None:
    given = {"stop": iter(["a", "b"]), "logit_bias": {5: np.float32(1.5)}, "seed": np.int64(3), "tool_format": "json"}
    sent, params = wire.options_to_json(given)
    expected = {"stop": ["a", "b"], "logit_bias": {5: 1.5}, "seed": 3, "tool_format": "json"}
    assert wire.options_from_json(sent) == expected
    assert params.stop == ("a", "b")


def test_options_that_cannot_leave_the_process_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match="logits_processor is a Python function"):
        wire.options_to_json({"logits_processor": lambda _tokens, logits: logits})
    with pytest.raises(OptionError, match="template_variables: JSON can't express"):
        wire.options_to_json({"template_variables": {"now": object()}})
    with pytest.raises(OptionError, match="temperature is -1"):
        wire.options_to_json({"temperature": -1})


def test_errors_keep_their_type_and_their_numbers() -> None:
    for error in (
        SessionError("it is damaged", remedy="use a copy"),
        ContextFullError(5000, 512, is_bound=True),
        OptionError("top_k is x"),
    ):
        other = error_from_json(error_to_json(error))
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
    other = error_from_json(error_to_json(ZeroDivisionError("x / 0")))
    assert (type(other), str(other)) == (
        EngineError,
        "the work in the model's process failed: ZeroDivisionError: x / 0",
    )
    assert isinstance(other, EdgeLlamaError)


def test_pieces_bring_the_timings_up_to_date() -> None:
    timings = Timings(9, 5, Diverged(5, "a", "b"), 0.125, 0.5, 1, 0.25, 3, 1.5)
    piece = Piece("a", (1, 2), (TokenLogprobs(1, -0.5, ()),), "tool_calls", (ToolCall("f", {}),))
    seen = Timings()
    sent = wire.piece_to_json(piece, timings)
    assert sent[2] == 1
    assert wire.piece_from_json(sent, seen, piece.logprobs) == piece
    assert seen == timings
    assert None not in [getattr(timings, each.name) for each in fields(Timings)]  # a new one belongs here


def test_facts_are_the_same_objects() -> None:
    figure = Figure(Setting(None, "f16", 64), 512, 0.1, 0.2)
    facts = wire.Facts(
        ContextSize(512, 1000, "as asked", 2048, 5000),
        Choice(Setting(), "measured", (figure,)),
        Placement(2, "fits"),
        None,
        4,
        "ab",
        {"<s>": 1},
        {"bos_token": "<s>"},
        1,
    )
    fields_, _ = frames.read(io.BytesIO(frames.frame(facts.to_json()))) or ({}, b"")
    assert wire.Facts.from_json(fields_) == facts


def test_regions_do_not_overlap_and_are_given_again(rng: np.random.Generator) -> None:
    file = SharedFile()
    held = {}
    for _ in range(200):
        if len(held) > 10 or (held and rng.random() < 0.4):
            region = list(held)[rng.integers(len(held))]
            assert view(file.descriptor, region.start, region.size)[: region.size] == held.pop(region)
            file.free(region)
        else:
            data = rng.bytes(int(rng.integers(0, 30_000)))
            region = file.take(len(data))
            region.memory[: len(data)] = data
            held[region] = data
    for region in held:
        file.free(region)
    assert os.fstat(file.descriptor).st_size == 0  # the system has the memory back
    file.close()
    with pytest.raises(ClosedError):
        file.take(1)


def test_no_room_is_an_error_and_leaves_the_file_as_it_is() -> None:
    file = SharedFile()
    region = file.take(10)
    with pytest.raises(EngineError, match="no room for"):
        file.take(1 << 62)
    file.free(region)
    assert os.fstat(file.descriptor).st_size == 0
    file.close()


def test_logprobs_come_as_they_were_written() -> None:
    def entry(token: int, count: int) -> TokenLogprobs:
        return TokenLogprobs(token, -token / 7, tuple(Alternative(at, -at / 3) for at in range(count)))

    entries = [entry(5, 3), entry(6, 0), entry(7, 2), entry(8, 3)]
    file = SharedFile()
    region = file.take(table_bytes(4, 3))
    ours = LogprobTable(region.memory, 4, 3)
    theirs = LogprobTable(view(file.descriptor, region.start, region.size), 4, 3)
    theirs.append(entries[:1])
    assert ours.take(1) == (entries[0],)
    theirs.append(entries[1:])
    taken = ours.take(0) + ours.take(3)
    assert taken == tuple(entries[1:])
    assert type(taken[-1].top[0].logprob) is float
    file.free(region)
    del ours, theirs, region
    gc.collect()
    file.close()


def test_a_temporary_file_serves_where_there_is_no_memfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS and Windows: it has no name either, and its room is reserved by writing."""
    for name in ("memfd_create", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = SharedFile()
    assert list(tmp_path.iterdir()) == []
    region = file.take(50_000)
    region.memory[:5] = b"bytes"
    assert view(file.descriptor, region.start, region.size)[:5] == b"bytes"
    assert os.fstat(file.descriptor).st_blocks * 512 >= 50_000
    file.free(region)
    file.close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="no file to share with the model's process can be made"):
        SharedFile()
