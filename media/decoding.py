"""Read videos: the properties of a file, and its upright frames one at a time, each with its own time.

Files are decoded by PyAV, the libraries of FFmpeg.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import cv2
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from command_line import UserError, warn
from media.color import HDR_NAMES, Picture, to_rgb
from media.container import (
    REMEDY,
    SEEK_MARGINS_S,
    describe,
    file_start,
    frame_spacing,
    open_video,
    seek,
    time_frames,
)

SQUARE_TOLERANCE = 0.02  # pixels are square up to this relative difference of width and height
PROBED_FRAMES = 3  # frames that are decoded to learn the properties of a video
ALPHA_REMEDY = "export it as ProRes 4444, as VP9 in WebM or as a folder of PNG pictures, which keep the opacity"
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave opacity out.
MOST_DAMAGE = 100  # packets that cannot be decoded, after which reading ends
EARLY_END_S = 0.2  # Seconds by which the last frame may end before the file should.
WITHOUT_TIMES = {"avi"}  # Formats that store only the order in which frames are decoded.


@dataclass
class DecodingNotes:
    """What is learned of a file while it is decoded."""

    damage: list[str] = field(default_factory=list)  # reasons why packets could not be decoded
    hidden: int = 0  # number of frames that the file stores but does not show


@dataclass(frozen=True)
class VideoMetadata:
    """The properties of a video file."""

    width: int  # pixels after rotation, as players show it
    height: int
    fps: float  # mean number of frames per second, as the file states it
    duration_s: float | None  # seconds until the pictures end; None if the file does not state it
    codec: str
    rotation: int  # degrees, clockwise, by which players turn the stored frames
    has_audio: bool
    has_alpha: bool  # opacity is stored
    is_transparent: bool  # the first frames are not opaque everywhere, as far as it is known
    hdr: str | None = None  # "PQ" or "HLG" if the dynamic range is high
    is_interlaced: bool = False
    has_oblong_pixels: bool = False


@dataclass(frozen=True)
class TimedFrame:
    """A frame, and when it is shown."""

    time_s: float  # seconds after the beginning of the file, as players count them
    duration_s: float | None  # seconds for which it is shown; None if the file does not say it
    pixels: Picture  # (H, W, 3) uint8, uint16 if the video has more than 8 bits; or opacity, (H, W) uint8


def read_video_metadata(path: Path) -> VideoMetadata:
    """Return the properties of a video file. Raises UserError if it is not a readable video."""
    with open_video(path) as (container, stream):
        frames = list(itertools.islice(decode(stream, stream.codec_context, DecodingNotes()), PROBED_FRAMES))
        codec = stream.codec_context.name
        if not frames:
            raise UserError(f"{path}: its video can't be decoded (no picture of the kind {codec} is whole); {REMEDY}")
        first = frames[0]
        height, width = turn_upright(np.empty((first.height, square_width(first, stream)), bool), first).shape
        return VideoMetadata(
            width,
            height,
            fps=1 / frame_spacing(stream),
            duration_s=read_duration(container, stream),
            codec=codec,
            rotation=-first.rotation % 360,
            has_audio=bool(container.streams.audio),
            has_alpha=has_alpha(stream, first),
            is_transparent=has_alpha(stream, first) and not all(is_opaque(frame) for frame in frames),
            hdr=HDR_NAMES.get(int(first.color_trc)),
            is_interlaced=any(frame.interlaced_frame for frame in frames),
            has_oblong_pixels=pixel_aspect(stream) != 1,
        )


def read_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return when the pictures of a file end, in seconds; None if it states only when everything in it ends."""
    # Formats that do not count the frames of a stream state only how long the whole file is.
    if stream.duration is not None and stream.time_base is not None and stream.frames:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - file_start(container)
    is_alone = len(container.streams) == 1
    return container.duration / av.time_base if container.duration is not None and is_alone else None


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a pixel divided by its height.

    The aspect differs from 1 in old and broadcast formats. Many other files state an aspect close to 1 because their
    sizes were rounded to whole pixels; the result for them is exactly 1.
    """
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if aspect > 0 and abs(aspect - 1) > SQUARE_TOLERANCE else Fraction(1)


def square_width(frame: av.VideoFrame, stream: VideoStream) -> int:
    """Return the width of a stored frame in square pixels."""
    return max(1, math.floor(frame.width * pixel_aspect(stream) + Fraction(1, 2)))


def turn_upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turn and mirror a picture (H, W, ...) as the display matrix of its frame says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(cast(Any, matrix), np.int32)[:5]
    if abs(int(b)) + abs(int(c)) > abs(int(a)) + abs(int(d)):  # columns become rows
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def has_alpha(stream: VideoStream, frame: av.VideoFrame) -> bool:
    """Return whether a video stores opacity."""
    is_noted = stream.metadata.get("alpha_mode") == "1" or stream.metadata.get("ALPHA_MODE") == "1"
    return stores_alpha(frame) or (is_noted and stream.codec_context.name in ALPHA_DECODERS)


def is_opaque(frame: av.VideoFrame) -> bool:
    """Return whether a decoded frame has opacity that is full everywhere."""
    return stores_alpha(frame) and bool((frame.to_ndarray(format="rgba")[..., 3] == 255).all())


def stores_alpha(frame: av.VideoFrame) -> bool:
    """Return whether a decoded frame has opacity."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def read_video(
    path: Path, start_s: float = 0.0, end_s: float | None = None, alpha: bool = False, deinterlace: bool = True
) -> Iterator[Picture]:
    """Yield the pictures of `read_frames`, without their times."""
    return (frame.pixels for frame in read_frames(path, start_s, end_s, alpha, deinterlace))


def read_frames(
    path: Path, start_s: float = 0.0, end_s: float | None = None, alpha: bool = False, deinterlace: bool = True
) -> Iterator[TimedFrame]:
    """Yield the upright frames of a video with square pixels: every frame once, by its own time.

    start_s, end_s: the part to read, frames from start_s on and before end_s, in seconds as players count them.
    alpha: yield the opacity instead of the colours. deinterlace: fields are made whole frames (bwdif). Raises UserError
    if no frame can be decoded. Warns after the last readable frame if the file is damaged.
    """
    notes, number, stated, duration_s, end = DecodingNotes(), 0, 0, None, 0.0
    with open_at(path, start_s, alpha, notes) as (container, stream, frames):
        # Files round times to ticks, so a time may differ from the wanted one by half a tick.
        offset, half_tick = file_start(container), float(stream.time_base or 0) / 2
        if start_s == 0 and end_s is None:
            stated, duration_s = stream.frames, read_duration(container, stream)
        frames = keep_size(frames)
        for time, frame in time_frames(deinterlace_frames(frames) if deinterlace else frames, stream):
            if end_s is not None and time - offset >= end_s - half_tick:
                break
            if time - offset < start_s - half_tick:
                continue
            number += 1
            duration = frame.duration * frame.time_base if frame.duration and frame.time_base else None
            end = time - offset + max(float(duration or 0), frame_spacing(stream))
            pixels = show_pixels(frame, stream, alpha)
            yield TimedFrame(time - offset, None if duration is None else float(duration), pixels)
    if number == 0:
        reason = notes.damage[-1] if notes.damage else "no frame lies between --start and --end"
        raise UserError(f"{path}: no frame could be read ({reason}); {REMEDY}")
    if number < stated - notes.hidden and not notes.damage:
        notes.damage.append(f"it should have {stated - notes.hidden}")
    elif duration_s is not None and end < duration_s - EARLY_END_S and not notes.hidden and not notes.damage:
        notes.damage.append(f"it ends after {end:.2f} of {duration_s:.2f} s")
    if notes.damage:
        warn(f"{path}: damaged, {number} frames could be read ({notes.damage[-1]}); look at them before training")


def show_pixels(frame: av.VideoFrame, stream: VideoStream, alpha: bool) -> Picture:
    """Return the colours (H, W, 3), or the opacity (H, W), of a stored frame, upright and with square pixels."""
    pixels: Picture
    if not alpha:
        pixels = to_rgb(frame)
    elif stores_alpha(frame):
        pixels = frame.to_ndarray(format="rgba")[..., 3]
    else:
        pixels = np.full((frame.height, frame.width), 255, np.uint8)
    width = square_width(frame, stream)
    if width != frame.width:
        pixels = cv2.resize(pixels, (width, frame.height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(turn_upright(pixels, frame))


@contextmanager
def open_at(
    path: Path, start_s: float, alpha: bool, notes: DecodingNotes
) -> Iterator[tuple[InputContainer, VideoStream, Iterator[av.VideoFrame]]]:
    """Open a video, and decode its frames from a whole picture on that is not later than start_s.

    Containers find times inexactly, and frames before the first whole picture may lack what they refer to: it is tried
    from further and further before, at last from the beginning of the file. notes: see `decode`.
    """
    for margin in (*SEEK_MARGINS_S, math.inf):
        with open_video(path) as (container, stream):
            target, notes.hidden = start_s - margin, 0
            notes.damage.clear()
            if target > 0 and not seek(container, stream, target + file_start(container)):
                continue
            frames = decode(stream, open_decoder(stream, alpha), notes)
            if target > 0:
                frames = itertools.dropwhile(lambda frame: not frame.key_frame, frames)
                first = next(frames, None)
                if first is None or first.time is None or first.time - file_start(container) > start_s:
                    continue
                frames = itertools.chain([first], frames)
            yield container, stream, frames
            return


def open_decoder(stream: VideoStream, alpha: bool) -> av.VideoCodecContext:
    """Return the decoder of a stream; with `alpha` one that decodes the opacity, too."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if not alpha or name is None:
        return stream.codec_context
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
    decoder.extradata = stream.codec_context.extradata
    return decoder


def decode(stream: VideoStream, decoder: av.VideoCodecContext, notes: DecodingNotes) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream from where its file stands. What cannot be decoded is noted."""
    container = cast(InputContainer, stream.container)
    packets, decoding_times = container.demux(stream), deque[int | None]()
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            notes.hidden += packet.is_discard
            if packet.size:
                decoding_times.append(packet.dts)
            for frame in decoder.decode(packet if packet.size else None):
                frame.time_base = stream.time_base  # The last frames come without one.
                if container.format.name in WITHOUT_TIMES and decoding_times:
                    frame.pts = decoding_times.popleft()  # The first time belongs to the first frame that is shown.
                yield frame
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            if len(notes.damage) >= MOST_DAMAGE:
                return
            notes.damage.append(describe(error))


def keep_size(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield frames of one size: those of another size than the first are resized."""
    size = None
    for frame in frames:
        size = size or (frame.width, frame.height)
        yield frame if (frame.width, frame.height) == size else frame.reformat(*size)


def deinterlace_frames(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield frames of which those that were recorded as two fields are made whole (bwdif); others are unchanged.

    Only the first PROBED_FRAMES frames tell whether a video has such frames.
    """
    probed = list(itertools.islice(frames, PROBED_FRAMES))
    frames = itertools.chain(probed, frames)
    if not any(frame.interlaced_frame for frame in probed):
        yield from frames
        return
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=probed[0].width,
        height=probed[0].height,
        format=probed[0].format,
        time_base=probed[0].time_base or Fraction(1, 90000),
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    for frame in itertools.chain(frames, [None]):
        graph.push(frame)
        while True:
            try:
                yield graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
