"""Steadiness of a video along the motion."""

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def along_flow(values: Floats, flow: Floats) -> Floats:
    """Another frame's values (H, W[, C]) at the flow matches of this frame's pixels; its border is repeated."""
    height, width = flow.shape[:2]
    x = (flow[..., 0] + np.arange(width)).astype(np.float32)
    y = (flow[..., 1] + np.arange(height)[:, None]).astype(np.float32)
    return cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def warp_error(frame: Floats, other: Floats, flow: Floats, visible: NDArray[np.bool_]) -> float | None:
    """E_warp (Lai et al. 2018): mean squared difference of a frame (H, W, 3) in [0, 1] and another brought to it.

    flow (H, W, 2) leads from the frame to the other; only pixels visible in both count. None where there are none.
    """
    if not visible.any():
        return None
    return float(np.square(frame - along_flow(other, flow))[visible].mean())
