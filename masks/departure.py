"""Measure how far each pixel departs from the background's motion over many frames.

An object may stand still for a while, or move one limb alone. The motion between two frames misses it then; the way of
its pixels over many frames does not."""

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.transforms import to_homogeneous
from masks.cues import SmallClip
from media.flows import STEPS
from parallel.side_by_side import map_side_by_side

Floats = NDArray[np.floating]

# Frames over which pixels are followed, each way. A pixel is compared with the background after some of them only.
COMPARED_AFTER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
LEAST_VALID = (
    0.5  # Share of the full-size pixels at a place whose flow must be valid, so that its pixel is followed on.
)
LEAST_FOLLOWED = 0.5  # With a smaller share of a frame's pixels left, their median may be the object's.


def measure_departure(clip: SmallClip, transforms: Floats, noise_px: float) -> Floats:
    """Return how far each pixel (T, h, w) departs from the background's motion, as a multiple of the usual distance.

    A pixel is followed along the flow, forward and backward, for as long as the flow is valid. After some frames, its
    distance from where the background's motion would have brought it is divided by the median of all pixels. The
    largest of these ratios is returned, and 1 for pixels that cannot be followed.

    transforms (T, 3, 3): of the background, for pixels of the reduced size. noise_px: distance by which the flow
    between two frames may be wrong; over n frames it grows with the square root of n.
    """
    flow = np.concatenate((clip.flow, clip.flow_valid[..., None]), axis=-1).astype(np.float32)  # (2, T, h, w, 3)
    grid, inverse = clip.grid, np.linalg.inv(transforms)
    pixels = to_homogeneous(grid).astype(np.float32)

    def measure_frame(t: int) -> Floats:
        """Return the departure (h, w) of the pixels of frame t."""
        largest = np.full(grid.shape[:2], -1, np.float32)  # until the pixel has been compared
        for direction, step in enumerate(STEPS):
            places, is_followed = grid, np.ones(grid.shape[:2], bool)
            for count in range(1, COMPARED_AFTER[-1] + 1):
                end = t + step * count
                if not 0 <= end < len(clip.rgb):
                    break
                moved = cv2.remap(flow[direction, end - step], places[..., 0], places[..., 1], cv2.INTER_LINEAR)
                is_followed = is_followed & (moved[..., 2] >= LEAST_VALID)  # Outside of the frame it is 0.
                if is_followed.mean() < LEAST_FOLLOWED:
                    break
                places = places + moved[..., :2]
                if count in COMPARED_AFTER:
                    expected = pixels @ (inverse[end] @ transforms[t]).T.astype(np.float32)
                    distance = np.linalg.norm(places - expected[..., :2] / expected[..., 2:], axis=-1)
                    usual = max(float(np.median(distance[is_followed])), noise_px * count**0.5)
                    largest = np.where(is_followed, np.maximum(largest, distance / usual), largest)
        return np.where(largest < 0, 1, largest).astype(np.float32)

    return np.stack(map_side_by_side(measure_frame, range(len(clip.rgb))))
