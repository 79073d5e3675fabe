"""Layered files that people paint in: OpenRaster (.ora: Krita, GIMP) and Photoshop (.psd), read back as they are."""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

import media
from command_line import UserError, warn
from rendering.blending import BLEND_MODES, alpha_over
from rendering.frames import Floats

LAYERED_SUFFIXES = {".ora", ".psd"}
PAINT_LAYER, GUIDE_LAYER, ATLAS_LAYER = "paint here", "guide", "atlas"  # Names of the layers in exported files.
NOT_PAINT = {GUIDE_LAYER, ATLAS_LAYER}
PLAIN_OPERATOR = "svg:src-over"  # OpenRaster's name of normal blending; the other names are "svg:" and the blend mode.


@dataclass
class PaintPart:
    """Paint that is composited with one blend mode."""

    rgba: Floats  # (h, w, 4) in [0, 1], premultiplied
    blend: str | None = None  # one of rendering.blending.BLEND_MODES; None: normal, or that of the request


@dataclass
class FileLayer:
    """A visible layer of a layered file, or a group of layers."""

    name: str
    blend: str  # a key of BLEND_MODES, or the file's own name of a blend mode that is not known
    opacity: float  # 0 to 1
    rgba: Floats | None  # (h, w, 4) premultiplied, as large as the image; None for a group
    children: list["FileLayer"]  # of a group, from the lowest to the uppermost


def read_paint(path: Path) -> list[PaintPart]:
    """Read the paint of a picture of any kind, from the lowest to the uppermost.

    A layered file gives all its visible layers but the atlas and the guide, with their opacity and blend mode;
    neighbouring layers that are blended normally are one. Other pictures are read by `media.read_edit`. Raises
    UserError if the file cannot be read or holds no visible layer for paint.
    """
    if path.suffix.lower() not in LAYERED_SUFFIXES:
        return [PaintPart(media.read_edit(path))]
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    status = path.stat()
    return list(read_layered_paint(path, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def read_layered_paint(path: Path, time_ns: int, size: int) -> tuple[PaintPart, ...]:
    """Read the paint of a layered file; see `read_paint`. It is read and warned about once, until it is saved again.

    time_ns and size: of the file as it is now.
    """
    layers = read_openraster(path) if path.suffix.lower() == ".ora" else read_psd(path)
    if not layers:
        raise UserError(
            f"{path}: has no visible layers (a flattened image has none); save it with its layers, or give a PNG of "
            "the paint alone, with transparency"
        )
    paint = merge_normal(collect_paint(path, layers))
    if not paint:
        raise UserError(
            f'{path}: no visible layer to paint on; paint in a layer of its own, such as "{PAINT_LAYER}", not in '
            f'"{ATLAS_LAYER}" or "{GUIDE_LAYER}", and show it'
        )
    return tuple(paint)


def collect_paint(path: Path, layers: Iterable[FileLayer], opacity: float = 1.0) -> Iterator[PaintPart]:
    """Yield the paint of layers, from the lowest to the uppermost, without the atlas and the guide.

    A group that is blended normally is as good as its layers, each with the opacity of the group. Another group is
    composited first.
    """
    for layer in layers:
        if layer.name.strip().lower() in NOT_PAINT:
            continue
        if layer.rgba is None and layer.blend == "normal":
            yield from collect_paint(path, layer.children, opacity * layer.opacity)
            continue
        rgba = layer.rgba
        if rgba is None:
            parts = [paint.rgba for paint in collect_paint(path, layer.children)]
            if not parts:
                continue
            rgba = alpha_over(parts)
        blend = layer.blend
        if blend not in BLEND_MODES:
            warn(
                f'{path}: layer "{layer.name}" has the blend mode {blend}, which is not known here; it is blended '
                f"normally (known are {', '.join(BLEND_MODES)})"
            )
            blend = "normal"
        yield PaintPart(rgba * np.float32(opacity * layer.opacity), None if blend == "normal" else blend)


def merge_normal(paint: Iterable[PaintPart]) -> list[PaintPart]:
    """Composite neighbours that are blended normally into one."""
    merged: list[PaintPart] = []
    for part in paint:
        if merged and part.blend is None and merged[-1].blend is None:
            merged[-1] = PaintPart(alpha_over([merged[-1].rgba, part.rgba]))
        else:
            merged.append(part)
    return merged


def read_openraster(path: Path) -> list[FileLayer]:
    """Read the visible layers of an OpenRaster file, from the lowest to the uppermost.

    Raises UserError if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            image = ElementTree.fromstring(archive.read("stack.xml"))
            size = int(image.attrib["w"]), int(image.attrib["h"])
            stack = image.find("stack")
            return [] if stack is None else read_stack(path, archive, stack, size)
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError) as error:
        raise damage_error(path, "OpenRaster", error) from None


def damage_error(path: Path, kind: str, error: Exception) -> Exception:
    """Return the error for a layered file that cannot be read. An error of the disk, which has a number, stays."""
    if isinstance(error, OSError) and error.errno:
        return error
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: damaged, or no {kind} file ({reason}); save it again")


def read_stack(
    path: Path, archive: zipfile.ZipFile, stack: ElementTree.Element, size: tuple[int, int]
) -> list[FileLayer]:
    """Read the visible layers of a <stack> element, which lists the uppermost first. size: (width, height)."""
    layers = []
    for element in reversed(stack):
        if element.tag not in ("layer", "stack") or element.get("visibility", "visible") != "visible":
            continue
        operator = element.get("composite-op", PLAIN_OPERATOR)
        blend = "normal" if operator == PLAIN_OPERATOR else operator.removeprefix("svg:")
        rgba, children = None, []
        if element.tag == "stack":
            children = read_stack(path, archive, element, size)
        else:
            stored = Image.open(io.BytesIO(archive.read(element.attrib["src"])))
            picture = media.to_srgb(stored, path).convert("RGBA")
            corner = int(element.get("x", "0")), int(element.get("y", "0"))
            rgba = place(np.asarray(picture).astype(np.float32) / 255, corner, size)
        opacity = float(element.get("opacity", "1"))
        layers.append(FileLayer(element.get("name", ""), blend, opacity, rgba, children))
    return layers


def read_psd(path: Path) -> list[FileLayer]:
    """Read the visible layers of a Photoshop file, from the lowest to the uppermost.

    Raises UserError if it is damaged, or if its colours are not red, green and blue.
    """
    check_psd(path)
    from psd_tools import PSDImage
    from psd_tools.constants import ColorMode, Resource

    try:
        document = PSDImage.open(path)
        if document.color_mode != ColorMode.RGB:
            raise UserError(f"{path}: its colours are {document.color_mode.name}; convert the image to RGB and save it")
        profile = document.image_resources.get_data(Resource.ICC_PROFILE)
        return read_group(document, document.size, lambda colors: convert_colors(colors, profile, path))
    except (OSError, ValueError, AssertionError, EOFError, KeyError, IndexError) as error:
        raise damage_error(path, "Photoshop", error) from None


def check_psd(path: Path) -> None:
    """Raise UserError if the library for Photoshop files is not installed. path: the file, for the error."""
    if find_spec("psd_tools") is None:
        raise UserError(
            f"{path}: Photoshop files need a package: pip install psd-tools (or use .ora, which Krita and GIMP open)"
        )


def convert_colors(colors: Floats, profile: bytes | None, path: Path) -> Floats:
    """Convert colours (h, w, 3) in [0, 1] from a colour profile to sRGB; if that changes them, in steps of 8 bits."""
    picture = Image.fromarray(media.to_8_bit(colors))
    picture.info["icc_profile"] = profile
    converted = media.to_srgb(picture, path)
    return colors if converted is picture else np.asarray(converted, np.float32) / 255


def read_group(group: Any, size: tuple[int, int], convert: Callable[[Floats], Floats]) -> list[FileLayer]:
    """Read the visible layers of a Photoshop document or group. Layers without pixels, such as effects, are left out.

    size: (width, height) of the image. convert: turns the file's colours (h, w, 3) into those of sRGB.
    """
    layers = []
    for layer in group:
        if not layer.visible:
            continue
        name, blend = layer.name.strip("\0 "), layer.blend_mode.name.lower()  # Krita ends names with a zero.
        if layer.is_group():
            blend = "normal" if blend == "pass_through" else blend
            layers.append(FileLayer(name, blend, layer.opacity / 255, None, read_group(layer, size, convert)))
        elif layer.has_pixels():
            values = np.asarray(layer.numpy(), np.float32)
            if values.shape[2] == 3:
                values = np.dstack((values, np.ones_like(values[..., :1])))
            values = np.dstack((convert(values[..., :3]), values[..., 3:]))
            rgba = place(values, layer.offset, size)
            if layer.has_mask() and not layer.mask.disabled:
                rgba = rgba * read_layer_mask(layer, size)
            layers.append(FileLayer(name, blend, layer.opacity / 255, rgba, []))
    return layers


def read_layer_mask(layer: Any, size: tuple[int, int]) -> Floats:
    """Return the mask of a Photoshop layer (h, w, 1) in [0, 1], as large as the image of (width, height)."""
    mask = np.full((size[1], size[0], 1), layer.mask.background_color / 255, np.float32)
    values = layer.numpy("mask")
    if values is not None and values.size:
        paste(mask, np.asarray(values, np.float32), (layer.mask.left, layer.mask.top))
    return mask


def place(rgba: Floats, corner: tuple[int, int], size: tuple[int, int]) -> Floats:
    """Premultiply a picture (h, w, 4), and place its corner at a pixel (x, y) of an empty image of (width, height)."""
    image = np.zeros((size[1], size[0], 4), np.float32)
    paste(image, np.dstack((rgba[..., :3] * rgba[..., 3:], rgba[..., 3:])), corner)
    return image


def paste(image: Floats, picture: Floats, corner: tuple[int, int]) -> None:
    """Replace a part of an image by a picture whose corner is at the pixel (x, y); what lies outside is cut off."""
    (left, top), (height, width) = corner, picture.shape[:2]
    rows = slice(max(0, top), max(0, min(image.shape[0], top + height)))
    columns = slice(max(0, left), max(0, min(image.shape[1], left + width)))
    if rows.start < rows.stop and columns.start < columns.stop:
        image[rows, columns] = picture[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
