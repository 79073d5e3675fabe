"""A run at a glance: one picture with what went in and what came out."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import media
from implicit_neural_networks import layer_names
from media import Pixels

PANEL_HEIGHT_PX, CAPTION_PX, GAP_PX = 320, 28, 8
INK, PAPER = (30, 30, 30), 255


def contact_sheet(pictures: dict[str, Pixels], height: int = PANEL_HEIGHT_PX) -> Pixels:
    """Pictures, grey or RGB, side by side at one height, each under its caption: (H, W, 3) uint8."""
    return np.hstack([panel(caption, picture, height) for caption, picture in pictures.items()])


def contact_rows(pictures: dict[str, Pixels], columns: int, height: int = PANEL_HEIGHT_PX) -> Pixels:
    """The same in rows of so many pictures."""
    names = list(pictures)
    rows = [
        contact_sheet({name: pictures[name] for name in names[first : first + columns]}, height)
        for first in range(0, len(names), columns)
    ]
    return stacked_rows(rows)


def stacked_rows(rows: list[Pixels]) -> Pixels:
    """Pictures below each other, the narrower ones filled up with paper."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER) for row in rows])


def panel(caption: str, picture: Pixels, height: int) -> Pixels:
    """One captioned picture with a white border."""
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    sheet = np.full((height + CAPTION_PX + GAP_PX, width + 2 * GAP_PX, 3), PAPER, np.uint8)
    sheet[CAPTION_PX : CAPTION_PX + height, GAP_PX : GAP_PX + width] = picture
    image = Image.fromarray(sheet)
    ImageDraw.Draw(image).text((GAP_PX, 4), caption, fill=INK, font=ImageFont.load_default(size=16))
    return np.asarray(image)


def write_preview(path: Path, pictures: dict[str, Pixels], atlases: list[Pixels]) -> None:
    """Input, reconstruction and opacity of one frame above what is seen of the atlases, the foreground's first."""
    upper = contact_sheet({name: pictures[name] for name in ("input", "reconstruction", "alpha")})
    names = [f"{name} atlas" for name in layer_names(len(atlases))]
    lower = contact_sheet(dict(zip(names, map(seen_part, atlases), strict=True)), 2 * PANEL_HEIGHT_PX)
    media.write_png(path, stacked_rows([upper, lower]))


def seen_part(atlas: Pixels) -> Pixels:
    """An atlas image (S, S, 3) without its unseen, black margins."""
    rows, columns = np.nonzero(atlas.any(-1))
    if len(rows) == 0:
        return atlas
    return atlas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
