"""Steadiness of a video along the motion."""

import numpy as np
from numpy.typing import NDArray

from unwrap_utils import warp_by_flow

Floats = NDArray[np.floating]


def warp_error(frame: Floats, other: Floats, flow: Floats, visible: NDArray[np.bool_]) -> float | None:
    """E_warp (Lai et al. 2018): mean squared difference of a frame (H, W, 3) in [0, 1] and another brought to it.

    flow (H, W, 2) leads from the frame to the other; only pixels visible in both count. None where there are none.
    """
    if not visible.any():
        return None
    return float(np.square(frame - warp_by_flow(other, flow))[visible].mean())
