"""Resampling of images and fields: sampled at given positions, or resized to another number of pixels.

Positions are in pixels, (x, y); the center of the upper left pixel is (0, 0).
"""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional

from media.images import Box
from rendering.frames import Floats, Frame

WHOLE_FRAME: Box = (slice(None), slice(None))
BOX_MARGIN_PX = 2  # Pixels added around a mask, because bilinear sampling blends neighbouring pixels.


def resize_frame(frame: Frame, width: int, height: int, box: Box = WHOLE_FRAME) -> Frame:
    """Resize all fields of a frame to (width, height), and crop them to a box: uv, opacity, light and colours.

    All of them vary smoothly between pixels. So the values are linearly interpolated, and linearly extrapolated beyond
    the outermost pixel centers. Opacity and colours stay in [0, 1].
    """
    if frame.alpha.shape[1:] == (height, width) and box == WHOLE_FRAME:
        return frame

    def resize_colors(colors: Floats) -> Floats:
        """Resize colours (H, W, 3); an image without pixels stays as it is."""
        return resize_field(colors, width, height, box).clip(0, 1) if colors.size else colors

    return replace(
        frame,
        uv=np.stack([resize_field(uv, width, height, box) for uv in frame.uv]),
        alpha=np.stack([resize_field(alpha, width, height, box).clip(0, 1) for alpha in frame.alpha]),
        rgb=resize_colors(frame.rgb),
        light=None if frame.light is None else resize_field(frame.light, width, height, box),
        unlit=None if frame.unlit is None else resize_colors(frame.unlit),
    )


def bounding_box(mask: NDArray[np.bool_], width: int, height: int) -> Box | None:
    """Return the box around a mask (h, w) in an image of width x height pixels; None for an empty mask.

    The box includes a margin of BOX_MARGIN_PX pixels of the mask.
    """
    slices = []
    for axis, size in ((0, height), (1, width)):
        occupied = np.any(mask, axis=1 - axis)
        indices = np.flatnonzero(occupied)
        if len(indices) == 0:
            return None
        scale = size / len(occupied)
        first, end = (indices[0] - BOX_MARGIN_PX) * scale, (indices[-1] + 1 + BOX_MARGIN_PX) * scale
        slices.append(slice(max(0, int(first)), min(size, int(np.ceil(end)))))
    rows, columns = slices
    return rows, columns


def split_rows(box: Box, width: int, height: int, most_pixels: int) -> list[Box]:
    """Divide a box of an image of width x height pixels into strips of rows of about the same height.

    A strip has about most_pixels pixels at most, and two rows at least, because the level of detail of paint follows
    from the difference between rows. A box that is small enough is returned as it is.
    """
    (top, bottom, _), (left, right, _) = box[0].indices(height), box[1].indices(width)
    rows = max(2, most_pixels // max(1, right - left))
    count = min(-(-(bottom - top) // rows), (bottom - top) // 2)
    if count <= 1:
        return [box]
    borders = np.linspace(top, bottom, count + 1).round().astype(int).tolist()
    return [(slice(first, end), slice(left, right)) for first, end in pairwise(borders)]


def resize_field(field: Floats, width: int, height: int, box: Box = WHOLE_FRAME) -> Floats:
    """Resize a field (h, w) or (h, w, C) to width x height pixels that cover the same image, and crop it to a box."""
    rows, columns = field.shape[:2]
    padded = extrapolate_border(extrapolate_border(field, 0), 1)
    x = (np.arange(width, dtype=np.float32)[box[1]] + 0.5) * (columns / width) - 0.5 + 1
    y = (np.arange(height, dtype=np.float32)[box[0]] + 0.5) * (rows / height) - 0.5 + 1
    x, y = np.meshgrid(x, y)
    resized = cv2.remap(padded, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(resized, np.float32)


def extrapolate_border(field: Floats, axis: int) -> Floats:
    """Add one row (axis 0) or column (axis 1) at both ends of a field, on the line through the last two values."""
    first, second = np.take(field, [0], axis), np.take(field, [min(1, field.shape[axis] - 1)], axis)
    last, before = np.take(field, [-1], axis), np.take(field, [max(-2, -field.shape[axis])], axis)
    return np.concatenate((2 * first - second, field, 2 * last - before), axis).astype(np.float32)


def sample_image(image: Tensor, positions: Tensor) -> Tensor:
    """Sample an image (h, w, C) bilinearly at positions (H, W, 2): (H, W, C), zero outside the image."""
    height, width = image.shape[:2]
    grid = positions / positions.new_tensor([max(width - 1, 1), max(height - 1, 1)]) * 2 - 1
    values = functional.grid_sample(
        image.permute(2, 0, 1)[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return values[0].permute(1, 2, 0)


def sample_field(field: NDArray, positions: Floats, interpolation: int = cv2.INTER_LINEAR) -> Floats:
    """Sample a field (H, W) or (H, W, C) at positions (h, w, 2): (h, w) or (h, w, C).

    Beyond the border, the value of the nearest border pixel is taken. OpenCV rounds positions to 1/32 pixel.
    """
    # OpenCV's stubs demand a second map, which it does not use if the first one holds x and y.
    return cv2.remap(field, positions, None, interpolation, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]


def sample_field_exactly(field: Floats, positions: Floats) -> Floats:
    """Sample a field (H, W, C) bilinearly at positions (N, 2), without rounding them: (N, C). Slower than OpenCV."""
    x, y = positions.T
    channels = [map_coordinates(channel, (y, x), order=1, mode="nearest") for channel in np.moveaxis(field, -1, 0)]
    return np.stack(channels, 1)
