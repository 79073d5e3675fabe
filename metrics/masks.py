"""Likeness of two masks (H, W) bool."""

import numpy as np
from numpy.typing import NDArray


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Region similarity J of DAVIS (Perazzi et al. 2016): intersection over union; 1 where both are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0
