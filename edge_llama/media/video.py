"""Frames of a video, sampled evenly by time, each an image with its time.

FFmpeg (by PyAV, the extra ``video``) reads the containers of cameras, phones and the web. It is told to open no others:
text would be a film of a terminal to it, and a playlist leads to other files and to the network.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_llama.errors import ContextFullError, InputError, OptionError
from edge_llama.files.vision_spec import VisionSpec
from edge_llama.media.images import MAX_PIXELS, Image, check_size, regular_file
from edge_llama.media.llama4_tiles import count_tokens, grid, resized, token_plan
from edge_llama.media.video_integrity import check_whole

if TYPE_CHECKING:
    import PIL.Image
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_CONTAINERS = "asf,avi,flv,gif,matroska,mov,mp4,mpeg,mpegts,ogg,webm"
_KNOWN = "give MP4, WebM, MKV, MOV, AVI or GIF"
_FRAMES_PER_SECOND = 2
_TILES = 1  # of a frame, since frames are many
_TIME_TOKENS = 10  # "[1:02:03] " at most
_BLIND_STRIDE = 10.0  # seconds: without an index, what is nearer is decoded to, what is farther is sought


@dataclass(frozen=True, slots=True)
class Clip:
    """What a video is: its upright size in pixels, and how long its pictures last, in seconds."""

    width: int
    height: int
    duration: float


def probe(source: "str | os.PathLike[str]") -> Clip:
    """A video's size and duration, from its headers and first frame; InputError as :func:`frames`."""
    with _opened(source) as reader:
        if (first := next(reader.decoded(), None)) is None:
            raise InputError("the video has no frames", remedy=_KNOWN)
        width, height = (first.height, first.width) if _quarter_turns(first) % 2 else (first.width, first.height)
        return Clip(width, height, float(reader.end() - reader.start))


def duration(source: "str | os.PathLike[str]") -> float:
    """How long a video's pictures last, in seconds."""
    return probe(source).duration


def frames(source: "str | os.PathLike[str]", count: int, spec: VisionSpec | None = None) -> list[tuple[float, Image]]:
    """``count`` frames with their times in seconds: those in view at the middle of each of ``count`` equal parts.

    Fewer if the video has fewer. With ``spec`` each is shrunk to what one tile shows, so that it takes no more (its
    pixels are those of the whole frame cut with that limit). Images are PNG.
    Long videos are sought in, not decoded whole. InputError for what is no video, is cut short or damaged, or has too
    many pixels; OptionError for a count below 1.
    """
    if count < 1:
        raise OptionError(f"{count} frames of a video are wanted", remedy="give 1 or more")
    with _opened(source) as reader:
        part = (reader.end() - reader.start) / count
        found: dict[float, Image] = {}
        for moment, frame in reader.in_view([reader.start + (index + Fraction(1, 2)) * part for index in range(count)]):
            if moment not in found:
                image = Image.open(_picture(frame, spec))
                found[moment] = replace(image, name=f"{os.fsdecode(source)} at {clock(moment)}")
        if not found:
            raise InputError("the video has no frames", remedy=_KNOWN)
        return list(found.items())


def as_parts(frames: Sequence[tuple[float, Image]]) -> list[str | Image]:
    """The parts of a message that show a video: each frame with its time before it, ``[0:03] ``."""
    return [part for seconds, image in frames for part in (f"[{clock(seconds)}] ", image)]


def frames_to_show(clip: Clip, spec: VisionSpec, n_ctx: int, used: int) -> int:
    """How many frames of a clip a chat shows: two a second, or as many as leave a quarter of the context for an answer.

    ``used`` of the context's ``n_ctx`` tokens are taken by all else. ContextFullError if not even one frame fits.
    """
    room = n_ctx - n_ctx // 4 - used
    fitting = frames_that_fit(clip.width, clip.height, spec, room)
    if fitting < 1:
        least = n_ctx - room + tokens_of_frame(clip.width, clip.height, spec)
        raise ContextFullError(least, n_ctx, remedy="no frame of the video fits: begin anew, or a larger n_ctx")
    return min(fitting, max(1, round(_FRAMES_PER_SECOND * clip.duration)))


def frames_that_fit(width: int, height: int, spec: VisionSpec, room: int) -> int:
    """How many frames of this size in pixels, times included, ``room`` tokens hold, each in one tile."""
    return max(room, 0) // tokens_of_frame(width, height, spec)


def tokens_of_frame(width: int, height: int, spec: VisionSpec) -> int:
    """What a frame of this size in pixels takes of the context at most, its time included."""
    return count_tokens(token_plan(grid(width, height, spec, _TILES), spec)) + _TIME_TOKENS


def clock(seconds: float) -> str:
    """``0:03``, ``12:34``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True, slots=True)
class _Reader:
    """An open video. Times are of the stream, in seconds; ``tick`` is its unit, ``start`` its first."""

    container: "InputContainer"
    stream: "VideoStream"
    tick: Fraction
    start: Fraction

    def decoded(self) -> "Iterator[VideoFrame]":
        """Frames from the current place on."""
        return (frame for frame in self.container.decode(self.stream) if frame.pts is not None)

    def time(self, frame: "VideoFrame") -> Fraction:
        return (frame.pts or 0) * self.tick

    def seek(self, moment: Fraction) -> "Iterator[VideoFrame]":
        """Frames from the last keyframe at or before ``moment`` on; some containers find a later one."""
        self.container.seek(int(moment / self.tick), stream=self.stream)
        return self.decoded()

    def end(self) -> Fraction:
        """When the last picture ends. Matroska's header knows only when the last picture or sound does."""
        if self.stream.duration:
            return self.start + self.stream.duration * self.tick
        step = int(1 / (self.stream.average_rate or 25) / self.tick)
        last = 0
        for moment in (Fraction(self.container.duration or 0, 1_000_000), self.start):
            self.seek(moment)
            packets = self.container.demux(self.stream)
            ends = [packet.pts + (packet.duration or step) for packet in packets if packet.pts is not None]
            if ends:  # FLV finds nothing when sought near its end
                last = max(ends)
                break
        self.seek(self.start)
        return last * self.tick

    def in_view(self, moments: Sequence[Fraction]) -> "Iterator[tuple[float, VideoFrame]]":
        """For each moment, in order, the last frame that begins by then (or the first), and its time from the start."""
        indexed = len(self.stream.index_entries) > 1  # asked first: seeking leaves entries where there is no index
        decoded = self.decoded()
        shown, coming = next(decoded, None), next(decoded, None)
        for moment in moments:
            if coming is not None and self._is_far(coming, moment, indexed=indexed):
                decoded, shown = self._sought(moment)
                coming = next(decoded, None)
            while coming is not None and self.time(coming) <= moment:
                shown, coming = coming, next(decoded, None)
            if shown is not None:
                yield float(self.time(shown) - self.start), shown

    def _sought(self, moment: Fraction) -> "tuple[Iterator[VideoFrame], VideoFrame | None]":
        """A frame at or before ``moment``, and those after it."""
        for back in (0, 2, 8, 32):
            decoded = self.seek(max(moment - back, self.start))
            first = next(decoded, None)
            if first is not None and self.time(first) <= moment:
                return decoded, first
        decoded = self.seek(self.start)
        return decoded, next(decoded, None)

    def _is_far(self, coming: "VideoFrame", moment: Fraction, *, indexed: bool) -> bool:
        """Whether a keyframe lies between; without an index, whether one may."""
        if not indexed:
            return moment - self.time(coming) > _BLIND_STRIDE
        keyframe = self.stream.index_entries.search_timestamp(int(moment / self.tick))
        return keyframe >= 0 and self.stream.index_entries[keyframe].timestamp > (coming.pts or 0)


@contextmanager
def _opened(source: "str | os.PathLike[str]") -> "Iterator[_Reader]":
    """The first stream of moving pictures; what goes wrong while it is open is an InputError that names the file."""
    path = regular_file(source)
    try:
        import av  # noqa: PLC0415
    except ImportError as error:
        needs = f"{path}: reading a video needs the package av"
        raise InputError(needs, remedy='pip install "edge-llama[video]"') from error
    limits = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        check_whole(path)
        with av.open(str(path.absolute()), container_options=limits, metadata_errors="replace") as container:
            stream = next((video for video in container.streams.video if _is_moving(video)), None)
            if stream is None or stream.time_base is None:
                raise InputError("no video in it", remedy=_KNOWN)
            check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames may be larger than the header says
            stream.thread_type = "AUTO"
            yield _Reader(container, stream, stream.time_base, (stream.start_time or 0) * stream.time_base)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", remedy=error.remedy) from error.__cause__
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: no video that can be read, or a damaged one ({reason})", remedy=_KNOWN) from error


def _is_moving(stream: "VideoStream") -> bool:
    """Not an album's cover, and of a codec that FFmpeg knows: others have no context, whatever PyAV's types say."""
    from av.stream import Disposition  # noqa: PLC0415

    return getattr(stream, "codec_context", None) is not None and not stream.disposition & Disposition.attached_pic


def _quarter_turns(frame: "VideoFrame") -> int:
    """Counterclockwise, to make it upright."""
    return round(frame.rotation / 90) % 4


def _picture(frame: "VideoFrame", spec: VisionSpec | None) -> "PIL.Image.Image":
    """Upright, in RGB, no larger than needed."""
    from PIL.Image import Resampling, Transpose, fromarray  # noqa: PLC0415

    check_size(frame.width, frame.height)
    picture = fromarray(frame.to_ndarray(format="rgb24"))
    if turns := _quarter_turns(frame):
        picture = picture.transpose((Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)[turns - 1])
    if spec is not None:
        size = resized(picture.width, picture.height, grid(picture.width, picture.height, spec, _TILES), spec.tile)
        if size < picture.size:  # both sides shrink, or none
            picture = picture.resize(size, Resampling.BILINEAR)
    return picture
