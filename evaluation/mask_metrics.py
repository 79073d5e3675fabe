"""Likeness of two masks (H, W) bool, or of two opacities (H, W) in [0, 1]."""

import cv2
import numpy as np
from numpy.typing import NDArray

from masks import overlap

BOUNDARY_TOLERANCE = 0.008  # of the diagonal, as DAVIS defines it


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Region similarity J of DAVIS (Perazzi et al. 2016): intersection over union; 1 where both are empty."""
    check_sizes(mask, truth)
    return overlap.iou(mask, truth)


def boundary_f(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Contour accuracy F of DAVIS: harmonic mean of the shares of each outline that lie near the other.

    Near is 0.8 % of the diagonal, rounded up. 1 where both are empty, 0 where one of them is.
    """
    check_sizes(mask, truth)
    ours, theirs = outline(mask), outline(truth)
    if not ours.any() and not theirs.any():
        return 1.0
    reach = int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*mask.shape)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x * x + y * y <= reach * reach).astype(np.uint8)
    precision = share_near(ours, theirs, disk)
    recall = share_near(theirs, ours, disk)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose right, lower or lower right neighbour differs, as DAVIS draws them."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])


def share_near(points: NDArray[np.bool_], others: NDArray[np.bool_], disk: NDArray[np.uint8]) -> float:
    """Share of points with one of the others within the disk; 0 of nothing."""
    if not points.any():
        return 0.0
    near = cv2.dilate(others.astype(np.uint8), disk) > 0
    return np.count_nonzero(points & near) / np.count_nonzero(points)


def alpha_error(alpha: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Mean absolute difference of two opacities, the mattings' SAD divided by the number of pixels."""
    check_sizes(alpha, truth)
    return float(np.abs(alpha - truth).mean())


def check_sizes(found: NDArray, truth: NDArray) -> None:
    """Raise ValueError where truth and render differ in size: resizing either would hide an error."""
    if found.shape != truth.shape:
        raise ValueError(f"sizes differ: {found.shape} found, {truth.shape} in the truth")
