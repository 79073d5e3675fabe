"""A rendered frame's fields at another size than they were trained at: places, opacity and light of native pixels."""

from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from implicit_neural_networks import visibility
from rendering import Floats, Frame

Box = tuple[slice, slice]  # rows and columns
WHOLE = (slice(None), slice(None))
SPARE_PX = 2  # around what is painted: neighbours are blended between pixels
CLEAR, SOLID = 0.08, 0.85  # opacity up to the first carries no paint of an object, from the second on all of it


def edit_shares(frame: Frame) -> Floats:
    """(L, H, W): share with which each layer carries paint in each pixel.

    As `visibility`, but learned opacity seldom is quite 0 or 1 inside or outside an object: what is close counts as
    that, so that opaque paint hides what is below it and leaves no flecks on the other layer. Not where the published
    range of opacity is asked for, to compare.
    """
    if not frame.full_range:
        return frame.visibility
    levelled = np.clip((frame.alpha - CLEAR) / (SOLID - CLEAR), 0, 1)
    return visibility(torch.from_numpy(levelled)).numpy()


def at_size(frame: Frame, width: int, height: int, box: Box = WHOLE) -> Frame:
    """The frame's uv, opacity and light at (width, height), without colours; only those in a box of these pixels.

    All are smooth between pixels: linear, and continued linearly beyond the outermost pixel centers.
    """
    if frame.alpha.shape[1:] == (height, width) and box == WHOLE:
        return frame
    return replace(
        frame,
        uv=np.stack([enlarged(each, width, height, box) for each in frame.uv]),
        alpha=np.stack([enlarged(each, width, height, box).clip(0, 1) for each in frame.alpha]),
        light=None if frame.light is None else enlarged(frame.light, width, height, box),
    )


def box_around(inside: NDArray[np.bool_], width: int, height: int) -> Box | None:
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


def enlarged(field: Floats, width: int, height: int, box: Box = WHOLE) -> NDArray[np.float32]:
    """A field (h, w[, C]) at the centers of width x height pixels that cover the same picture; those in the box."""
    rows, columns = field.shape[:2]
    padded = continued(continued(field, 0), 1)
    x = (np.arange(width, dtype=np.float32)[box[1]] + 0.5) * (columns / width) - 0.5 + 1
    y = (np.arange(height, dtype=np.float32)[box[0]] + 0.5) * (rows / height) - 0.5 + 1
    return cv2.remap(padded, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def continued(field: Floats, axis: int) -> NDArray[np.float32]:
    """A field with one more row (or column) at both ends, on the line through the last two."""
    first, second = np.take(field, [0], axis), np.take(field, [min(1, field.shape[axis] - 1)], axis)
    last, before = np.take(field, [-1], axis), np.take(field, [max(-2, -field.shape[axis])], axis)
    return np.concatenate((2 * first - second, field, 2 * last - before), axis).astype(np.float32)
