"""How much two masks overlap."""

import numpy as np
from numpy.typing import NDArray


def iou(mask: NDArray, other: NDArray, weight: NDArray | None = None, if_empty: float = 1.0) -> float:
    """Intersection over union of two masks of one shape, bool or soft in [0, 1].

    weight, of the same shape: how much each pixel counts; None: all alike. if_empty: the result where both are empty.
    """
    together, either = np.minimum(mask, other), np.maximum(mask, other)
    if weight is not None:
        together, either = together * weight, either * weight
    union = float(either.sum())
    return float(together.sum() / union) if union else if_empty
