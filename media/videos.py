"""Write videos frame by frame: H.264 or ProRes files, with the sound of their source, or folders of images."""

import errno
import os
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import imageio_ffmpeg
import numpy as np

from media.files import make_folder
from media.images import Pixels, write_png

PUBLISHED_FPS = 10.0  # frames per second of the published videos, used for clips without a known rate

PIPE_BYTES = 2**20  # Size of the pipe to an encoder.

# HD colour, written into the file: without these tags players guess by the size, and colours shift.
COLOR_FILTER = "scale=out_color_matrix=bt709:out_range=tv"
COLOR_TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]


@dataclass(frozen=True)
class Audio:
    """The sound of a part of a video file, in seconds. Without an end it goes on to the end of the file."""

    source: Path
    start_s: float = 0.0
    end_s: float | None = None


class VideoWriter:
    """A video file that is written frame by frame and gets its final name when it is complete.

    Frames are (H, W, 3) or (H, W, 4) uint8. kind: "mp4" is H.264, "prores" is ProRes 4444 with opacity. crf: quality
    of H.264, 0 (lossless) to 51. preset: of the encoder of H.264; faster ones write larger files. For H.264 odd sizes
    are padded by repeating the last column or row, because its pixel format needs even sizes. Raises OSError if the
    encoder fails.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        crf: int = 18,
        kind: str = "mp4",
        audio: Audio | None = None,
        preset: str = "veryfast",
    ):
        self.path, self.fps, self.crf, self.kind, self.audio, self.preset = path, fps, crf, kind, audio, preset
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self.encoder: subprocess.Popen[bytes] | None = None
        self.stderr_file: IO[bytes] | None = None

    def codec_flags(self) -> list[str]:
        """Return the flags of the encoder for the kind of file."""
        if self.kind == "prores":
            return ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le", "-vendor", "apl0"]
        h264 = ["-c:v", "libx264", "-preset", self.preset, "-crf", str(self.crf), "-pix_fmt", "yuv420p"]
        # One thread: many files are written side by side, and each thread costs memory.
        return [*h264, "-threads", "1", "-g", "25", "-movflags", "+faststart"]

    def start(self, width: int, height: int, channels: int) -> subprocess.Popen[bytes]:
        """Start the encoder, which reads raw frames from its standard input, and return it."""
        shape = ["-pix_fmt", "rgba" if channels == 4 else "rgb24", "-s", f"{width}x{height}"]
        source = ["-f", "rawvideo", *shape, "-r", f"{self.fps:.9g}", "-i", "-"]
        audio_flags: list[str] = []
        if self.audio is not None:
            source += ["-ss", f"{self.audio.start_s:.6f}"]
            source += [] if self.audio.end_s is None else ["-to", f"{self.audio.end_s:.6f}"]
            source += ["-i", f"file:{self.audio.source.resolve()}"]
            # Silence follows the sound and ends with the frames: short sound must not cut the video short.
            audio_flags = ["-map", "0:v", "-map", "1:a:0", "-af", "apad", "-c:a", "aac", "-b:a", "192k", "-shortest"]
        flags = [*self.codec_flags(), "-vf", COLOR_FILTER, *COLOR_TAGS, *audio_flags]
        target = f"file:{self.temporary.resolve()}"  # ffmpeg could take a plain name for a protocol or a flag
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *flags, target]
        self.stderr_file = tempfile.TemporaryFile()  # noqa: SIM115 closed with the encoder
        # The encoder gets a process group of its own: Ctrl-C reaches only this process, which then ends the encoder.
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self.stderr_file, start_new_session=True)
        enlarge_pipe(encoder.stdin)
        return encoder

    def write(self, frame: Pixels) -> None:
        """Append one frame. The first frame decides the size of the video."""
        height, width = frame.shape[:2]
        if self.kind == "mp4" and (height % 2 or width % 2):
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.encoder is None:
            self.encoder = self.start(frame.shape[1], frame.shape[0], frame.shape[2])
        assert self.encoder.stdin is not None  # it is a pipe, as asked for in `start`
        try:
            self.encoder.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            self.close()  # raises OSError with the encoder's message
            raise OSError(errno.EIO, "the encoder ended before the last frame", str(self.path)) from None

    def close(self, keep: bool = True) -> None:
        """Finish the file, or delete it if `keep` is False. Raises OSError if the encoder could not write it."""
        encoder, self.encoder = self.encoder, None
        if encoder is None:
            return
        assert encoder.stdin is not None and self.stderr_file is not None  # both exist since `start`
        try:
            with suppress(BrokenPipeError):
                encoder.stdin.close()
            if encoder.wait() != 0 and keep:
                self.stderr_file.seek(0)
                stderr = self.stderr_file.read().decode(errors="replace").strip().splitlines()
                raise OSError(errno.EIO, stderr[-1] if stderr else "the encoder stopped", str(self.path))
            if keep:
                self.temporary.replace(self.path)
        finally:
            self.stderr_file.close()
            self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        """Finish the file, or delete it after an error."""
        self.close(keep=error_type is None)


def enlarge_pipe(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold PIPE_BYTES, so that a frame needs fewer waits, where the system can do it and allows it."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        if pipe is not None:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class FrameFolder:
    """A folder of PNG files that are written frame by frame. The first frame makes the folder.

    names: file names without suffix, one per frame.
    """

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names, self.count = folder, names, 0

    def write(self, frame: Pixels) -> None:
        """Write the next frame, (H, W, 3) or (H, W, 4) uint8."""
        if self.count == 0:
            make_folder(self.folder)
        write_png(self.folder / f"{self.names[self.count]}.png", frame)
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

    def __init__(self, folder: Path, clip_name: str, fps: float):
        self.folder, self.clip_name, self.fps = folder, clip_name, fps
        self.writers: dict[str, VideoWriter] = {}

    def write(self, kind: str, frame: Pixels) -> None:
        """Append a grey (H, W) or RGB (H, W, 3) frame to the video of this kind."""
        if kind not in self.writers:
            self.writers[kind] = VideoWriter(self.folder / f"{kind}_{self.clip_name}.mp4", self.fps, preset="superfast")
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
