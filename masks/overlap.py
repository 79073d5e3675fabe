"""Measure how much two masks overlap."""

import numpy as np
from numpy.typing import NDArray


def iou(mask: NDArray, other: NDArray, weight: NDArray | None = None, if_empty: float = 1.0) -> float:
    """Return the intersection over union of two masks of the same shape, bool or soft in [0, 1].

    weight: weights of the pixels, of the same shape; None: all pixels have the same weight. if_empty: the result if
    both masks are empty.
    """
    intersection, union = np.minimum(mask, other), np.maximum(mask, other)
    if weight is not None:
        intersection, union = intersection * weight, union * weight
    union_area = float(union.sum())
    return float(intersection.sum() / union_area) if union_area else if_empty
