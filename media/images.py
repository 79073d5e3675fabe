"""Images: read many formats, write PNG."""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from command_line import UserError, warn
from media.depth import Pixels, show_in_8_bit
from media.files import write_atomically
from media.film import DPX_SUFFIX, EXR_SUFFIX, dpx_size, exr_size, read_dpx, read_exr

FILM_SUFFIXES = {EXR_SUFFIX, DPX_SUFFIX}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".tga"} | FILM_SUFFIXES
MAX_LISTED = 5  # folders that a message lists at most
LOSSY_SUFFIXES = {".jpg", ".jpeg", ".webp"}  # compression noise makes their small values meaningless
TRANSPOSED_ORIENTATIONS = {5, 6, 7, 8}  # values of the EXIF orientation that swap width and height
EXIF_ORIENTATION = 0x0112  # number of the EXIF entry
SAME_PROFILE = 2  # Profiles that change no colour by more than this, of 255, count as sRGB.
TIFF_BITS = 258  # number of the TIFF entry with the bits of a sample
PNG_SIGNATURE_BYTES = 8  # Bytes of a PNG file before its first block.
PNG_HEADER_BYTES = 26  # Bytes of a PNG file up to its kind of colours.
PNG_END, PNG_END_BYTES = b"IEND", 12  # The last block of a whole PNG file.
PNG_DEPTH = 24  # Position of the byte with the bits of a channel.
FINE_SIGMA_PX = 4.0  # Up to twice this standard deviation a Gaussian is computed on the image itself, in pixels.

Floats = NDArray[np.floating]
Box = tuple[slice, slice]  # rows and columns of an image


def natural_key(path: Path, has_minus: bool = False) -> list[tuple[int, int | str]]:
    """Return a sort key that compares numbers in file names by value, so that frame2 comes before frame10.

    A hyphen in front of a number is a minus sign at the beginning of a name or after _, a dot or a space, and with
    has_minus after letters, too.
    """
    sign = r"(?<!\d)-" if has_minus else r"(?:(?<=^)|(?<=[._ ]))-"
    parts = re.split(rf"((?:{sign})?\d+)", path.name)
    return [(0, int(part)) if part.lstrip("-").isdecimal() else (1, part.lower()) for part in parts]


def has_negative_numbers(names: Iterable[str]) -> bool:
    """Return whether hyphens before numbers are minus signs: the same name stands with and without one (f-1 and f1)."""
    matches = [match for match in (re.fullmatch(r"(.*?)(-?)\d+", name) for name in names) if match]
    with_sign = {match[1] for match in matches if match[2]}
    return any(match[1] in with_sign for match in matches if not match[2])


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder in natural order, without hidden files.

    Raises UserError if two of them have one name but for the suffix: it is not known which one is meant.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    by_stem: dict[str, Path] = {}
    for path in files:
        if (other := by_stem.setdefault(path.stem, path)) != path:
            one, two = sorted((other.name, path.name))
            raise UserError(f"{folder} holds {one} and {two}, two pictures of one name; keep one kind of them there")
    has_minus = has_negative_numbers(by_stem)
    return sorted(files, key=lambda path: natural_key(path, has_minus))


def explain_empty_folder(folder: Path) -> str:
    """Return the message about a folder without pictures that can be read: what it holds, and what to do."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    subfolders = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and list_images(path)]
    if subfolders:
        listed = ", ".join(subfolders[:MAX_LISTED]) + (", ..." if len(subfolders) > MAX_LISTED else "")
        return f"{folder}: holds no pictures itself, but its folders do ({listed}); give one of them"
    kinds = sorted({path.suffix.lower() for path in files if path.suffix})
    if kinds:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        return (
            f"{folder}: holds {', '.join(kinds)} files, which are not read as pictures; convert them to one of {known}"
        )
    return f"{folder}: holds no images; put pictures there, named 00000.png, 00001.png, ..."


def check_png(path: Path) -> None:
    """Raise UserError if a PNG is damaged or incomplete, by its checksums; other files are not looked at.

    It takes much less time than to decode the picture.
    """
    if path.suffix.lower() == ".png":
        with explain_failure(path), Image.open(path) as image:
            image.verify()


@contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a file that is no image or is damaged into UserError."""
    try:
        yield
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


def open_image(path: Path) -> Image.Image:
    """Return a decoded and upright image. Raises UserError if the file is no image or is damaged."""
    if path.suffix.lower() in FILM_SUFFIXES:
        raise UserError(f"{path}: EXR and DPX files are read as frames and as masks, not here; save it as a PNG")
    with explain_failure(path):
        image: Image.Image = Image.open(path)
        image.load()
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image. No pixels are decoded."""
    if path.suffix.lower() in FILM_SUFFIXES:
        return exr_size(path) if path.suffix.lower() == EXR_SUFFIX else dpx_size(path)
    try:
        with Image.open(path) as image:
            # Of a PNG, Pillow decodes all pixels to see whether Exif data comes after them.
            ends_with_pixels = image.format == "PNG" and not has_blocks_after_pixels(path)
            exif = Image.Image.getexif(image) if ends_with_pixels else image.getexif()
            is_transposed = exif.get(EXIF_ORIENTATION, 1) in TRANSPOSED_ORIENTATIONS
            width, height = image.size
            return (height, width) if is_transposed else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        open_image(path)  # raises the UserError that describes the damage
        raise


def has_blocks_after_pixels(path: Path) -> bool:
    """Return whether a PNG file has blocks between its pixels and its end, such as Exif data."""
    with path.open("rb") as file:
        file.seek(PNG_SIGNATURE_BYTES)
        has_pixels = False
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if has_pixels and kind != b"IDAT":
                return kind != b"IEND"
            has_pixels = kind == b"IDAT"
            file.seek(length + 4, io.SEEK_CUR)  # the content and its checksum
    return False


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an image is grey with 16 or 32 bits. Pillow would clip its values instead of scaling them."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_to_8_bit(image: Image.Image) -> Pixels:
    """Return a grey image of 16 bits, or of floats in [0, 1], as (H, W) uint8."""
    values = np.asarray(image).astype(np.float32)
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def find_srgb_transform(profile: bytes, mode: str) -> tuple[Any, str]:
    """Return the transform from a colour profile to sRGB for images of a mode, and what is wrong with the profile.

    The transform is None if it would change nothing, or if the profile is damaged or of another mode.
    """
    from PIL import ImageCms

    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        return None, str(error)
    if mode != "RGB":
        return transform, ""
    levels = np.arange(0, 256, 17).astype(np.uint8)
    ramps = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, -1, 3))
    changed = ImageCms.applyTransform(ramps, transform)
    difference = np.abs(np.asarray(changed, np.int16) - np.asarray(ramps)).max()
    return (transform if difference > SAME_PROFILE else None), ""


@lru_cache(maxsize=64)
def warn_of_profile(folder: Path, problem: str) -> None:
    """Warn once for each folder that a colour profile cannot be used."""
    warn(f"{folder}: a colour profile cannot be used ({problem}); colours are taken as sRGB")


def to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """Return an image in the colours of sRGB if it has the profile of others, such as Display P3 or those of a printer.

    An image without a profile is in sRGB and is returned unchanged. Warns if the profile is damaged.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    opacity = image.getchannel("A") if "A" in image.getbands() else None
    base = image if image.mode in ("RGB", "CMYK", "L") else image.convert("RGB")
    transform, problem = find_srgb_transform(profile, base.mode)
    if problem:
        warn_of_profile(path.parent, problem)
    if transform is None:
        return image
    from PIL import ImageCms

    converted = ImageCms.applyTransform(base, transform)
    assert converted is not None  # It is one, unless the conversion is done in place.
    if opacity is not None:
        converted.putalpha(opacity)
    return converted


def read_rgb(path: Path) -> Pixels:
    """Read an image of any kind as (H, W, 3) uint8 in sRGB: grey, palette, RGBA, CMYK, 16 bits, EXR or DPX.

    Opacity is ignored.
    """
    if path.suffix.lower() in FILM_SUFFIXES:
        return show_in_8_bit(read_picture(path))
    image = open_image(path)
    if is_deep_grey(image):
        return np.repeat(grey_to_8_bit(image)[..., None], 3, axis=-1)
    return np.array(to_srgb(image, path).convert("RGB"))


def read_picture(path: Path) -> NDArray:
    """Read an image at its own depth, (H, W, 3): uint8, uint16, or linear light in floats (EXR). Opacity is ignored.

    Pictures with a colour profile have 8 bits, because they become sRGB, and so have those that are stored turned.
    """
    suffix = path.suffix.lower()
    if suffix == EXR_SUFFIX:
        return read_exr(path)[..., :3]
    if suffix == DPX_SUFFIX:
        return read_dpx(path)
    return read_deep_colors(path) if is_deep_color(path) else read_rgb(path)


def is_deep_color(path: Path) -> bool:
    """Return whether a PNG or TIFF file has 16 bits, no colour profile and no turn. Only its header is read."""
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        return False
    try:
        with Image.open(path) as image:
            if image.info.get("icc_profile") or image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                return False
            if image.format == "TIFF":
                return image.tag_v2.get(TIFF_BITS, (8,))[0] == 16  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # Reading it will tell.
    with path.open("rb") as file:
        header = file.read(PNG_HEADER_BYTES)
    return header[PNG_DEPTH] == 16


def read_deep_colors(path: Path) -> NDArray:
    """Read a picture of 16 bits as (H, W, 3) uint16. Raises UserError if it is damaged."""
    data = path.read_bytes()
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or (path.suffix.lower() == ".png" and PNG_END not in data[-PNG_END_BYTES:]):
        open_image(path)  # raises the UserError that describes the damage; OpenCV may return a part of the picture
    if stored is None or stored.dtype != np.uint16:
        raise UserError(f"{path}: a picture of 16 bits that cannot be read; export it again as PNG")
    if stored.ndim == 2:
        return np.repeat(stored[..., None], 3, axis=-1)
    return cv2.cvtColor(stored, cv2.COLOR_BGRA2RGB if stored.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def stores_opacity(image: Image.Image) -> bool:
    """Return whether an open image has an opacity channel or a transparent colour."""
    return "A" in image.getbands() or "transparency" in image.info


def has_opacity(path: Path) -> bool:
    """Return whether an image file has an opacity channel or a transparent colour."""
    return stores_opacity(open_image(path))


def read_edit(path: Path) -> Floats:
    """Read an image with opacity as (H, W, 4) float32 in [0, 1], with the colour premultiplied by the opacity.

    Raises UserError if it has no opacity.
    """
    image = open_image(path)
    if not stores_opacity(image):
        raise UserError(
            f"{path}: {image.mode} picture without opacity, expected RGBA; save it as a PNG with transparency, "
            "see-through where nothing is to change"
        )
    rgba = np.asarray(to_srgb(image, path).convert("RGBA")).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def resize(image: NDArray, width: int, height: int) -> NDArray:
    """Resize an image (h, w[, C]): average pixels when it shrinks in both directions, else interpolate linearly."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fit_size(size: tuple[int, int], max_long_edge: int, min_side: int = 1) -> tuple[int, int]:
    """Return (width, height) of about the same aspect with no side longer than max_long_edge; never an enlarged size.

    min_side: shortest side that is returned, pixels.
    """
    scale = min(1.0, max_long_edge / max(size))
    return max(min_side, round(size[0] * scale)), max(min_side, round(size[1] * scale))


def blur(image: NDArray, sigma_px: float) -> NDArray[np.float32]:
    """Blur an image (H, W) or (H, W, C) by a Gaussian with a standard deviation in pixels.

    Wide Gaussians are computed on a smaller image, which takes a fraction of the time and looks the same.
    """
    values, factor = image.astype(np.float32), int(sigma_px / FINE_SIGMA_PX)
    if factor < 2:
        return cv2.GaussianBlur(values, (0, 0), sigma_px)  # type: ignore[return-value]
    height, width = image.shape[:2]
    small_size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = cv2.resize(values, small_size, interpolation=cv2.INTER_AREA)
    # Averaging and interpolating blur, too, with a variance of 1/12 and 1/6 of a small pixel.
    small_sigma = ((sigma_px / factor) ** 2 - 1 / 12 - 1 / 6) ** 0.5
    blurred = cv2.GaussianBlur(small, (0, 0), small_sigma)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def resize_labels(mask: NDArray, width: int, height: int) -> NDArray:
    """Resize a mask (h, w) by nearest pixels, so that no new values such as mixtures of 0 and 255 arise."""
    if mask.shape[:2] == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def write_png(path: Path, image: NDArray) -> None:
    """Write a grey (H, W), RGB (H, W, 3) or RGBA (H, W, 4) image of uint8 or uint16."""
    with write_atomically(path) as temporary:
        if image.dtype == np.uint16:  # Pillow writes no colours of 16 bits.
            order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[-1] if image.ndim == 3 else 1)
            stored = image if order is None else cv2.cvtColor(image, order)
            temporary.write_bytes(cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes())
            return
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, compress_level=3)
