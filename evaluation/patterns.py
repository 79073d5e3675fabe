"""Patterns that make a mapping visible: colours, a checkerboard, letters to print on an atlas."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.float32]

SQUARES = 20  # of the checkerboard along a side of an atlas
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LETTERS_PER_ROW = 10
DARK, LIGHT = (0.85, 0.15, 0.35), (0.95, 0.95, 0.85)


def uv_colors(uv: Floats) -> Floats:
    """Places (H, W, 2) in [-1, 1] as colours (H, W, 3): u is red, v is green, and what is low in both is blue."""
    share = np.clip(uv / 2 + 0.5, 0, 1)
    return np.dstack((share, 1 - share.mean(-1)))


def checkerboard(uv: Floats) -> Floats:
    """Places (H, W, 2) in [-1, 1] -> (H, W, 3): squares that lie still on the layer."""
    odd = np.floor((uv + 1) / 2 * SQUARES).sum(-1) % 2 == 1
    return np.where(odd[..., None], np.float32(DARK), np.float32(LIGHT))


def letter_pattern(size: int) -> Floats:
    """(size, size, 4) in [0, 1], colour premultiplied by opacity: rows of letters, each in a colour of its own."""
    image = Image.new("RGBA", (size, size))
    pen, cell = ImageDraw.Draw(image), size / LETTERS_PER_ROW
    font = ImageFont.load_default(size=0.8 * cell)
    for row in range(LETTERS_PER_ROW):
        for column in range(LETTERS_PER_ROW):
            letter = LETTERS[(row * LETTERS_PER_ROW + column) % len(LETTERS)]
            hue = round(255 * column / LETTERS_PER_ROW)
            color = (hue, round(255 * row / LETTERS_PER_ROW), 255 - hue, 255)
            pen.text(
                ((column + 0.5) * cell, (row + 0.5) * cell),
                letter,
                color,
                font,
                anchor="mm",
                stroke_width=size // 200,
                stroke_fill="white",
            )
    rgba = np.asarray(image).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba
