"""Read videos: the properties of a file, and its upright frames one at a time.

The decoder is the ffmpeg program that imageio-ffmpeg brings along.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from command_line import UserError, warn
from media.images import Pixels

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".wmv", ".mts", ".ogv"}
NTSC_FACTOR = 1000 / 1001  # broadcast rates are whole numbers times this factor, such as 29.97 = 30 * 1000 / 1001
DEFAULT_FPS = 25.0  # frames per second of a file that states none, as ffmpeg assumes
ALPHA_FORMATS = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16")  # pixel formats with opacity
LARGEST_FPS = 480.0  # larger numbers in a file are the clock of its timestamps, not frames per second
SQUARE_TOLERANCE = 0.02  # pixels are square up to this relative difference of width and height
VARIABLE_RATE_SHARE = 0.02  # a mean rate this much below the rate of the timestamps means unevenly spaced frames
REMEDY = "convert it first, for instance with HandBrake or ffmpeg to H.264 mp4"


@dataclass(frozen=True)
class VideoMetadata:
    """The properties of a video file."""

    width: int  # pixels after rotation, as players show it
    height: int
    fps: float  # mean number of frames per second
    duration_s: float | None  # None if the file does not state it
    codec: str
    rotation: int  # degrees by which players turn the stored frames
    has_audio: bool
    has_alpha: bool
    is_variable: bool  # the frames are spaced unevenly in time
    has_oblong_pixels: bool = False

    @property
    def frame_count(self) -> int | None:
        """Approximate number of frames; None if the file does not state its duration."""
        return None if self.duration_s is None else max(1, round(self.duration_s * self.fps))


def read_video_metadata(path: Path) -> VideoMetadata:
    """Return the properties of a video file. Raises UserError if it is not a readable video."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); copy or download it again")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", f"file:{path.resolve()}"]
    stderr = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    stream = re.search(r"Stream #\S+.*?: Video: (.*)", stderr)
    if stream is None:
        if "Stream #" in stderr or "Duration:" in stderr:
            kinds = stream_kinds(stderr)
            raise UserError(f"{path}: has no video stream, only {kinds}; give a file with pictures in it")
        raise UserError(f"{path}: not a video that can be read ({last_stderr_line(stderr, path)}); {REMEDY}")
    description = stream.group(1)
    size = re.search(r"\b(\d{1,5})x(\d{1,5})\b", description)
    if size is None or "none" in description.split(" ")[0]:
        raise UserError(f"{path}: its video can't be decoded ({description[:80].strip()}); {REMEDY}")
    width, height = round(int(size[1]) * pixel_aspect(description)), int(size[2])
    turn = re.search(r"rotation of (-?[\d.]+) degrees", stderr)
    rotation = round(-float(turn[1])) % 360 if turn else 0
    rates = (number_before(unit, description) for unit in ("fps", "tbr"))
    mean_rate, timestamp_rate = (rate if rate and rate <= LARGEST_FPS else None for rate in rates)
    duration = re.search(r"Duration: (\d+):(\d+):([\d.]+)", stderr)
    return VideoMetadata(
        *((height, width) if rotation in (90, 270) else (width, height)),
        fps=exact_rate(mean_rate or timestamp_rate or DEFAULT_FPS),
        duration_s=int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]) if duration else None,
        codec=description.split(" ")[0].strip(","),
        rotation=rotation,
        has_audio="Audio:" in stderr,
        has_alpha=any(name in description for name in ALPHA_FORMATS) or bool(re.search(r"alpha_mode\s*: 1", stderr)),
        is_variable=bool(mean_rate and timestamp_rate and mean_rate < timestamp_rate * (1 - VARIABLE_RATE_SHARE)),
        has_oblong_pixels=pixel_aspect(description) != 1,
    )


def pixel_aspect(description: str) -> float:
    """Return the width of a pixel divided by its height, from ffmpeg's description of a stream.

    The aspect differs from 1 in old and broadcast formats. Many other files state an aspect close to 1 because their
    sizes were rounded to whole pixels; the result for them is exactly 1.
    """
    match = re.search(r"SAR (\d+):(\d+)", description)
    aspect = int(match[1]) / int(match[2]) if match and int(match[1]) and int(match[2]) else 1.0
    return aspect if abs(aspect - 1) > SQUARE_TOLERANCE else 1.0


def number_before(unit: str, description: str) -> float | None:
    """Return the number in front of a unit in ffmpeg's description of a stream. In it, 1k means 1000."""
    match = re.search(rf"([\d.]+)(k?) {unit}\b", description)
    return float(match[1]) * (1000 if match[2] else 1) if match else None


def exact_rate(rate: float) -> float:
    """Return the exact broadcast rate for a rate rounded to two digits, such as 23.98, 29.97 or 59.94.

    Other rates are returned unchanged.
    """
    broadcast = round(rate / NTSC_FACTOR) * NTSC_FACTOR
    return broadcast if abs(rate - broadcast) < 0.006 and abs(rate - round(rate)) > 0.006 else rate


def stream_kinds(stderr: str) -> str:
    """Return the kinds of streams that ffmpeg lists, such as "audio and subtitle"."""
    kinds = sorted({kind.lower() for kind in re.findall(r"Stream #\S+.*?: (\w+):", stderr)})
    return " and ".join(kinds) or "metadata"


def last_stderr_line(stderr: str, path: Path) -> str:
    """Return ffmpeg's last message, without the folder of `path` and without the name of the part that wrote it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    line = lines[-1] if lines else "ffmpeg gave no reason"
    return re.sub(r"^\[[^\]]*\]\s*", "", line.replace(f"file:{path.resolve()}", path.name))


def read_video(
    path: Path,
    start_s: float = 0.0,
    end_s: float | None = None,
    fps: float | None = None,
    alpha: bool = False,
) -> Iterator[Pixels]:
    """Yield the upright frames of a video, (H, W, 3) uint8 with square pixels. With `alpha`, yield its opacity (H, W).

    start_s, end_s: the part to read, in seconds. fps: a constant rate; frames are repeated or left out to reach it.
    Raises UserError if no frame can be decoded. Warns after the last readable frame if the file is damaged.
    """
    command = decoding_command(path, start_s, end_s, fps, alpha)
    with tempfile.TemporaryFile() as stderr_file:
        ffmpeg = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr_file, start_new_session=True)
        assert ffmpeg.stdout is not None  # it is a pipe, as asked for above
        count = 0
        try:
            while (frame := read_netpbm(ffmpeg.stdout)) is not None:
                count += 1
                yield frame
            ffmpeg.wait()
        finally:
            ffmpeg.kill()
            ffmpeg.stdout.close()
            ffmpeg.wait()
        stderr_file.seek(0)
        stderr = stderr_file.read().decode(errors="replace")
    if count == 0:
        reason = last_stderr_line(stderr, path) if stderr.strip() else "no frame lies between --start and --end"
        raise UserError(f"{path}: no frame could be read ({reason}); {REMEDY}")
    if stderr.strip():
        reason = last_stderr_line(stderr, path)
        warn(f"{path}: damaged, {count} frames could be read ({reason}); look at them before training")


def decoding_command(path: Path, start_s: float, end_s: float | None, fps: float | None, alpha: bool) -> list[str]:
    """Return the ffmpeg command that writes frames to its standard output as PPM, or opacity as PGM."""
    metadata = read_video_metadata(path)
    # ffmpeg's own decoder of VP9 ignores opacity.
    decoder = ["-c:v", "libvpx-vp9"] if alpha and metadata.codec == "vp9" else []
    span = ["-ss", f"{start_s:.6f}"] if start_s > 0 else []
    span += ["-to", f"{end_s:.6f}"] if end_s is not None else []
    source = ["-v", "error", "-nostdin", *decoder, *span, "-i", f"file:{path.resolve()}", "-map", "0:v:0"]
    make_square = "scale=trunc(iw*sar+0.5):ih,setsar=1"
    filters = [] if fps is None else [f"fps={fps:.9g}"]
    filters += [make_square] * metadata.has_oblong_pixels + ["alphaextract"] * alpha
    filter_flags = ["-vf", ",".join(filters)] if filters else []
    image_format = ["pgm", "-pix_fmt", "gray"] if alpha else ["ppm", "-pix_fmt", "rgb24"]
    target = ["-f", "image2pipe", "-c:v", *image_format, "-"]
    return [imageio_ffmpeg.get_ffmpeg_exe(), *source, *filter_flags, *target]


def read_netpbm(stream: IO[bytes]) -> Pixels | None:
    """Return the next binary PPM (H, W, 3) or PGM (H, W) picture of a stream; None at its end."""
    magic = stream.readline().strip()
    size, depth = stream.readline().split(), stream.readline()
    if not depth:
        return None
    width, height = map(int, size)
    shape = (height, width, 3) if magic == b"P6" else (height, width)
    data = stream.read(int(np.prod(shape)))
    return np.frombuffer(data, np.uint8).reshape(shape) if len(data) == np.prod(shape) else None
