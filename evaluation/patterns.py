"""Patterns that make a mapping visible: colours, a checkerboard, and letters to print on an atlas."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.floating]

SQUARES = 20  # Squares of the checkerboard along a side of an atlas.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LETTERS_PER_ROW = 10  # Rows per image as well.
DARK, LIGHT = (0.85, 0.15, 0.35), (0.95, 0.95, 0.85)  # Colours of the checkerboard, RGB in [0, 1].


def uv_colors(uv: Floats) -> Floats:
    """Return uv (H, W, 2) in [-1, 1] as colours (H, W, 3) in [0, 1].

    Red grows with u and green with v; blue is strong where both are small.
    """
    red_green = np.clip(uv / 2 + 0.5, 0, 1)
    # Much faster than the mean along an axis of length two.
    return np.dstack((red_green, 1 - (red_green[..., 0] + red_green[..., 1]) / 2))


def checkerboard(uv: Floats) -> Floats:
    """Return the colours (H, W, 3) in [0, 1] of a checkerboard that is fixed to the layer. uv: (H, W, 2) in [-1, 1]."""
    column, row = (np.floor((uv[..., axis] + 1) / 2 * SQUARES).astype(np.int32) for axis in (0, 1))
    return np.array((LIGHT, DARK), np.float32)[(column + row) & 1]


def letter_pattern(size: int) -> Floats:
    """Return an image of rows of letters, each in another colour.

    size: side of the image in pixels. Returns RGBA (size, size, 4) in [0, 1], premultiplied.
    """
    image = Image.new("RGBA", (size, size))
    draw, cell_px = ImageDraw.Draw(image), size / LETTERS_PER_ROW
    font = ImageFont.load_default(size=0.8 * cell_px)
    for row in range(LETTERS_PER_ROW):
        for column in range(LETTERS_PER_ROW):
            hue = round(255 * column / LETTERS_PER_ROW)
            draw.text(
                ((column + 0.5) * cell_px, (row + 0.5) * cell_px),
                LETTERS[(row * LETTERS_PER_ROW + column) % len(LETTERS)],
                (hue, round(255 * row / LETTERS_PER_ROW), 255 - hue, 255),
                font,
                anchor="mm",
                stroke_width=size // 200,
                stroke_fill="white",
            )
    rgba = np.asarray(image).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba
