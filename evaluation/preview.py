"""A run at a glance: one picture with what went in and what came out."""

from pathlib import Path

import numpy as np

import media
from implicit_neural_networks import Layers
from media import Pixels
from media.contact_sheet import PANEL_HEIGHT_PX, contact_sheet, stack_rows


def write_preview(path: Path, pictures: dict[str, Pixels], atlases: list[Pixels]) -> None:
    """Input, reconstruction and opacity of one frame above what is seen of the atlases, the foreground's first."""
    upper = contact_sheet({name: pictures[name] for name in ("input", "reconstruction", "alpha")})
    names = [f"{name} atlas" for name in Layers.for_objects(len(atlases) - 1).names]
    lower = contact_sheet(dict(zip(names, map(crop_to_seen, atlases), strict=True)), 2 * PANEL_HEIGHT_PX)
    media.write_png(path, stack_rows([upper, lower]))


def crop_to_seen(atlas: Pixels) -> Pixels:
    """An atlas image (S, S, 3) without its unseen, black margins."""
    rows, columns = np.nonzero(atlas.any(-1))
    if len(rows) == 0:
        return atlas
    return atlas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
