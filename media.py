"""Images and videos on disk: any kind of picture in, PNG and H.264 out, nothing half-written under its final name."""

import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

import cv2
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from command_line import UserError, named

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
PUBLISHED_FPS = 10.0  # of the published videos; used where the clip does not say
LOSSY_SUFFIXES = {".jpg", ".jpeg", ".webp"}  # their black is noisy: small numbers there mean nothing
LARGEST_LABEL = 16  # a lossless mask without anything brighter holds labels
TURNED_ORIENTATIONS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
EXIF_ORIENTATION = 0x0112

Pixels = NDArray[np.uint8]


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that counts: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder in natural order; empty if there are none. Hidden files do not count."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(files, key=natural_key)


def open_image(path: Path) -> Image.Image:
    """A fully decoded, upright picture. Raises UserError if the file is no image or is cut short."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a picture") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that can be read; export it again as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too large a picture; make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three on damaged data
        raise UserError(f"{path}: damaged or incomplete image ({error}); export it again") from None
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return image


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as shown, from the header alone."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED_ORIENTATIONS
            return image.size[::-1] if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        open_image(path)  # raises the error that names what is wrong
        raise


def is_deep_grey(image: Image.Image) -> bool:
    """True for 16-bit and 32-bit grey pictures, which Pillow would clip instead of scale."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_to_8_bit(image: Image.Image) -> Pixels:
    """A 16-bit (or float in [0, 1]) grey picture as (H, W) uint8."""
    values = np.asarray(image).astype(np.float32)
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def read_rgb(path: Path) -> Pixels:
    """(H, W, 3) uint8 of a picture of any kind: grey, palette, RGBA (opacity dropped), CMYK, 16 bits."""
    image = open_image(path)
    if is_deep_grey(image):
        return np.repeat(grey_to_8_bit(image)[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> Pixels:
    """(H, W) uint8, 255 inside the object, of a mask of any kind.

    Coloured palettes (a DAVIS annotation) and lossless grey pictures that hold only small numbers are labels: any
    label but 0 is object. A picture whose opacity varies is a cut-out: its opacity is the mask. Other colours count
    by their strongest channel; soft values are kept.
    """
    image = open_image(path)
    if image.mode == "P" and not has_grey_palette(image):
        return np.where(np.asarray(image) > 0, 255, 0).astype(np.uint8)
    if is_deep_grey(image):
        raw = np.asarray(image)
        values = raw.astype(np.uint8) if image.mode != "F" and raw.max() <= LARGEST_LABEL else grey_to_8_bit(image)
    elif "A" in image.getbands():
        opacity = np.asarray(image.getchannel("A"))
        values = opacity if opacity.min() < 255 else np.asarray(image.convert("RGB")).max(-1)
    else:
        values = np.asarray(image.convert("RGB")).max(-1)
    if values.max() <= LARGEST_LABEL and path.suffix.lower() not in LOSSY_SUFFIXES:
        return np.where(values > 0, 255, 0).astype(np.uint8)
    return np.array(values)


def has_grey_palette(image: Image.Image) -> bool:
    """True if all colours that a palette picture uses are grey: then it is a picture, not labels."""
    colors = np.array(image.convert("RGB")).reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())


def read_edit(path: Path) -> NDArray[np.float32]:
    """(H, W, 4) float32 in [0, 1], colour premultiplied by opacity. Raises UserError if it has no opacity."""
    image = open_image(path)
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise UserError(
            f"{path}: {image.mode} picture without opacity, expected RGBA; save it as a PNG with transparency, "
            "see-through where nothing is to change"
        )
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def resize(image: NDArray, width: int, height: int) -> NDArray:
    """Resize a picture: averaging when it shrinks, linear when it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_labels(mask: NDArray, width: int, height: int) -> NDArray:
    """Resize a mask to its nearest pixels, so that 0 and 255 stay 0 and 255."""
    if mask.shape[:2] == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def to_8_bit(values: NDArray[np.floating]) -> Pixels:
    """[0, 1] to 0..255, rounded."""
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_png(path: Path, image: Pixels) -> None:
    """Write grey, RGB or RGBA (H, W[, 3 | 4]) uint8."""
    with written_whole(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, compress_level=3)


def make_folder(folder: Path) -> Path:
    """Make a folder where there is none. Raises UserError if a file is in its place."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, a folder of that name is to be written; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_folder(folder: Path) -> Path:
    """Make `folder`; if it holds files already, make the first free `folder_2`, `folder_3`, ... instead."""
    folder = candidate = named(folder)
    number = 2
    while candidate.is_dir() and any(candidate.iterdir()):
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return make_folder(candidate)


class VideoWriter:
    """An H.264 file for frames (H, W, 3) uint8 that come one at a time; appears under its name when complete.

    Odd sizes are padded by repeating the last column or row, which the pixel format needs. One encoder thread: many
    files are written side by side, and each thread costs memory. Raises OSError if the encoder fails.
    """

    def __init__(self, path: Path, fps: float, crf: int = 18):
        self.path, self.fps, self.crf = path, fps, crf
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self.encoder: subprocess.Popen | None = None
        self.complaints: IO[bytes] | None = None

    def start(self, width: int, height: int) -> None:
        """Start the encoder, which reads raw frames."""
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self.fps:.6g}", "-i", "-"]
        coding = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(self.crf), "-pix_fmt", "yuv420p"]
        layout = ["-threads", "1", "-g", "25", "-movflags", "+faststart"]
        target = f"file:{self.temporary.resolve()}"  # a plain name could be taken for a protocol or a flag
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *coding, *layout, target]
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed with the encoder
        # A session of its own: Ctrl-C reaches this process, which then ends the encoder.
        self.encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self.complaints, start_new_session=True)

    def write(self, frame: Pixels) -> None:
        """Append one frame; the first decides the size."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.encoder is None:
            self.start(frame.shape[1], frame.shape[0])
        try:
            self.encoder.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            self.close()  # raises what the encoder said

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
        for writer in self.writers.values():
            writer.close(keep=error_type is None)
