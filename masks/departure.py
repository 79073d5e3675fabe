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
# Share of the full-size pixels at a place whose flow must be valid, so that its pixel is followed on.
LEAST_VALID = 0.5
LEAST_FOLLOWED = 0.5  # With a smaller share of a frame's pixels left, their median may be the object's.


def measure_departure(clip: SmallClip, transforms: Floats, noise_px: float) -> Floats:
    """Return how far each pixel (T, h, w) departs from the background's motion, as a multiple of the usual distance.

    A pixel is followed along the flow, forward and backward, for as long as the flow is valid. After some frames, its
    distance from where the background's motion would have brought it is divided by the median of all pixels. The
    largest of these ratios is returned, and NaN for pixels that cannot be followed.

    transforms (T, 3, 3): of the background, for pixels of the reduced size. noise_px: distance by which the flow
    between two frames may be wrong; over n frames it grows with the square root of n.
    """
    weighted_flow = weigh_flow(clip)
    grid, inverse = clip.grid, np.linalg.inv(transforms)
    pixels = to_homogeneous(grid).astype(np.float32)

    def measure_frame(t: int) -> Floats:
        """Return the departure (h, w) of the pixels of frame t."""
        largest = np.full(grid.shape[:2], np.nan, np.float32)
        for direction, step in enumerate(STEPS):
            places, is_followed = grid, np.ones(grid.shape[:2], bool)
            for count in range(1, COMPARED_AFTER[-1] + 1):
                end = t + step * count
                if not 0 <= end < len(clip.rgb):
                    break
                moved = cv2.remap(
                    weighted_flow[direction, end - step], places[..., 0], places[..., 1], cv2.INTER_LINEAR
                )
                is_followed = is_followed & (moved[..., 2] >= LEAST_VALID)  # Outside of the frame it is 0.
                if is_followed.mean() < LEAST_FOLLOWED:
                    break
                places = places + moved[..., :2] / np.maximum(moved[..., 2:], LEAST_VALID)
                if count in COMPARED_AFTER:
                    expected = pixels @ (inverse[end] @ transforms[t]).T.astype(np.float32)
                    is_compared = is_followed & (expected[..., 2] > 0)  # The others are behind the camera.
                    dx, dy = (places[..., axis] - expected[..., axis] / expected[..., 2] for axis in (0, 1))
                    distance = np.hypot(dx, dy)
                    usual = max(float(np.median(distance[is_compared])), noise_px * count**0.5)
                    largest = np.where(is_compared, np.fmax(largest, distance / usual), largest)
        return largest

    with np.errstate(all="ignore"):
        return np.stack(map_side_by_side(measure_frame, range(len(clip.rgb))))


def weigh_flow(clip: SmallClip) -> Floats:
    """Return the flow, multiplied by the share of valid pixels, and this share: (2, T, h, w, 3).

    Interpolated, and divided by the interpolated share, it holds nothing of the pixels without valid flow.
    """
    weighted = np.empty((*clip.flow.shape[:4], 3), np.float32)
    weighted[..., 2] = clip.flow_valid
    np.multiply(clip.flow, clip.flow_valid[..., None], out=weighted[..., :2])
    return weighted
