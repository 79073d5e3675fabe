"""Rough masks as a detector would give them: from exact ones, seeded."""

import cv2
import numpy as np
from numpy.typing import NDArray

BITES = 3  # holes or lumps per mask
WORST_SHIFT = 0.02  # of the longer side


def rough_mask(alpha: NDArray[np.float32], seed: int, missing: float = 0.0) -> NDArray[np.uint8]:
    """An object's opacity (H, W) as a rough mask of 0 and 255: shifted, too thin or too fat, bitten, lumpy.

    With the given chance the detector misses the object altogether and the mask is empty.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < missing:
        return np.zeros(alpha.shape, np.uint8)
    mask = (alpha >= 0.5).astype(np.uint8) * 255
    longer = max(mask.shape)
    shift = np.float32([[1, 0, 0], [0, 1, 0]])
    shift[:, 2] = rng.normal(0, WORST_SHIFT * longer / 2, 2)
    mask = cv2.warpAffine(mask, shift, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    side = max(1, longer // 100)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * side + 1, 2 * side + 1))
    mask = (cv2.erode if rng.random() < 0.6 else cv2.dilate)(mask, kernel)
    outline = np.argwhere(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
    for y, x in rng.permutation(outline)[:BITES] if len(outline) else ():
        radius = int(rng.uniform(0.3, 1) * longer / 30)
        cv2.circle(mask, (int(x), int(y)), radius, 0 if rng.random() < 0.6 else 255, -1)
    return mask
