"""Several pictures with captions as one picture."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from media import Pixels

PANEL_HEIGHT_PX, CAPTION_PX, GAP_PX = 320, 28, 8
INK, PAPER = (30, 30, 30), 255


def contact_sheet(pictures: dict[str, Pixels], height: int = PANEL_HEIGHT_PX) -> Pixels:
    """Pictures, grey or RGB, side by side at one height, each under its caption: (H, W, 3) uint8."""
    return np.hstack([draw_panel(caption, picture, height) for caption, picture in pictures.items()])


def contact_rows(pictures: dict[str, Pixels], columns: int, height: int = PANEL_HEIGHT_PX) -> Pixels:
    """The same in rows of so many pictures."""
    names = list(pictures)
    rows = [
        contact_sheet({name: pictures[name] for name in names[first : first + columns]}, height)
        for first in range(0, len(names), columns)
    ]
    return stack_rows(rows)


def stack_rows(rows: list[Pixels]) -> Pixels:
    """Pictures below each other, the narrower ones filled up with paper."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER) for row in rows])


def draw_panel(caption: str, picture: Pixels, height: int) -> Pixels:
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
