"""Video files as containers: which stream is the picture, when its frames are shown, how many there are.

Files are read by PyAV, the libraries of FFmpeg.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import av.stream
from av.container import InputContainer
from av.video.stream import VideoStream

from command_line import UserError

DEFAULT_FPS = 25.0  # frames per second of a file that states neither times nor a rate
# Seconds before a wanted time at which reading may begin, because containers find times inexactly. The first one is
# tried first; at last reading begins at the beginning of the file.
SEEK_MARGINS_S = (1.0, 5.0, 30.0)
REMEDY = "convert it first, for instance with HandBrake or ffmpeg to H.264 mp4"
COVER_PICTURE = av.stream.Disposition.attached_pic
UNIT_LENGTH_BYTES, PICTURE_UNITS = 4, 32  # HEVC: bytes of a unit's length, and number of the kinds that hold pictures
# A time stamp so much later is the same in formats whose stamps may begin anew; in others it is a pause.
BROADCAST_FORMATS, JUMP_AHEAD_S = {"mpegts", "mpeg"}, 10.0
JUMP_S = 0.1  # A time stamp that lies this much before the last one is the beginning of another recording.


def open_media(path: Path) -> InputContainer:
    """Open a file with video or sound. Raises av.error.FFmpegError if it is none."""
    # Without "file:", a name with a colon would be taken for a protocol.
    return av.open(f"file:{path.resolve()}", "r", metadata_errors="replace")


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
        container = open_media(path)
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


def seek(container: InputContainer, stream: VideoStream, time_s: float) -> bool:
    """Move to a time stamp of a file; return whether the file can do that."""
    try:
        container.seek(math.floor(time_s / float(stream.time_base or 1)), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def frame_spacing(stream: VideoStream) -> float:
    """Return the mean time between two frames in seconds, as the file states it."""
    return 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def time_frames(frames: Iterator[av.VideoFrame], stream: VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield each frame with its time stamp in seconds; they grow from frame to frame.

    A frame without a time stamp follows the one before at the stated rate. Where stamps jump back, or far ahead in a
    broadcast format, as in recordings that were joined, all later ones are shifted so that they follow what came
    before. Equal stamps are moved apart a little.
    """
    spacing, tick = frame_spacing(stream), float(stream.time_base or 0)
    longest_pause = JUMP_AHEAD_S if stream.container.format.name in BROADCAST_FORMATS else math.inf
    last: float | None = None
    shift = 0.0
    for frame in frames:
        if frame.time is None:
            time = file_start(stream.container) if last is None else last + spacing
        else:
            time = frame.time + shift
            if last is not None and not last - JUMP_S <= time <= last + longest_pause:
                shift += last + spacing - time
                time = last + spacing
        last = time if last is None else max(time, last + tick)
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
    tick, spacing = float(stream.time_base or 0), frame_spacing(stream)
    last, end = file_start(container) - spacing, end_s + file_start(container)
    with suppress(av.error.FFmpegError):  # A damaged end: what was found so far is there.
        for packet in container.demux(stream):
            if packet.dts is not None and packet.dts * tick > end:
                return  # A frame is shown no earlier than it is decoded, so none of the following ones counts.
            if packet.size and not packet.is_discard:
                stamp = packet.dts if packet.pts is None else packet.pts
                last = last + spacing if stamp is None else stamp * tick
                yield last


def has_hidden_alpha(path: Path) -> bool:
    """Return whether a video is HEVC with opacity in a layer of its own, which FFmpeg does not decode."""
    with open_video(path) as (container, stream), suppress(av.error.FFmpegError, StopIteration):
        if stream.codec_context.name == "hevc":
            units = split_units(bytes(next(container.demux(stream))))
            pictures = (unit for unit in units if unit[0] >> 1 & 63 < PICTURE_UNITS)
            return any(unit[0] & 1 or unit[1] >> 3 for unit in pictures)  # the number of the layer; 0 is the colours
    return False


def split_units(packet: bytes) -> list[bytes]:
    """Return the units of an HEVC packet, which follow start codes in broadcast files, or else their lengths.

    The result is empty if the packet is damaged.
    """
    if packet.startswith((b"\0\0\1", b"\0\0\0\1")):
        return [unit for unit in packet.split(b"\0\0\1")[1:] if len(unit) > 1]
    units = []
    while packet:
        length = int.from_bytes(packet[:UNIT_LENGTH_BYTES], "big")
        if not 1 < length <= len(packet) - UNIT_LENGTH_BYTES:
            return []
        units.append(packet[UNIT_LENGTH_BYTES : UNIT_LENGTH_BYTES + length])
        packet = packet[UNIT_LENGTH_BYTES + length :]
    return units
