"""Metrics of how steady a video is along its motion."""

import numpy as np
from numpy.typing import NDArray

from unwrap_utils import warp_by_flow

Floats = NDArray[np.floating]


def warp_error(frame: Floats, other: Floats, flow: Floats, visible: NDArray[np.bool_]) -> float | None:
    """Return E_warp (Lai et al. 2018): the mean squared difference of a frame and another one warped to it.

    frame, other: (H, W, 3) in [0, 1]. flow: (H, W, 2) pixels from the frame to the other. visible: (H, W), True for
    pixels that are visible in both frames; only these count. Return None if there are none.
    """
    if not visible.any():
        return None
    return float(np.square(frame - warp_by_flow(other, flow))[visible].mean())
