"""Sampling and resizing of pictures and fields, each in one place."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rendering.frames import Floats, Frame

Box = tuple[slice, slice]  # rows and columns
WHOLE = (slice(None), slice(None))
SPARE_PX = 2  # around what is painted: neighbours are blended between pixels


def resize_frame(frame: Frame, width: int, height: int, box: Box = WHOLE) -> Frame:
    """The frame's uv, opacity and light at (width, height), without colours; only those in a box of these pixels.

    All are smooth between pixels: linear, and continued linearly beyond the outermost pixel centers.
    """
    if frame.alpha.shape[1:] == (height, width) and box == WHOLE:
        return frame
    return replace(
        frame,
        uv=np.stack([resize_field(each, width, height, box) for each in frame.uv]),
        alpha=np.stack([resize_field(each, width, height, box).clip(0, 1) for each in frame.alpha]),
        light=None if frame.light is None else resize_field(frame.light, width, height, box),
    )


def bounding_box(inside: NDArray[np.bool_], width: int, height: int) -> Box | None:
    """The rows and columns of width x height pixels that hold what is inside a mask (h, w) and SPARE_PX of its pixels
    around it; None of nothing."""
    axes = []
    for shown, size in ((inside.any(1), height), (inside.any(0), width)):
        found = np.flatnonzero(shown)
        if len(found) == 0:
            return None
        scale = size / len(shown)
        first, end = (found[0] - SPARE_PX) * scale, (found[-1] + 1 + SPARE_PX) * scale
        axes.append(slice(max(0, int(first)), min(size, int(np.ceil(end)))))
    return tuple(axes)


def resize_field(field: Floats, width: int, height: int, box: Box = WHOLE) -> NDArray[np.float32]:
    """A field (h, w[, C]) at the centers of width x height pixels that cover the same picture; those in the box."""
    rows, columns = field.shape[:2]
    padded = extrapolate_border(extrapolate_border(field, 0), 1)
    x = (np.arange(width, dtype=np.float32)[box[1]] + 0.5) * (columns / width) - 0.5 + 1
    y = (np.arange(height, dtype=np.float32)[box[0]] + 0.5) * (rows / height) - 0.5 + 1
    return cv2.remap(padded, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def extrapolate_border(field: Floats, axis: int) -> NDArray[np.float32]:
    """A field with one more row (or column) at both ends, on the line through the last two."""
    first, second = np.take(field, [0], axis), np.take(field, [min(1, field.shape[axis] - 1)], axis)
    last, before = np.take(field, [-1], axis), np.take(field, [max(-2, -field.shape[axis])], axis)
    return np.concatenate((2 * first - second, field, 2 * last - before), axis).astype(np.float32)


def sample_image(image: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear values (H, W, C) of an image (h, w, C) at pixel positions (H, W, 2); zero outside."""
    height, width = image.shape[:2]
    grid = pixels / pixels.new_tensor([max(width - 1, 1), max(height - 1, 1)]) * 2 - 1
    values = functional.grid_sample(
        image.permute(2, 0, 1)[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return values[0].permute(1, 2, 0)
