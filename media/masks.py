"""Masks in pictures of any kind: labels (numbers or colours of objects), or mattes (opacity)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from command_line import UserError
from media.depth import to_8_bit
from media.files import write_atomically
from media.film import DPX_SUFFIX, EXR_SUFFIX, read_dpx, read_exr
from media.images import LOSSY_SUFFIXES, Floats, Pixels, grey_to_8_bit, is_deep_grey, open_image, read_rgb

VOID_LABEL, VOID_COLOR = 255, 0xE0E0C0  # Pixels that nobody labelled, in numbers and in colours (VOC, DAVIS).
LEAST_OPACITY = 3  # Smaller values of a matte, of 255, are noise.
WHITE_SHARE = 0.98  # Pictures whose largest grey value is at least this share of white are mattes.
FAINT_SHARE = 0.5  # Hard pictures of one grey value below this share of white would be no object as mattes.
# Share of the steps between pixels that follow another step at once. Labels have hard borders; smoothed borders take
# two steps at least, which gives a third.
MOST_RAMPS = 0.2
MOST_LABELS = 64  # Pictures with more colours or grey values than this hold no labels.
MATTE_NOTE = ("Description", "opacity of an object")  # Text in the masks that this project writes: they are mattes.

Source = Literal["palette", "colors", "grey", "opacity", "noted"]


@dataclass(frozen=True)
class MaskKind:
    """How the values of masks are read, the same for all pictures of a sequence."""

    is_labels: bool  # every value except 0 is the object; otherwise values are opacity
    has_void: bool = False  # one value means that nobody labelled the pixel
    has_opacity: bool = False  # the opacity of the pictures is the matte, whatever their colours are
    is_ambiguous: bool = False  # the values could mean something else, too
    is_photo: bool = False  # many colours, and no opacity
    is_black_and_white: bool = False  # nothing between black and white, which is the object


@dataclass(frozen=True)
class MaskPicture:
    """A mask as it is stored."""

    values: NDArray[np.integer]  # (H, W) labels or grey values; colours as red << 16 | green << 8 | blue
    source: Source  # where the values come from
    white: int = 255  # the largest possible value
    is_lossless: bool = True
    opaque: NDArray[np.bool_] | None = None  # (H, W) pixels that the picture shows, if some are transparent

    @property
    def opacity(self) -> Pixels:
        """The values as opacity, (H, W) uint8. Of colours, it is the strongest channel."""
        if self.source == "colors":
            channels = [self.values >> shift & 255 for shift in (16, 8, 0)]
            return np.maximum.reduce(channels).astype(np.uint8)
        return (np.minimum(self.values.astype(np.int64), self.white) * 255 // self.white).astype(np.uint8)


@dataclass(frozen=True)
class MaskEvidence:
    """What a picture shows of the kind of its sequence."""

    source: Source
    is_lossless: bool
    peak: float  # largest value, as a share of white
    levels: frozenset[int]  # distinct values; no more than MOST_LABELS + 1 of them are kept, and the largest
    white_area: int  # pixels of the largest possible value
    other_area: int  # pixels of other values except 0
    steps: int  # pixels where the value changes, along rows and columns
    ramps: int  # pixels where it changes twice in a row


def read_mask(path: Path, kind: MaskKind | None = None) -> Pixels:
    """Read a mask of any kind as (H, W) uint8, 255 inside the object.

    kind: what `find_mask_kind` says of the whole sequence; None decides by this picture alone. Of labels, every one
    except 0 (black) is the object. Of mattes, values are kept, but for noise.
    """
    kind = kind or find_mask_kind([path])
    mask = open_mask(path, kind)
    if not kind.is_labels or mask.source in ("opacity", "noted"):
        is_noise = mask.opacity < (0 if mask.source == "noted" else LEAST_OPACITY)
        return np.where(is_noise, 0, mask.opacity).astype(np.uint8)
    is_object = mask.values > 0
    if kind.has_void:
        is_object &= mask.values != (VOID_COLOR if mask.source == "colors" else VOID_LABEL)
    if mask.opaque is not None:
        is_object &= mask.opaque
    return np.where(is_object, 255, 0).astype(np.uint8)


def read_labels(path: Path, label: int) -> Pixels:
    """Read one label of an image whose palette indices or grey values are labels.

    Returns (H, W) uint8: 255 where the image has this label, else 0. Raises UserError if the image has colours.
    """
    image = open_image(path)
    if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
        raise UserError(f"{path}: {image.mode} picture, labels are palette or grey pictures; leave --label out")
    return np.where(np.asarray(image).astype(int) == label, 255, 0).astype(np.uint8)


def find_mask_kind(paths: Iterable[Path]) -> MaskKind:
    """Decide once for a sequence of mask pictures how their values are read.

    Those that note that they are mattes are read as such anyway, and say nothing of the others.
    """
    masks = (open_mask(path) for path in paths)
    return judge_kind([measure_kind(mask) for mask in masks if mask.source != "noted"])


def judge_kind(pictures: Sequence[MaskEvidence]) -> MaskKind:
    """Return the kind that the pictures of a sequence show together.

    Palettes are labels, opacity is a matte, and so are pictures with smoothed borders. Few values with hard borders are
    labels: colours, or numbers of classes. But grey pictures that reach white are mattes, unless white is the smaller
    part of them, as pixels that nobody labelled are. A single dark value is a label, because a matte of it would hide
    the object.
    """
    sources = {picture.source for picture in pictures}
    all_levels = frozenset[int]().union(*(picture.levels for picture in pictures))
    levels = all_levels - {0}
    has_void = (VOID_COLOR if "colors" in sources else VOID_LABEL) in levels and len(levels) > 1
    if "palette" in sources:
        return MaskKind(True, has_void)
    if "opacity" in sources:
        return MaskKind(False, has_void, has_opacity=True)
    peak = max((picture.peak for picture in pictures), default=0.0)
    steps, ramps, white, other = (
        sum(getattr(picture, name) for picture in pictures) for name in ("steps", "ramps", "white_area", "other_area")
    )
    is_lossless = all(picture.is_lossless for picture in pictures)
    is_dark = 0 < peak < FAINT_SHARE
    if is_lossless and is_dark and len(levels) == 1:
        return MaskKind(True, is_ambiguous=True)
    has_few = 0 < len(levels) <= MOST_LABELS and is_lossless
    if not has_few or ramps > MOST_RAMPS * steps:
        is_photo = "colors" in sources and len(levels) > MOST_LABELS
        return MaskKind(False, has_void, is_ambiguous=is_dark, is_photo=is_photo)
    if "colors" in sources:
        return MaskKind(True, has_void, is_ambiguous=True)
    if peak < WHITE_SHARE:
        return MaskKind(is_dark or len(levels) > 1, is_ambiguous=True)
    with_white = [picture for picture in pictures if picture.white_area]
    are_mixed = all(picture.other_area for picture in with_white)  # An object that fades is white or grey, not both.
    is_void = has_void and 0 in all_levels and white < other and are_mixed
    return MaskKind(is_void, has_void, is_ambiguous=len(levels) > 1, is_black_and_white=len(levels) == 1)


def measure_kind(mask: MaskPicture) -> MaskEvidence:
    """Measure what the values of a picture show of its kind."""
    levels = np.unique(mask.values)
    steps = ramps = 0
    for axis in (0, 1):
        changes = np.diff(mask.values, axis=axis) != 0
        before, after = (changes[:-1], changes[1:]) if axis == 0 else (changes[:, :-1], changes[:, 1:])
        steps += int((before | after).sum())
        ramps += int((before & after).sum())
    white, black = (int((mask.values == value).sum()) for value in (mask.white, 0))
    return MaskEvidence(
        mask.source,
        mask.is_lossless,
        float(levels[-1]) / mask.white,
        frozenset([*levels[: MOST_LABELS + 1].tolist(), int(levels[-1])]),
        white,
        mask.values.size - white - black,
        steps,
        ramps,
    )


def open_mask(path: Path, kind: MaskKind | None = None) -> MaskPicture:
    """Read the values of a mask picture, and where they come from.

    kind: of its sequence, if it is known: whether it has opacity, and whether a palette holds labels or colours.
    """
    has_opacity = kind.has_opacity if kind is not None else None
    if path.suffix.lower() == EXR_SUFFIX:
        pixels = read_exr(path).astype(np.float32)
        matte = pixels[..., 3] if pixels.shape[2] == 4 else None
        if matte is not None and (has_opacity or (has_opacity is None and matte.min() < 1)):
            return MaskPicture(to_8_bit(matte), "opacity")
        return MaskPicture(to_8_bit(pixels[..., :3].max(-1)), "grey", is_lossless=False)
    if path.suffix.lower() == DPX_SUFFIX:
        return from_colors(read_dpx(path), is_lossless=True)
    image = open_image(path)
    is_lossless = path.suffix.lower() not in LOSSY_SUFFIXES
    if image.info.get(MATTE_NOTE[0]) == MATTE_NOTE[1]:
        return MaskPicture(np.asarray(image.convert("L")), "noted")
    if image.mode == "P" and kind is not None and not kind.is_labels:
        image = image.convert("RGBA")
    if image.mode == "P":
        opaque = np.asarray(image.convert("RGBA").getchannel("A")) > 0 if "transparency" in image.info else None
        if not has_grey_palette(image):
            return MaskPicture(np.asarray(image), "palette", opaque=opaque)
        return MaskPicture(np.asarray(image.convert("L")), "grey", opaque=opaque)
    if is_deep_grey(image):
        if image.mode == "F":
            return MaskPicture(grey_to_8_bit(image), "grey", is_lossless=False)  # Floats are no labels.
        values = np.asarray(image).astype(np.int64)
        return MaskPicture(values, "grey", white=65535 if values.max() <= 65535 else 2**31 - 1)
    if "A" in image.getbands():
        opacity = np.asarray(image.getchannel("A"))
        if has_opacity or (has_opacity is None and opacity.min() < 255):
            return MaskPicture(opacity, "opacity")
    if image.mode in ("L", "1", "LA"):
        return MaskPicture(np.asarray(image.convert("L")), "grey", is_lossless=is_lossless)
    return from_colors(np.asarray(image.convert("RGB")), is_lossless)


def from_colors(colors: NDArray, is_lossless: bool) -> MaskPicture:
    """Return a mask picture of colours (H, W, 3), uint8 or uint16; it is grey if all its colours are."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    if (red == green).all() and (red == blue).all():
        return MaskPicture(red, "grey", 255 if colors.dtype == np.uint8 else 65535, is_lossless)
    if colors.dtype != np.uint8:
        red, green, blue = red >> 8, green >> 8, blue >> 8
    return MaskPicture(red << 16 | green << 8 | blue, "colors", 0xFFFFFF, is_lossless)


def has_grey_palette(image: Image.Image) -> bool:
    """Return whether a palette image holds grey values and not labels.

    All colours that it uses are grey then, and white is among them, or the palette has no other colours at all.
    """
    used = np.array(image.convert("RGB")).reshape(-1, 3)
    palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    is_grey, only_grey = ((colors == colors[:, :1]).all() for colors in (used, palette))
    return bool(is_grey and (only_grey or used.max() == 255))


def read_edit_with_mask(path: Path, mask_path: Path) -> Floats:
    """Read an image without opacity and a mask of the same size that becomes its opacity.

    Returns (H, W, 4) float32 in [0, 1], premultiplied. Raises UserError if the sizes differ.
    """
    color, mask = read_rgb(path), read_mask(mask_path)
    if mask.shape != color.shape[:2]:
        raise UserError(
            f"{mask_path}: is {mask.shape[1]} x {mask.shape[0]}, {path.name} is {color.shape[1]} x {color.shape[0]}; "
            "a mask has the size of its picture"
        )
    opacity = mask[..., None].astype(np.float32) / 255
    return np.dstack((color.astype(np.float32) / 255 * opacity, opacity))


def write_mask(path: Path, mask: Pixels) -> None:
    """Write a mask (H, W) uint8 as a PNG that notes that its values are opacity."""
    note = PngInfo()
    note.add_text(*MATTE_NOTE)
    with write_atomically(path) as temporary:
        Image.fromarray(np.ascontiguousarray(mask)).save(temporary, compress_level=3, pnginfo=note)
