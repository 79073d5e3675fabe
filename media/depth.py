"""Pictures at their own depth: 8 or 16 bits, or linear light in floats, and their values as a screen shows them.

Values on a screen are coded by the sRGB curve (IEC 61966-2-1), in [0, 1]."""

import numpy as np
from numpy.typing import DTypeLike, NDArray

Pixels = NDArray[np.uint8]

LARGEST_16_BIT = 65535
SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308  # below, the curve of sRGB is a line


def to_8_bit(values: NDArray) -> Pixels:
    """Convert values in [0, 1], or booleans, to rounded uint8 in [0, 255]. Values outside are clipped."""
    scaled = np.asarray(values * 255.0)
    np.rint(scaled, out=scaled)  # In place: memory for another picture costs more time than the rounding.
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def to_display(picture: NDArray) -> NDArray[np.float32]:
    """Return a picture of uint8, uint16 or linear floats as values on a screen, in [0, 1]. More light is clipped."""
    if picture.dtype.kind != "f":
        largest = 255 if picture.dtype == np.uint8 else LARGEST_16_BIT
        return picture.astype(np.float32) / np.float32(largest)
    linear = np.clip(np.nan_to_num(picture.astype(np.float32)), 0, 1)
    return np.where(linear <= LINEAR_KNEE, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)


def from_display(values: NDArray, dtype: DTypeLike) -> NDArray:
    """Return values on a screen, in [0, 1], as a picture of uint8, uint16 or linear floats. Others are clipped."""
    if dtype == np.uint8:
        return to_8_bit(values)
    clipped = np.clip(values, 0, 1)
    if dtype == np.uint16:
        return np.rint(clipped * LARGEST_16_BIT).astype(np.uint16)
    linear = np.where(clipped <= SRGB_KNEE, clipped / 12.92, ((clipped + 0.055) / 1.055) ** 2.4)
    return linear.astype(dtype)


def encode_picture(picture: NDArray) -> NDArray:
    """Return a picture as integers, which PNG files and video encoders take: linear floats with 16 bits on a screen.

    The opacity of a linear picture (H, W, 4) is not coded by the curve, and its colours are premultiplied.
    """
    if picture.dtype.kind != "f":
        return picture
    if picture.shape[-1] < 4:
        return from_display(to_display(picture), np.uint16)
    opacity = np.clip(picture[..., 3:].astype(np.float32), 0, 1)
    color = to_display(picture[..., :3].astype(np.float32) / np.maximum(opacity, 1e-6))
    return from_display(np.dstack((color, opacity)), np.uint16)


def make_linear(picture: NDArray) -> NDArray:
    """Return a picture (H, W, 3) or (H, W, 4) as linear light in floats, premultiplied by its opacity if it has one.

    Pictures of 8 and 16 bits become float32, in which all their values remain distinct.
    """
    if picture.dtype.kind == "f":
        return picture
    values = to_display(picture)
    linear = from_display(values[..., :3], np.float32)
    return np.dstack((linear * values[..., 3:], values[..., 3:])) if picture.shape[2] == 4 else linear


def show_in_8_bit(picture: NDArray) -> Pixels:
    """Return a picture of any depth as a screen of 8 bits shows it."""
    picture = encode_picture(picture)
    return picture if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)
