"""The preview of a run: one image that shows a frame of the input and the output."""

from pathlib import Path

import numpy as np

import media
from implicit_neural_networks import Layers
from media import Pixels
from media.contact_sheet import PANEL_HEIGHT_PX, contact_sheet, stack_rows


def write_preview(path: Path, pictures: dict[str, Pixels], atlases: list[Pixels]) -> None:
    """Write an image with input, reconstruction and opacity of one frame in a row, and the atlases below.

    pictures: images (H, W, 3) under the names "input", "reconstruction" and "alpha". atlases: images (S, S, 3), the
    foreground's first.
    """
    upper = contact_sheet({name: pictures[name] for name in ("input", "reconstruction", "alpha")})
    names = [f"{name} atlas" for name in Layers.for_objects(len(atlases) - 1).names]
    lower = contact_sheet(dict(zip(names, map(crop_to_visible, atlases), strict=True)), 2 * PANEL_HEIGHT_PX)
    media.write_png(path, stack_rows([upper, lower]))


def crop_to_visible(atlas: Pixels) -> Pixels:
    """Crop an atlas image (S, S, 3) to its visible part: invisible texels are black."""
    rows, columns = np.nonzero(atlas.any(-1))
    if len(rows) == 0:
        return atlas
    return atlas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
