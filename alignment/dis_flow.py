"""Optical flow without a network: dense inverse search (DIS, Kroeger et al. 2016), as implemented in OpenCV."""

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_SIDE_PX = 16  # Smallest width and height that DIS accepts; smaller frames are padded.
# Gradient descent steps per patch, instead of the 25 of OpenCV's medium preset: the same error on the exact scenes in
# less time (benchmarks/flow.py). Fewer patches are faster still but fail on small frames.
DESCENT_STEPS = 12
FINEST_SCALE = 0  # The search goes down to full resolution: up to half of it, a quarter of the time, twice the error.


class DisFlow:
    """Dense inverse search with OpenCV's medium preset, at full resolution and with fewer descent steps."""

    def __init__(self) -> None:
        self.search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.search.setFinestScale(FINEST_SCALE)
        self.search.setGradientDescentIterations(DESCENT_STEPS)

    def __call__(
        self, first: NDArray[np.uint8], second: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute the flow between two frames (H, W, 3), in both directions.

        Returns the flow from the first frame to the second and the flow from the second to the first, (H, W, 2) each,
        pixels (dx, dy).
        """
        height, width = first.shape[:2]
        bottom, right = (max(0, MIN_SIDE_PX - side) for side in (height, width))
        first_grey, second_grey = (
            cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            for frame in (first, second)
        )
        flow, back_flow = self.search_flow(first_grey, second_grey), self.search_flow(second_grey, first_grey)
        return flow[:height, :width], back_flow[:height, :width]

    def search_flow(self, source: NDArray, target: NDArray) -> NDArray[np.float32]:
        """Compute the flow (H, W, 2) in pixels from one grey image (H, W) to another."""
        # OpenCV's type stubs do not know that the initial flow may be None.
        flow: NDArray[np.float32] = self.search.calc(source, target, None)  # type: ignore[call-overload]
        return flow
