"""Rough masks like those of a detector, made from exact ones."""

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_DEFECTS = 3  # holes and lumps per mask
SHIFT = 0.01  # standard deviation of a mask's shift along x and y, relative to the longer side of the frame

Floats = NDArray[np.floating]


def rough_mask(alpha: Floats, seed: int, missing: float = 0.0) -> NDArray[np.uint8]:
    """Return a rough mask (H, W) of 0 and 255 for an object's opacity (H, W).

    The mask is shifted, eroded or dilated, and has holes and lumps on its outline. missing: probability that the
    detector misses the object and the mask is empty. The same seed gives the same defects.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < missing:
        return np.zeros(alpha.shape, np.uint8)
    exact = (alpha >= 0.5).astype(np.uint8) * 255
    longer = max(alpha.shape)
    shift = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    shift[:, 2] = rng.normal(0, SHIFT * longer, 2)
    shifted: NDArray = cv2.warpAffine(exact, shift, alpha.shape[::-1], flags=cv2.INTER_NEAREST)
    radius = max(1, longer // 100)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    mask: NDArray = (cv2.erode if rng.random() < 0.6 else cv2.dilate)(shifted, kernel)
    outline = np.argwhere(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
    for y, x in rng.permutation(outline)[:MOST_DEFECTS] if len(outline) else ():
        radius = int(rng.uniform(0.3, 1) * longer / 30)
        cv2.circle(mask, (int(x), int(y)), radius, 0 if rng.random() < 0.6 else 255, -1)
    return mask
