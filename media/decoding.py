"""Read videos: the properties of a file, and its upright frames one at a time, each with its own time.

Files are decoded by PyAV, the libraries of FFmpeg.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import av.stream
import cv2
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from command_line import UserError, warn
from media.color import HDR_NAMES, Picture, to_rgb
from media.images import Pixels

DEFAULT_FPS = 25.0  # frames per second of a file that states neither times nor a rate
SQUARE_TOLERANCE = 0.02  # pixels are square up to this relative difference of width and height
PROBED_FRAMES = 3  # frames that are decoded to learn the properties of a video
# Seconds before the wanted time at which decoding begins, one after the other until a whole picture comes early
# enough; then the beginning of the file.
SEEK_MARGINS_S = (1.0, 5.0, 30.0)
REMEDY = "convert it first, for instance with HandBrake or ffmpeg to H.264 mp4"
ALPHA_REMEDY = "export it as ProRes 4444, as VP9 in WebM or as a folder of PNG pictures, which keep the opacity"
COVER_PICTURE = av.stream.Disposition.attached_pic
UNIT_LENGTH_BYTES = 4
MOST_DAMAGE = 100  # packets that cannot be decoded, after which reading ends
LEAST_SPACING_S = 1e-4  # between two frames whose time stamps are equal or in the wrong order
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave opacity out.


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
    has_alpha: bool
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
        frames = list(itertools.islice(decode(stream, stream.codec_context, []), PROBED_FRAMES))
        codec = stream.codec_context.name
        if not frames:
            raise UserError(f"{path}: its video can't be decoded (no picture of the kind {codec} is whole); {REMEDY}")
        first = frames[0]
        height, width = turn_upright(np.empty((first.height, square_width(first, stream)), bool), first).shape
        return VideoMetadata(
            width,
            height,
            fps=float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS),
            duration_s=read_duration(container, stream),
            codec=codec,
            rotation=-first.rotation % 360,
            has_audio=bool(container.streams.audio),
            has_alpha=has_alpha(stream, first),
            hdr=HDR_NAMES.get(int(first.color_trc)),
            is_interlaced=any(frame.interlaced_frame for frame in frames),
            has_oblong_pixels=pixel_aspect(stream) != 1,
        )


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and choose its stream of pictures; a cover picture is none.

    Raises UserError if there is no such file, no video in it, or no decoder for it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); copy or download it again")
    try:
        # Without "file:", a name with a colon would be taken for a protocol.
        container = av.open(f"file:{path.resolve()}", "r", metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: not a video that can be read ({describe(error)}); {REMEDY}") from None
    with container:
        moving = [stream for stream in container.streams.video if not stream.disposition & COVER_PICTURE]
        if not moving:
            kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "metadata"
            raise UserError(f"{path}: has no video stream, only {kinds}; give a file with pictures in it")
        if moving[0].codec_context is None:
            raise UserError(f"{path}: its video can't be decoded (a kind that FFmpeg does not know); {REMEDY}")
        moving[0].thread_type = "AUTO"
        yield container, moving[0]


def describe(error: Exception) -> str:
    """Return the reason of an error of FFmpeg, without the name of the file."""
    return getattr(error, "strerror", None) or str(error)


def file_start(container: InputContainer) -> float:
    """Return the time stamp, in seconds, that players show as the beginning of a file.

    Broadcast files begin at any time. Sound that begins a little before zero is not counted.
    """
    return max(0.0, (container.start_time or 0) / av.time_base)


def read_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return when the pictures of a file end, in seconds, or None if the file states it only with its sound."""
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - file_start(container)
    is_alone = not container.streams.audio
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


def stores_alpha(frame: av.VideoFrame) -> bool:
    """Return whether a decoded frame has opacity."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def has_hidden_alpha(path: Path) -> bool:
    """Return whether a video is HEVC with opacity in a layer of its own, which FFmpeg does not decode."""
    with open_video(path) as (container, stream):
        if stream.codec_context.name != "hevc":
            return False
        units = split_units(bytes(next(container.demux(stream))))
        return any(unit[0] & 1 or unit[1] >> 3 for unit in units)  # the number of the layer; 0 is the picture


def split_units(packet: bytes) -> list[bytes]:
    """Return the units of an HEVC packet, which follow start codes in broadcast files, or else their lengths."""
    if packet.startswith((b"\0\0\1", b"\0\0\0\1")):
        return [unit for unit in packet.split(b"\0\0\1")[1:] if len(unit) > 1]
    units = []
    while len(packet) > UNIT_LENGTH_BYTES + 1:
        end = UNIT_LENGTH_BYTES + int.from_bytes(packet[:UNIT_LENGTH_BYTES], "big")
        units.append(packet[UNIT_LENGTH_BYTES:end])
        packet = packet[end:]
    return [unit for unit in units if len(unit) > 1]


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
    damage: list[str] = []
    number, stated = 0, 0
    with open_at(path, start_s, alpha, damage) as (container, stream, frames):
        offset, half_tick = file_start(container), float(stream.time_base or 0) / 2
        stated = stream.frames if start_s == 0 and end_s is None else 0
        frames = keep_size(frames)
        for time, frame in time_frames(weave_fields(frames) if deinterlace else frames, stream):
            if end_s is not None and time - offset >= end_s - half_tick:
                break
            if time - offset < start_s - half_tick:
                continue
            number += 1
            duration = frame.duration * frame.time_base if frame.duration and frame.time_base else None
            pixels = show_pixels(frame, stream, alpha)
            yield TimedFrame(time - offset, None if duration is None else float(duration), pixels)
    if number == 0:
        reason = damage[-1] if damage else "no frame lies between --start and --end"
        raise UserError(f"{path}: no frame could be read ({reason}); {REMEDY}")
    if number < stated and not damage:
        damage.append(f"it should have {stated}")
    if damage:
        warn(f"{path}: damaged, {number} frames could be read ({damage[-1]}); look at them before training")


def show_pixels(frame: av.VideoFrame, stream: VideoStream, alpha: bool) -> Picture:
    """Return the colours (H, W, 3), or the opacity (H, W), of a stored frame, upright and with square pixels."""
    if alpha:
        pixels: Picture = full_opacity(frame)
        if stores_alpha(frame):
            pixels = frame.to_ndarray(format="rgba")[..., 3]
    else:
        pixels = to_rgb(frame)
    width = square_width(frame, stream)
    if width != frame.width:
        pixels = cv2.resize(pixels, (width, frame.height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(turn_upright(pixels, frame))


def full_opacity(frame: av.VideoFrame) -> Pixels:
    """Return the opacity of a frame that stores none, (H, W) uint8."""
    return np.full((frame.height, frame.width), 255, np.uint8)


@contextmanager
def open_at(
    path: Path, start_s: float, alpha: bool, damage: list[str]
) -> Iterator[tuple[InputContainer, VideoStream, Iterator[av.VideoFrame]]]:
    """Open a video, and decode its frames from a whole picture on that is not later than start_s.

    Containers find times inexactly, and frames before the first whole picture may lack what they refer to: it is tried
    from further and further before, at last from the beginning of the file. damage: see `decode`.
    """
    for margin in (*SEEK_MARGINS_S, math.inf):
        with open_video(path) as (container, stream):
            target = start_s - margin
            if target > 0 and not seek(container, stream, target + file_start(container)):
                continue
            frames = decode(stream, open_decoder(stream, alpha), damage if target <= 0 else [])
            if target > 0:
                frames = itertools.dropwhile(lambda frame: not frame.key_frame, frames)
                first = next(frames, None)
                if first is None or first.time is None or first.time - file_start(container) > start_s:
                    continue
                frames = itertools.chain([first], frames)
            yield container, stream, frames
            return


def seek(container: InputContainer, stream: VideoStream, time_s: float) -> bool:
    """Move to a time stamp of a file; return whether the file can do that."""
    try:
        container.seek(math.floor(time_s / float(stream.time_base or 1)), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def open_decoder(stream: VideoStream, alpha: bool) -> av.VideoCodecContext:
    """Return the decoder of a stream; with `alpha` one that decodes the opacity, too."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if not alpha or name is None:
        return stream.codec_context
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
    decoder.extradata = stream.codec_context.extradata
    return decoder


def decode(stream: VideoStream, decoder: av.VideoCodecContext, damage: list[str]) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream from where its file stands. What cannot be decoded is noted in `damage`."""
    packets = cast(InputContainer, stream.container).demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            for frame in decoder.decode(packet if packet.size else None):
                frame.time_base = stream.time_base  # The last frames come without one.
                yield frame
        except av.error.EOFError:
            return
        except (av.error.InvalidDataError, av.error.OSError, av.error.UnknownError) as error:
            if len(damage) >= MOST_DAMAGE:
                return
            damage.append(describe(error))


def keep_size(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield frames of one size: those of another size than the first are resized."""
    size = None
    for frame in frames:
        size = size or (frame.width, frame.height)
        yield frame if (frame.width, frame.height) == size else frame.reformat(*size)


def weave_fields(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield frames of which those that were recorded as two fields are made whole (bwdif); others are unchanged.

    A video without such frames at its beginning is not looked at further.
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


def time_frames(frames: Iterator[av.VideoFrame], stream: VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield each frame with its time stamp in seconds. Frames without one follow the frame before at the stated rate.

    Time stamps that do not grow are moved behind the one before: no frame is lost.
    """
    spacing, last = 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS), -math.inf
    for frame in frames:
        time = frame.time if frame.time is not None else max(last, file_start(stream.container) - spacing) + spacing
        last = max(time, last + LEAST_SPACING_S)
        yield last, frame


def count_frames(path: Path, start_s: float, end_s: float | None, most: int) -> int:
    """Return how many frames of a video lie in a part, without decoding them. Counting stops above `most`."""
    end = math.inf if end_s is None else end_s
    for margin in (SEEK_MARGINS_S[-1], math.inf):
        with open_video(path) as (container, stream):
            target = start_s - margin
            if target > 0 and not seek(container, stream, target + file_start(container)):
                continue
            stamps = (stamp - file_start(container) for stamp in read_stamps(container, stream, end))
            half_tick = float(stream.time_base or 0) / 2
            chosen = (stamp for stamp in stamps if start_s - half_tick <= stamp < end - half_tick)
            number = sum(1 for _ in itertools.islice(chosen, most + 1))
        if number or target <= 0:
            break
    return number


def read_stamps(container: InputContainer, stream: VideoStream, end_s: float) -> Iterator[float]:
    """Yield the time stamp of each frame of a stream in seconds, in the order of the file, until one after end_s."""
    tick, spacing = float(stream.time_base or 0), 1 / float(stream.average_rate or DEFAULT_FPS)
    last, end = file_start(container) - spacing, end_s + file_start(container)
    with suppress(av.error.FFmpegError):  # A damaged end: what was found so far is there.
        for packet in container.demux(stream):
            if packet.dts is not None and packet.dts * tick > end:
                return  # Frames are never stored after they are shown.
            if packet.size and not packet.is_discard:
                stamp = packet.dts if packet.pts is None else packet.pts
                last = last + spacing if stamp is None else stamp * tick
                yield last
