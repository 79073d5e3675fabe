"""Metrics that compare two masks (H, W) bool, or two opacities (H, W) in [0, 1]."""

import cv2
import numpy as np
from numpy.typing import NDArray

from masks import overlap

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.008  # Largest distance of matching outlines, as a fraction of the diagonal, as DAVIS defines it.


def iou(mask: Mask, truth: Mask) -> float:
    """Return the region similarity J of DAVIS (Perazzi et al. 2016): intersection over union, 1 if both are empty.

    Raises ValueError if the masks differ in size.
    """
    check_sizes(mask, truth)
    return overlap.iou(mask, truth)


def boundary_f(mask: Mask, truth: Mask) -> float:
    """Return the contour accuracy F of DAVIS (Perazzi et al. 2016).

    F is the harmonic mean of two fractions: that of the mask's outline near the true outline, and that of the true
    outline near the mask's. Near means within 0.8 % of the image diagonal, rounded up to pixels. F is 1 if both masks
    are empty and 0 if one of them is. Raises ValueError if the masks differ in size.
    """
    check_sizes(mask, truth)
    mask_outline, true_outline = outline(mask), outline(truth)
    if not mask_outline.any() and not true_outline.any():
        return 1.0
    radius_px = int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*mask.shape)))
    y, x = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    disk = (x * x + y * y <= radius_px * radius_px).astype(np.uint8)
    precision = fraction_near(mask_outline, true_outline, disk)
    recall = fraction_near(true_outline, mask_outline, disk)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: Mask) -> Mask:
    """Return the pixels whose right, lower or lower right neighbour differs, as DAVIS draws outlines."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    pixels = padded[:-1, :-1]
    return (pixels != padded[:-1, 1:]) | (pixels != padded[1:, :-1]) | (pixels != padded[1:, 1:])


def fraction_near(points: Mask, others: Mask, disk: NDArray[np.uint8]) -> float:
    """Return the fraction of points that have one of the others within the disk around them; 0 without points."""
    if not points.any():
        return 0.0
    near = cv2.dilate(others.astype(np.uint8), disk) > 0
    return np.count_nonzero(points & near) / np.count_nonzero(points)


def alpha_error(alpha: Floats, truth: Floats) -> float:
    """Return the mean absolute difference of two opacities: SAD of matting benchmarks divided by the pixel count.

    Raises ValueError if the opacities differ in size.
    """
    check_sizes(alpha, truth)
    return float(np.abs(alpha - truth).mean())


def check_sizes(values: NDArray, truth: NDArray) -> None:
    """Raise ValueError if values and truth differ in size: resizing one of them would hide an error."""
    if values.shape != truth.shape:
        raise ValueError(f"sizes differ: {values.shape} found, {truth.shape} in the truth")
