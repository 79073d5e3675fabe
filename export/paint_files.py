"""The pictures and layered files of an atlas to paint on."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

import media
from editing.layered_files import ATLAS_LAYER, GUIDE_LAYER, PAINT_LAYER
from export.openraster import write_openraster
from export.photoshop import write_psd
from grids.unwrap import fill_unknown
from media import Pixels, to_8_bit
from parallel.side_by_side import run_side_by_side
from rendering.frames import VISIBLE, Floats


def write_paint_files(folder: Path, name: str, rgba: Floats, guide: Pixels, bits: int, formats: Sequence[str]) -> None:
    """Write a picture (h, w, 4) to paint on, and layered files with it, its guide and an empty layer to paint on."""
    path, pixels, empty = folder / f"{name}.png", to_8_bit(rgba), np.zeros_like(guide)
    writers = [lambda: media.write_png(path, pixels if bits == 8 else media.from_display(rgba, np.uint16))]
    if "ora" in formats:
        layers = {PAINT_LAYER: empty, GUIDE_LAYER: guide, ATLAS_LAYER: pixels}
        writers.insert(0, lambda: write_openraster(path.with_suffix(".ora"), layers))
    if "psd" in formats:
        deep = {PAINT_LAYER: empty / 255, GUIDE_LAYER: guide / 255, ATLAS_LAYER: rgba}
        writers.insert(0, lambda: write_psd(path.with_suffix(".psd"), deep, bits))
    run_side_by_side(*writers)


def join_opacity(picture: Floats, visibility: Floats, padding_px: int) -> Floats:
    """Return a picture (h, w, 3) that is opaque where it is visible, and up to padding_px around that, (h, w, 4)."""
    return np.dstack((extend_colors(picture, visibility), visible_opacity(visibility, padding_px)))


def visible_opacity(visibility: Floats, padding_px: int) -> Floats:
    """Return 1 where a texel is visible or at most padding_px from a visible one, and 0 elsewhere, (h, w)."""
    opacity = (visibility > VISIBLE).astype(np.float32)
    if not padding_px:
        return opacity
    side = 2 * padding_px + 1
    dilated = cv2.dilate(opacity, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.asarray(dilated, np.float32)


def extend_colors(picture: Floats, visibility: Floats) -> Floats:
    """Continue the colours of a picture (h, w, 3) beyond its visible part.

    So programs that resample the picture do not blend its border with black.
    """
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    known = torch.from_numpy((visibility > VISIBLE).astype(np.float32))[None, None]
    return fill_unknown(values, known)[0].permute(1, 2, 0).numpy()


def show_on_white(picture: Floats, visibility: Floats) -> Pixels:
    """Return the visible part of a picture (h, w, 3), on white."""
    is_visible = (visibility > VISIBLE)[..., None]
    return to_8_bit(np.where(is_visible, picture, 1.0))
