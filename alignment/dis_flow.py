"""Optical flow without weights: dense inverse search (Kroeger et al. 2016), OpenCV's."""

import cv2
import numpy as np
from numpy.typing import NDArray

SMALLEST_PX = 16  # DIS needs room for one patch
# Of OpenCV's medium preset, with 12 steps per patch instead of 25: the same error on the exact scenes, sooner
# (benchmarks/flow.py). Fewer patches are quicker still but lose small frames; FinestScale 0 halves the error in three
# times the time.
DESCENT_STEPS = 12


class DisFlow:
    """Two frames (H, W, 3) uint8 -> flow from the first to the second and back, (H, W, 2) pixels each."""

    def __init__(self) -> None:
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.search.setGradientDescentIterations(DESCENT_STEPS)

    def __call__(
        self, image: NDArray[np.uint8], following: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        grey = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (image, following)]
        height, width = grey[0].shape
        missing = [max(0, SMALLEST_PX - side) for side in (height, width)]
        first, second = (cv2.copyMakeBorder(each, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE) for each in grey)
        there, back = self.search.calc(first, second, None), self.search.calc(second, first, None)
        return there[:height, :width], back[:height, :width]
