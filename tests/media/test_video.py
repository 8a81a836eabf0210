"""Frames of clips that tell their own number, in the containers that people have."""

import struct
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from refusals import refusal

from edge_llama.errors import InputError, OptionError
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media import images, video
from edge_llama.media.images import Image
from edge_llama.media.llama4_tiles import count_tokens, grid, tiles, token_plan

BITS, SIDE = 12, 16
SPEC = VisionSpec(tile=28, max_tiles=16, tokens_per_tile=4, n_embd=8)


def numbered(number: int, height: int = SIDE * 3) -> NDArray[np.uint8]:
    """A frame that shows ``number`` as black and white squares, the lowest bit at the left; the rows below are red."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    frame = np.zeros((height, BITS * SIDE, 3), np.uint8)
    frame[:SIDE] = np.repeat(bits, SIDE)[None, :, None]
    frame[SIDE:] = (255, 0, 0)
    return frame


def number(image: Image) -> int:
    row = image.pixels()[SIDE // 2, SIDE // 2 :: SIDE].mean(-1) > 127
    return sum(int(bit) << place for place, bit in enumerate(row))


def clip(
    path: Path,
    codec: str = "libx264",
    *,
    times: Sequence[float] = tuple(index / 10 for index in range(100)),
    gop: int = 8,
    sound: float = 0,
    **options: str,
) -> Path:
    """The k-th frame shows k and begins at ``times[k]`` seconds; ``sound``: so many seconds of silence with it."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = BITS * SIDE, SIDE * 3
        stream.pix_fmt, stream.gop_size = ("rgb8" if codec == "gif" else "yuv420p"), gop
        stream.codec_context.time_base = Fraction(1, 100 if len(set(np.diff(times).round(6))) > 1 else 10)
        if sound:
            silence = container.add_stream("aac", rate=8000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = round(time * 100), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            for start in range(0, int(sound * 8000), 1000):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 8000, start
                container.mux(silence.encode(samples))
            container.mux(silence.encode(None))
    return path


KINDS = {
    "mp4": ("a.mp4", "libx264", {}),
    "faststart": ("a.mp4", "libx264", {"movflags": "faststart"}),
    "fragmented": ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("a.mov", "libx265", {}),
    "mkv": ("a.mkv", "libx264", {}),
    "live mkv": ("a.mkv", "libx264", {"live": "1"}),
    "webm": ("a.webm", "libvpx-vp9", {}),
    "avi": ("a.avi", "mpeg4", {}),
    "ts": ("a.ts", "libx264", {}),
    "flv": ("a.flv", "libx264", {}),
    "gif": ("a.gif", "gif", {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gop", [8, 1000])
def test_frames_are_those_in_view_at_the_middle_of_each_part(kind: str, gop: int, tmp_path: Path) -> None:
    name, codec, options = KINDS[kind]
    path = clip(tmp_path / name, codec, gop=gop, **options)
    for count in (1, 3, 7):
        found = video.frames(path, count)
        numbers = [int((index + 0.5) * 100 / count + 1e-6) for index in range(count)]
        assert [number(image) for _, image in found] == numbers
        np.testing.assert_allclose([seconds for seconds, _ in found], np.array(numbers) / 10, atol=0.011)
    assert video.duration(path) == pytest.approx(10, abs=0.15)
    assert (video.probe(path).width, video.probe(path).height) == (BITS * SIDE, SIDE * 3)
    assert found[0][1].name == f"{path} at 0:00"


def test_long_videos_are_sought_in_and_not_decoded_whole(tmp_path: Path) -> None:
    """Everything but the groups of pictures that hold the wanted frames is overwritten: decoding it would fail."""
    for name, codec in [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")]:
        path = clip(tmp_path / name, codec, times=[index / 10 for index in range(1200)], gop=10)
        data, wanted = bytearray(path.read_bytes()), (150, 450, 750, 1050)
        decoded = (0, *wanted)  # the first tells the format
        with av.open(str(path)) as container:
            for packet in container.demux(video=0):
                if packet.size and all(abs(packet.pts * packet.time_base * 10 - at) > 20 for at in decoded):
                    at = data.index(bytes(packet), packet.pos)
                    data[at : at + packet.size] = b"\xff" * packet.size
        path.write_bytes(data)
        with pytest.raises(InputError):
            video.frames(path, 60)
        assert [number(image) for _, image in video.frames(path, 4)] == list(wanted)


def test_frames_at_irregular_times(tmp_path: Path) -> None:
    """A slide show and a burst: what is in view counts, not which frame is in the middle of the list."""
    path = clip(tmp_path / "a.mkv", times=[0, 4, 4.1, 4.2, 4.3, 6, 9.9])
    found = video.frames(path, 5)
    assert [(round(seconds, 1), number(image)) for seconds, image in found] == [(0, 0), (4.3, 4), (6, 5)]


def test_fewer_frames_than_wanted(tmp_path: Path) -> None:
    one = video.frames(clip(tmp_path / "a.mp4", times=[0]), 8)
    assert [(seconds, number(image)) for seconds, image in one] == [(0, 0)]
    three = video.frames(clip(tmp_path / "b.mkv", times=[0, 0.1, 0.2]), 50)
    assert [number(image) for _, image in three] == [0, 1, 2]


def test_sound_that_is_longer_than_the_pictures_does_not_count(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        path = clip(tmp_path / name, times=[index / 10 for index in range(30)], sound=9)
        assert video.duration(path) == pytest.approx(3, abs=0.11)
        assert [number(image) for _, image in video.frames(path, 3)] == [5, 15, 25]


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 3), (180, 2), (270, 1)])
def test_videos_stand_upright(degrees: int, turns: int, tmp_path: Path) -> None:
    """The matrix of the track's header is that of a phone held so: clockwise by ``degrees``."""
    path = clip(tmp_path / "a.mp4", times=[0, 0.1])
    (_, flat), _ = video.frames(path, 2)
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    data = path.read_bytes()
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    (_, image), _ = video.frames(path, 2)
    np.testing.assert_array_equal(image.pixels(), np.rot90(flat.pixels(), turns))
    assert (video.probe(path).width, video.probe(path).height) == (image.width, image.height)


def test_a_frame_shrunk_to_its_tiles_has_the_same_pixels(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    for (_, whole), (_, shrunk) in zip(video.frames(path, 3), video.frames(path, 3, SPEC), strict=True):
        assert (shrunk.width, shrunk.height) == (28, 7)
        np.testing.assert_array_equal(tiles(shrunk, SPEC), tiles(whole, SPEC, 1))
    large = VisionSpec(336, 16, 144, 8)
    assert video.frames(path, 1, large) == video.frames(path, 1)


def test_parts_and_tokens(tmp_path: Path) -> None:
    found = video.frames(clip(tmp_path / "a.mp4"), 2)
    assert video.as_parts(found) == ["[0:02] ", found[0][1], "[0:07] ", found[1][1]]
    assert [video.clock(seconds) for seconds in (0, 59.9, 60, 3599, 3661.5)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:01:01",
    ]
    scout = VisionSpec(336, 16, 144, 5120)
    assert [video.frames_that_fit(1920, 1080, scout, room) for room in (-5, 0, 156, 157, 8192)] == [0, 0, 0, 1, 52]
    assert video.tokens_of_frame(1920, 1080, scout) == count_tokens(token_plan(grid(1920, 1080, scout, 1), scout)) + 10


def truncations(path: Path) -> list[int]:
    size = path.stat().st_size
    return [size - 1, size * 9 // 10, size // 2, size // 10, 40, 3, 0]


@pytest.mark.parametrize("kind", ["mp4", "faststart", "mov", "mkv", "webm", "avi"])
def test_a_video_that_was_cut_short_is_refused(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, codec, options = KINDS[kind]
    path = clip(tmp_path / name, codec, **options)
    data = path.read_bytes()
    capfd.readouterr()
    for kept in truncations(path):
        path.write_bytes(data[:kept])
        with refusal(InputError, "cut short|no video", path):
            video.frames(path, 3)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("kind", ["ts", "gif", "live mkv", "fragmented"])
def test_what_does_not_say_how_long_it_is_is_shown_as_far_as_it_goes(kind: str, tmp_path: Path) -> None:
    name, codec, options = KINDS[kind]
    path = clip(tmp_path / name, codec, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with suppress(InputError):
        assert all(number(image) < 70 for _, image in video.frames(path, 3))


def test_files_without_pictures_are_refused(tmp_path: Path) -> None:
    silent = tmp_path / "a.m4a"
    with av.open(str(silent), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 16000, 1000):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 8000, start
            container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    wave = tmp_path / "a.wav"
    wave.write_bytes(
        b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\x08\0\0\0" + b"\x80" * 8
    )
    for path in (silent, wave):
        with refusal(InputError, "no video", path):
            video.frames(path, 3)
        with refusal(InputError, "no video", path):
            video.probe(path)


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.avi"):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            container.add_stream("mpeg4", rate=10)
            container.start_encoding()
        for read in (video.probe, lambda path: video.frames(path, 3)):
            with refusal(InputError, "no frames|no video", path):
                read(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.mp4", b""),
        ("text.txt", b"a film of a terminal to FFmpeg\n" * 99),
        ("list.ffconcat", b"ffconcat version 1.0\nfile a.mp4\n"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n"),
        ("net.m3u8", b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"),
        ("random.mp4", bytes(range(256)) * 40),
        ("ftyp.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"),
        ("image.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 99),
        ("mkv.mkv", b"\x1a\x45\xdf\xa3"),
        ("riff.avi", b"RIFF\xff\xff\xff\xffAVI LIST"),
    ],
)
def test_what_is_no_video_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    path = tmp_path / name
    path.write_bytes(data)
    with refusal(InputError, "no video|cut short", path):
        video.frames(path, 3)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.mp4", tmp_path, "http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4"):
        with refusal(InputError, "No such file|folder|URL", path):
            video.frames(path, 3)
    with refusal(OptionError, "0 frames"):
        video.frames(tmp_path / "missing.mp4", 0)


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit that a small clip exceeds: a clip that exceeds the real one takes minutes to make."""
    path = clip(tmp_path / "a.mp4", times=[0])
    monkeypatch.setattr(images, "MAX_PIXELS", BITS * SIDE * SIDE * 3 - 1)
    with refusal(InputError, "pixels", path, BITS * SIDE):
        video.frames(path, 1)


def test_damage_is_refused_or_shown_but_nothing_else_happens(tmp_path: Path, rng: np.random.Generator) -> None:
    for kind in ("mp4", "mkv", "webm", "avi", "ts", "gif"):
        name, codec, options = KINDS[kind]
        path = clip(tmp_path / name, codec, times=[index / 10 for index in range(20)], **options)
        data = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), rng.integers(1, 6)):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            with suppress(InputError):
                assert 1 <= len(video.frames(path, 3, SPEC)) <= 3


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4", times=[0])
    monkeypatch.setitem(sys.modules, "av", None)
    with refusal(InputError, "av", path, 'pip install "edge-llama[video]"'):
        video.frames(path, 1)


def test_threads_read_the_same_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "ein Film äöü.mp4")
    expected = video.frames(path, 5)
    start = threading.Barrier(4)

    def read(_: int) -> list[tuple[float, Image]]:
        start.wait(10)
        return video.frames(path, 5)

    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(read, range(4)))
