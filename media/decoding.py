"""Videos in: what a file holds, and its frames one at a time, upright, by the ffmpeg that comes with imageio-ffmpeg."""

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
NTSC = 1000 / 1001  # 29.97 stands for 30 * NTSC
ALPHA_FORMATS = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16")
FASTEST = 480.0  # frames per second; files that tell more tell the clock of their timestamps
SQUARE_TOLERANCE = 0.02
VARIABLE = 0.02  # a mean rate this much below the rate of the timestamps says that frames are spaced unevenly
REMEDY = "convert it first, for instance with HandBrake or ffmpeg to H.264 mp4"


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself."""

    width: int  # as shown, after rotation
    height: int
    fps: float  # mean
    duration_s: float | None
    codec: str
    rotation: int  # degrees that players turn it by
    has_audio: bool
    has_alpha: bool
    is_variable: bool  # frames are spaced unevenly
    has_oblong_pixels: bool = False

    @property
    def frames(self) -> int | None:
        """About how many; None if the file does not say how long it is."""
        return None if self.duration_s is None else max(1, round(self.duration_s * self.fps))


def video_facts(path: Path) -> VideoFacts:
    """What is in a video file. Raises UserError if it is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); copy or download it again")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", f"file:{path.resolve()}"]
    told = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    stream = re.search(r"Stream #\S+.*?: Video: (.*)", told)
    if stream is None:
        if "Stream #" in told or "Duration:" in told:
            raise UserError(f"{path}: has no video stream, only {stream_kinds(told)}; give a file with pictures in it")
        raise UserError(f"{path}: not a video that can be read ({last_stderr_line(told, path)}); {REMEDY}")
    described = stream.group(1)
    size = re.search(r"\b(\d{1,5})x(\d{1,5})\b", described)
    if size is None or "none" in described.split(" ")[0]:
        raise UserError(f"{path}: its video can't be decoded ({described[:80].strip()}); {REMEDY}")
    width, height = round(int(size[1]) * pixel_aspect(described)), int(size[2])
    turn = re.search(r"rotation of (-?[\d.]+) degrees", told)
    rotation = round(-float(turn[1])) % 360 if turn else 0
    told_rates = (number_before(unit, described) for unit in ("fps", "tbr"))
    rate, stamps = (each if each and each <= FASTEST else None for each in told_rates)
    fps = exact_rate(rate or stamps or 25.0)
    long = re.search(r"Duration: (\d+):(\d+):([\d.]+)", told)
    return VideoFacts(
        *((height, width) if rotation in (90, 270) else (width, height)),
        fps=fps,
        duration_s=int(long[1]) * 3600 + int(long[2]) * 60 + float(long[3]) if long else None,
        codec=described.split(" ")[0].strip(","),
        rotation=rotation,
        has_audio="Audio:" in told,
        has_alpha=any(name in described for name in ALPHA_FORMATS) or bool(re.search(r"alpha_mode\s*: 1", told)),
        is_variable=bool(rate and stamps and rate < stamps * (1 - VARIABLE)),
        has_oblong_pixels=pixel_aspect(described) != 1,
    )


def pixel_aspect(described: str) -> float:
    """Width of a pixel by its height, of ffmpeg's description of a stream; 1 but for old and broadcast formats.

    Rounding to whole pixels leaves ratios close to 1 in many files: these are 1.
    """
    found = re.search(r"SAR (\d+):(\d+)", described)
    aspect = int(found[1]) / int(found[2]) if found and int(found[1]) and int(found[2]) else 1.0
    return aspect if abs(aspect - 1) > SQUARE_TOLERANCE else 1.0


def number_before(unit: str, text: str) -> float | None:
    """The number in front of a unit in ffmpeg's description of a stream; 1k is a thousand."""
    found = re.search(rf"([\d.]+)(k?) {unit}\b", text)
    return float(found[1]) * (1000 if found[2] else 1) if found else None


def exact_rate(rate: float) -> float:
    """A rate that is told with two digits, exactly: 23.98, 29.97 and 59.94 are broadcast rates."""
    broadcast = round(rate / NTSC) * NTSC
    return broadcast if abs(rate - broadcast) < 0.006 and abs(rate - round(rate)) > 0.006 else rate


def stream_kinds(told: str) -> str:
    """The kinds of streams ffmpeg lists, in words."""
    kinds = sorted({kind.lower() for kind in re.findall(r"Stream #\S+.*?: (\w+):", told)})
    return " and ".join(kinds) or "metadata"


def last_stderr_line(told: str, path: Path) -> str:
    """The last line that ffmpeg said, without the path in front."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    line = lines[-1] if lines else "ffmpeg says nothing"
    return re.sub(r"^\[[^\]]*\]\s*", "", line.replace(f"file:{path.resolve()}", path.name))


def read_video(
    path: Path,
    start_s: float = 0.0,
    end_s: float | None = None,
    fps: float | None = None,
    alpha: bool = False,
) -> Iterator[Pixels]:
    """Yield a video's frames (H, W, 3) uint8, upright; with `alpha` its opacity (H, W) instead.

    fps: at this constant rate, frames repeated or left out as time asks. Raises UserError if nothing can be decoded,
    and warns of damage after what can be.
    """
    facts = video_facts(path)
    decoder = ["-c:v", "libvpx-vp9"] if alpha and facts.codec == "vp9" else []  # ffmpeg's own drops opacity
    span = ["-ss", f"{start_s:.6f}"] if start_s > 0 else []
    span += ["-to", f"{end_s:.6f}"] if end_s is not None else []
    square = "scale=trunc(iw*sar+0.5):ih,setsar=1"  # frames are of square pixels
    filters = [] if fps is None else [f"fps={fps:.9g}"]
    filters += [square] * facts.has_oblong_pixels + ["alphaextract"] * alpha
    picture = ["-f", "image2pipe", "-c:v", *(["pgm", "-pix_fmt", "gray"] if alpha else ["ppm", "-pix_fmt", "rgb24"])]
    filtered = ["-vf", ",".join(filters)] if filters else []
    source = ["-v", "error", "-nostdin", *decoder, *span, "-i", f"file:{path.resolve()}", "-map", "0:v:0"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *source, *filtered, *picture, "-"]
    with tempfile.TemporaryFile() as complaints:
        ffmpeg = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True)
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
        complaints.seek(0)
        said = complaints.read().decode(errors="replace")
    if count == 0:
        reason = last_stderr_line(said, path) if said.strip() else "no frame lies between --start and --end"
        raise UserError(f"{path}: no frame could be read ({reason}); {REMEDY}")
    if said.strip():
        warn(
            f"{path}: damaged, {count} frames could be read ({last_stderr_line(said, path)}); look at them before training"
        )


def read_netpbm(stream: IO[bytes]) -> Pixels | None:
    """The next binary PPM (H, W, 3) or PGM (H, W) picture in a stream; None at its end."""
    magic = stream.readline().strip()
    size, depth = stream.readline().split(), stream.readline()
    if not depth:
        return None
    width, height = map(int, size)
    shape = (height, width, 3) if magic == b"P6" else (height, width)
    data = stream.read(int(np.prod(shape)))
    return np.frombuffer(data, np.uint8).reshape(shape) if len(data) == np.prod(shape) else None
