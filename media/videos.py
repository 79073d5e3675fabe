"""Write videos frame by frame: H.264, ProRes or FFV1 files, with the sound of their source, or folders of images."""

import errno
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import NDArray

from media.color import ACCURATE, BT709_MATRIX, Picture
from media.depth import encode_picture, make_linear
from media.files import make_folder, temporary_path
from media.film import write_exr
from media.images import Pixels, write_png
from media.sound import Audio, SoundWriter

PUBLISHED_FPS = 10.0  # frames per second of the published videos, used for clips without a known rate

QUEUED_FRAMES = 1  # Frames that wait for each encoder at most; an evaluation has fifteen of them.
TICKS_PER_SECOND = 90000  # Time unit of frames that are spaced unevenly.
LARGEST_DENOMINATOR = 1001  # Of a frame rate; broadcast rates are multiples of 1000/1001.
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # names of the formats by suffix
BT709 = 1  # number of its matrix, primaries and transfer in the H.273 standard


@dataclass(frozen=True)
class Codec:
    """How frames are encoded: the name of the encoder, its options, and the pixels that it takes."""

    name: str
    options: dict[str, str]
    pixel_format: str
    suffix: str


def choose_codec(kind: str, crf: int, preset: str, channels: int, is_deep: bool) -> Codec:
    """Return the codec for a kind of file and for frames of 3 or 4 channels with 8 or, if deep, 16 bits."""
    if kind == "prores":
        return Codec("prores_ks", {"profile": "4444", "vendor": "apl0"}, "yuva444p10le", ".mov")
    if kind == "ffv1":
        formats = {(3, False): "bgr0", (4, False): "bgra", (3, True): "gbrp16le", (4, True): "gbrap16le"}
        return Codec("ffv1", {"level": "3", "slicecrc": "1"}, formats[channels, is_deep], ".mkv")
    return Codec("libx264", {"preset": preset, "crf": str(crf)}, "yuv420p", ".mp4")


class VideoWriter:
    """A video file that is written frame by frame and gets its final name when it is complete.

    Frames are (H, W, 3) or (H, W, 4), uint8, uint16 or linear floats. kind: "mp4" is H.264, "prores" is ProRes 4444
    with opacity, "ffv1" is lossless, with opacity. times_s: when each frame is shown, and when the last one ends, in
    seconds, for frames that are spaced unevenly. crf: quality of H.264, 0 (lossless) to 51. preset: of the encoder of
    H.264; faster ones write larger files. For H.264 odd sizes are padded by repeating the last column or row, because
    its pixel format needs even sizes. A thread encodes while the next frames are made. Raises OSError if the encoder
    fails.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        crf: int = 18,
        kind: str = "mp4",
        audio: Audio | None = None,
        preset: str = "veryfast",
        times_s: Sequence[float] = (),
    ):
        self.path, self.kind, self.audio, self.crf, self.preset = path, kind, audio, crf, preset
        self.rate, self.times_s = exact_rate(fps), times_s
        self.temporary = temporary_path(path)
        self.encoder = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()
        self.container: OutputContainer | None = None
        self.count = 0
        self.durations: dict[int, int] = {}  # of the frames in the encoder, by time stamp, in units of the time base

    def write(self, frame: Picture) -> None:
        """Append one frame. The first frame decides the size of the video."""
        self.pending.append(self.encoder.submit(self.encode, frame))
        while len(self.pending) > QUEUED_FRAMES:
            self.pending.popleft().result()

    def encode(self, picture: Picture) -> None:
        """Encode one frame, and the sound up to its end."""
        picture = encode_picture(picture)
        height, width = picture.shape[:2]
        if self.kind == "mp4" and (height % 2 or width % 2):
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # type: ignore[assignment]
        with name_in_errors(self.path):
            if self.container is None:
                self.start(picture)
            assert self.container is not None
            frame = make_frame(picture, self.pixel_format)
            frame.time_base, frame.pts = self.time_base, self.ticks(self.count)
            self.durations[frame.pts] = self.ticks(self.count + 1) - frame.pts
            self.count += 1
            self.mux(self.stream.encode(frame))
            if self.sound is not None:
                self.sound.write_until(float(self.ticks(self.count) * self.time_base))

    def mux(self, packets: Sequence[av.Packet]) -> None:
        """Write encoded frames with their durations, which encoders do not keep."""
        assert self.container is not None
        for packet in packets:
            if packet.pts is not None:
                packet.duration = self.durations.pop(packet.pts, packet.duration)
            self.container.mux(packet)

    def ticks(self, number: int) -> int:
        """Return when a frame begins, in units of the time base."""
        lead_s = self.audio.lead_s if self.audio is not None else 0.0
        if len(self.times_s) > number:
            return round(lead_s / self.time_base) + self.ticks_of_times[number]
        return number + round(lead_s / self.time_base)

    def start(self, picture: Picture) -> None:
        """Open the file, and the streams for pictures of this kind and for sound."""
        height, width, channels = picture.shape
        codec = choose_codec(self.kind, self.crf, self.preset, channels, picture.dtype == np.uint16)
        is_matroska = codec.suffix == ".mkv"
        options = {} if is_matroska else {"movflags": "+faststart", "movie_timescale": str(TICKS_PER_SECOND)}
        # Without "file:", a name with a colon would be taken for a protocol.
        target = f"file:{self.temporary.resolve()}"
        self.container = av.open(target, "w", format=CONTAINERS[codec.suffix], container_options=options)
        self.time_base = Fraction(1, TICKS_PER_SECOND) if self.times_s else 1 / self.rate
        self.ticks_of_times = count_ticks(self.times_s, self.time_base)
        stream = cast(VideoStream, self.container.add_stream(codec.name, rate=self.rate, options=codec.options))
        stream.width, stream.height, stream.pix_fmt = width, height, codec.pixel_format
        context = stream.codec_context
        context.time_base = self.time_base
        if self.kind == "mp4":
            # One thread: many files are written side by side, and each thread costs memory.
            context.thread_count, context.gop_size = 1, 25
            if self.times_s:  # The last frame that is stored has to be the last one that is shown, to last long enough.
                context.max_b_frames = 0
        if codec.pixel_format.startswith("yuv"):
            # HD colour, written into the file: without these tags players guess by the size, and colours shift.
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = ColorRange.MPEG
        self.stream, self.pixel_format = stream, codec.pixel_format
        self.sound = None if self.audio is None else SoundWriter(self.audio, self.container)

    def finish(self) -> None:
        """Write what the encoders still hold, and close the file."""
        assert self.container is not None
        with name_in_errors(self.path):
            self.mux(self.stream.encode(None))
            if self.sound is not None:
                self.sound.close()
            self.container.close()

    def close(self, keep: bool = True) -> None:
        """Finish the file, or delete it if `keep` is False. Raises OSError if the encoder could not write it."""
        try:
            if keep:
                while self.pending:
                    self.pending.popleft().result()
            else:
                self.encoder.shutdown(cancel_futures=True)
            if self.container is not None and keep:
                self.encoder.submit(self.finish).result()
                self.temporary.replace(self.path)
        finally:
            self.encoder.shutdown(cancel_futures=True)
            self.pending.clear()
            if self.container is not None:
                self.container.close()
                self.container = None
            self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        """Finish the file, or delete it after an error."""
        self.close(keep=error_type is None)


def count_ticks(times_s: Sequence[float], time_base: Fraction) -> list[int]:
    """Return times after the first one in units of a time base, each at least one unit after the one before.

    Cameras write frames a millionth of a second apart, and files that hold two frames at the same time are refused.
    """
    ticks: list[int] = []
    for time_s in times_s:
        tick = round((time_s - times_s[0]) / time_base)
        ticks.append(max(tick, ticks[-1] + 1) if ticks else tick)
    return ticks


def exact_rate(fps: float) -> Fraction:
    """Return frames per second as a fraction of small numbers, exact for broadcast rates; time lapses may be slow."""
    if fps < 1:
        return 1 / Fraction(1 / fps).limit_denominator(LARGEST_DENOMINATOR)
    return Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Turn an error of the encoder into an OSError that names the file."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(number, f"the encoder stopped: {error}", str(path)) from None


def make_frame(picture: Picture, pixel_format: str) -> av.VideoFrame:
    """Return a picture (H, W, 3) or (H, W, 4), uint8 or uint16, as a frame of the encoder's pixels."""
    depth = "48le" if picture.dtype == np.uint16 else "24"
    given = ("rgba64le" if depth == "48le" else "rgba") if picture.shape[2] == 4 else f"rgb{depth}"
    array: Any = np.ascontiguousarray(picture)
    frame = av.VideoFrame.from_ndarray(array, format=given)
    if not pixel_format.startswith("yuv"):
        return frame.reformat(format=pixel_format)
    frame = frame.reformat(
        format=pixel_format,
        dst_colorspace=BT709_MATRIX,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=ACCURATE,
    )
    frame.colorspace, frame.color_range = BT709, ColorRange.MPEG
    return frame


class FrameFolder:
    """A folder of pictures that are written frame by frame. The first frame makes the folder.

    names: file names without suffix, one per frame. kind: "png", or "exr" with linear light.
    """

    def __init__(self, folder: Path, names: list[str], kind: str = "png"):
        self.folder, self.names, self.kind, self.count = folder, names, kind, 0

    def write(self, frame: NDArray) -> None:
        """Write the next frame, (H, W, 3) or (H, W, 4) of uint8, uint16 or linear floats, without a loss.

        A PNG of linear floats, which it cannot hold, has 16 bits.
        """
        if self.count == 0:
            make_folder(self.folder)
        path = self.folder / f"{self.names[self.count]}.{self.kind}"
        if self.kind == "png":
            write_png(path, encode_picture(frame))
        else:
            write_exr(path, {"RGBA"[: frame.shape[2]]: make_linear(frame)})
        self.count += 1

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the frames written so far, also after an error."""


class VideoSet:
    """Several videos of one clip that are written side by side.

    `videos.write("alpha", frame)` appends a frame to the file alpha_NAME.mp4.
    """

    def __init__(self, folder: Path, clip_name: str, fps: float, times_s: Sequence[float] = ()):
        self.folder, self.clip_name, self.fps, self.times_s = folder, clip_name, fps, times_s
        self.writers: dict[str, VideoWriter] = {}

    def write(self, kind: str, frame: Pixels) -> None:
        """Append a grey (H, W) or RGB (H, W, 3) frame to the video of this kind."""
        if kind not in self.writers:
            path = self.folder / f"{kind}_{self.clip_name}.mp4"
            self.writers[kind] = VideoWriter(path, self.fps, preset="superfast", times_s=self.times_s)
        if frame.ndim == 2:
            frame = np.repeat(frame[..., None], 3, axis=-1)
        self.writers[kind].write(frame)

    def __enter__(self) -> Self:
        """Return the set."""
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        """Finish all files, or delete them after an error. All are closed even if one of them fails."""
        with ExitStack() as closing:
            for writer in self.writers.values():
                closing.callback(writer.close, keep=error_type is None)
