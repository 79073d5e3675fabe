"""Contact sheets: several pictures with captions in one picture."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from media import Pixels

PANEL_HEIGHT_PX = 320  # height of every picture on a sheet
CAPTION_HEIGHT_PX = 28
GAP_PX = 8  # white border to the left and right of a picture and below it
TEXT_COLOR = (30, 30, 30)
PAPER_GREY = 255


def contact_sheet(pictures: dict[str, Pixels], height: int = PANEL_HEIGHT_PX) -> Pixels:
    """Return one row of pictures with their captions above them, as an (H, W, 3) uint8 image.

    pictures: caption -> (h, w) grey or (h, w, 3) RGB uint8. All are scaled to `height` pixels and keep their aspect.
    """
    return np.hstack([draw_panel(caption, picture, height) for caption, picture in pictures.items()])


def contact_rows(pictures: dict[str, Pixels], columns: int, height: int = PANEL_HEIGHT_PX) -> Pixels:
    """Return a contact sheet of several rows with `columns` pictures each. See `contact_sheet`."""
    captions = list(pictures)
    rows = [
        contact_sheet({caption: pictures[caption] for caption in captions[first : first + columns]}, height)
        for first in range(0, len(captions), columns)
    ]
    return stack_rows(rows)


def stack_rows(rows: list[Pixels]) -> Pixels:
    """Stack pictures (h, w, 3) below each other. Narrower pictures get white pixels on their right side."""
    width = max(row.shape[1] for row in rows)
    padding = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    return np.vstack([np.pad(row, pad, constant_values=PAPER_GREY) for row, pad in zip(rows, padding, strict=True)])


def draw_panel(caption: str, picture: Pixels, height: int) -> Pixels:
    """Return one picture with a caption and a white border, (H, W, 3) uint8. It is wide enough for the caption."""
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    interpolation = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_CUBIC
    scaled: NDArray = cv2.resize(picture, (width, height), interpolation=interpolation)
    font = ImageFont.load_default(size=16)
    panel_width = max(width, int(np.ceil(font.getlength(caption)))) + 2 * GAP_PX
    panel = np.full((height + CAPTION_HEIGHT_PX + GAP_PX, panel_width, 3), PAPER_GREY, np.uint8)
    panel[CAPTION_HEIGHT_PX : CAPTION_HEIGHT_PX + height, GAP_PX : GAP_PX + width] = scaled
    image = Image.fromarray(panel)
    ImageDraw.Draw(image).text((GAP_PX, 4), caption, fill=TEXT_COLOR, font=font)
    return np.asarray(image)
