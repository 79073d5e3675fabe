"""Videos out, frame by frame: H.264 or ProRes files with the sound of their source, folders of pictures."""

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

PUBLISHED_FPS = 10.0  # of the published videos; used where the clip does not say


# HD colour, said in the file: without it players guess by the size, and colours shift.
COLOR_FILTER = "scale=out_color_matrix=bt709:out_range=tv"
COLOR_TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]


@dataclass(frozen=True)
class Audio:
    """The sound of a part of a file."""

    source: Path
    start_s: float = 0.0
    end_s: float | None = None


class VideoWriter:
    """A video file for frames (H, W, 3 or 4) uint8 that come one at a time; appears under its name when complete.

    kind: "mp4" is H.264, "prores" ProRes 4444 with opacity. Odd sizes are padded for H.264 by repeating the last column
    or row, which its pixel format needs. One encoder thread: many files are written side by side, and each thread costs
    memory. Raises OSError if the encoder fails.
    """

    def __init__(self, path: Path, fps: float, crf: int = 18, kind: str = "mp4", audio: Audio | None = None):
        self.path, self.fps, self.crf, self.kind, self.audio = path, fps, crf, kind, audio
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self.encoder: subprocess.Popen | None = None
        self.complaints: IO[bytes] | None = None

    def coding(self) -> list[str]:
        """The encoder's flags."""
        if self.kind == "prores":
            return ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le", "-vendor", "apl0"]
        h264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(self.crf), "-pix_fmt", "yuv420p"]
        return [*h264, "-threads", "1", "-g", "25", "-movflags", "+faststart"]

    def start(self, width: int, height: int, channels: int) -> None:
        """Start the encoder, which reads raw frames."""
        shape = ["-pix_fmt", "rgba" if channels == 4 else "rgb24", "-s", f"{width}x{height}"]
        source = ["-f", "rawvideo", *shape, "-r", f"{self.fps:.9g}", "-i", "-"]
        sound: list[str] = []
        if self.audio is not None:
            source += ["-ss", f"{self.audio.start_s:.6f}"]
            source += [] if self.audio.end_s is None else ["-to", f"{self.audio.end_s:.6f}"]
            source += ["-i", f"file:{self.audio.source.resolve()}"]
            # Silence goes on after the sound, and ends with the pictures, which must not be cut short.
            sound = ["-map", "0:v", "-map", "1:a:0", "-af", "apad", "-c:a", "aac", "-b:a", "192k", "-shortest"]
        coding = [*self.coding(), "-vf", COLOR_FILTER, *COLOR_TAGS, *sound]
        target = f"file:{self.temporary.resolve()}"  # a plain name could be taken for a protocol or a flag
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *coding, target]
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed with the encoder
        # A session of its own: Ctrl-C reaches this process, which then ends the encoder.
        self.encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self.complaints, start_new_session=True)

    def write(self, frame: Pixels) -> None:
        """Append one frame; the first decides the size."""
        height, width = frame.shape[:2]
        if self.kind == "mp4" and (height % 2 or width % 2):
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.encoder is None:
            self.start(frame.shape[1], frame.shape[0], frame.shape[2])
        try:
            self.encoder.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            self.close()  # raises what the encoder said
            raise OSError(errno.EIO, "the encoder ended before the last frame", str(self.path)) from None

    def close(self, keep: bool = True) -> None:
        """Finish the file, or drop what there is of it. Raises OSError if the encoder could not write it."""
        encoder, self.encoder = self.encoder, None
        if encoder is None:
            return
        try:
            with suppress(BrokenPipeError):
                encoder.stdin.close()
            if encoder.wait() != 0 and keep:
                self.complaints.seek(0)
                said = self.complaints.read().decode(errors="replace").strip().splitlines()
                raise OSError(errno.EIO, said[-1] if said else "the encoder stopped", str(self.path))
            if keep:
                self.temporary.replace(self.path)
        finally:
            self.complaints.close()
            self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self.close(keep=error_type is None)


class FrameFolder:
    """A folder of PNGs for frames that come one at a time, named after the source's; made with the first one."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names, self.count = folder, names, 0

    def write(self, frame: Pixels) -> None:
        """Append one frame (H, W, 3 or 4)."""
        if self.count == 0:
            make_folder(self.folder)
        write_png(self.folder / f"{self.names[self.count]}.png", frame)
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Frames that were written stay."""


class VideoSet:
    """Several videos of one clip, written side by side: `videos.write("alpha", frame)` makes alpha_NAME.mp4."""

    def __init__(self, folder: Path, clip_name: str, fps: float):
        self.folder, self.clip_name, self.fps = folder, clip_name, fps
        self.writers: dict[str, VideoWriter] = {}

    def write(self, kind: str, frame: Pixels) -> None:
        """Append a frame to the video of this kind, grey (H, W) or RGB."""
        if kind not in self.writers:
            self.writers[kind] = VideoWriter(self.folder / f"{kind}_{self.clip_name}.mp4", self.fps)
        if frame.ndim == 2:
            frame = np.repeat(frame[..., None], 3, axis=-1)
        self.writers[kind].write(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        with ExitStack() as closing:  # one that fails does not keep the others from closing
            for writer in self.writers.values():
                closing.callback(writer.close, keep=error_type is None)
