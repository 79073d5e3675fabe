"""Pictures: any kind in, PNG out."""

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from command_line import UserError
from media.files import write_atomically

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
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


def read_labels(path: Path, label: int) -> Pixels:
    """(H, W) uint8, 255 where a picture of labels (palette indices or grey values) has this one. Raises UserError."""
    image = open_image(path)
    if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
        raise UserError(f"{path}: {image.mode} picture, labels are palette or grey pictures; leave --label out")
    return np.where(np.asarray(image).astype(int) == label, 255, 0).astype(np.uint8)


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
        values = opacity if opacity.min() < 255 else strongest_channel(image)
    else:
        values = strongest_channel(image)
    if values.max() <= LARGEST_LABEL and path.suffix.lower() not in LOSSY_SUFFIXES:
        return np.where(values > 0, 255, 0).astype(np.uint8)
    return np.array(values)


def strongest_channel(image: Image.Image) -> Pixels:
    """(H, W) uint8; grey pictures as they are."""
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    return np.maximum.reduce([np.asarray(band) for band in image.convert("RGB").split()])


def has_grey_palette(image: Image.Image) -> bool:
    """True if all colours that a palette picture uses are grey: then it is a picture, not labels."""
    colors = np.array(image.convert("RGB")).reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())


def carries_opacity(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def has_opacity(path: Path) -> bool:
    """Whether a picture says what is see-through."""
    return carries_opacity(open_image(path))


def read_edit(path: Path) -> NDArray[np.float32]:
    """(H, W, 4) float32 in [0, 1], colour premultiplied by opacity. Raises UserError if it has no opacity."""
    image = open_image(path)
    if not carries_opacity(image):
        raise UserError(
            f"{path}: {image.mode} picture without opacity, expected RGBA; save it as a PNG with transparency, "
            "see-through where nothing is to change"
        )
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def read_with_mask(path: Path, mask_path: Path) -> NDArray[np.float32]:
    """(H, W, 4) float32 in [0, 1], premultiplied: a picture without opacity, whose opacity is a mask of its size."""
    color, mask = read_rgb(path), read_mask(mask_path)
    if mask.shape != color.shape[:2]:
        raise UserError(
            f"{mask_path}: is {mask.shape[1]} x {mask.shape[0]}, {path.name} is {color.shape[1]} x {color.shape[0]}; "
            "a mask has the size of its picture"
        )
    opacity = mask[..., None].astype(np.float32) / 255
    return np.dstack((color.astype(np.float32) / 255 * opacity, opacity))


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


def write_png(path: Path, image: Pixels) -> None:
    """Write grey, RGB or RGBA (H, W[, 3 | 4]) uint8."""
    with write_atomically(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, compress_level=3)
