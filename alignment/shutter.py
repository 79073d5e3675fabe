"""Measure how long the shutter of the camera was open in each frame of a clip."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.layers import MaskedPixels, align_layers, layer_pixels, match_layers, refine_long_range
from alignment.long_range import FramePair, choose_frame_pairs, open_pair
from alignment.motion_blur import LEAST_DIFFERENCE_PX, choose_shutter, compare_motions, compare_slopes
from alignment.tracks import POINTS_PER_PAIR, Floats
from media.clip import evenly_spaced_indices
from parallel.side_by_side import map_side_by_side
from unwrap_utils import Video

MOST_PAIRS = 40  # Most pairs of frames of one layer that are compared.
INNER_PX = 7  # Side of the window that must lie on the layer around a pixel, in pixels of the reduced frames.
LEAST_PIXELS = 200  # Fewest pixels that are compared in two frames, at half the size at which frames are matched.


def align_with_shutter(video: Video) -> tuple[Video, Floats]:
    """Return the video with its exposure time, and the transforms (L, T, 3, 3) of all layers over the whole clip.

    video: on the CPU.
    """
    transforms = align_layers(video)
    video = measure_shutter(video, transforms)
    matches = match_layers(video, transforms, POINTS_PER_PAIR)  # More would fill the memory for a long clip.
    return video, refine_long_range(video, transforms, matches)


def measure_shutter(video: Video, transforms: Floats) -> Video:
    """Return the video with its exposure time, `video.shutter`, which is 0 where no motion blur is clearly seen.

    video: on the CPU. transforms (L, T, 3, 3): of all layers.
    """
    layers = [(motion, mask) for motion, (mask, _) in zip(transforms, layer_pixels(video), strict=True)]

    def compare_layer(layer: tuple[Floats, MaskedPixels]) -> list[tuple[Floats, float]]:
        """Return how unequal the frames of a layer are, and by how much their motions differ, for some pairs."""
        motion, mask = layer
        numbers = choose_frame_pairs(len(motion))
        chosen = [numbers[index] for index in evenly_spaced_indices(len(numbers), MOST_PAIRS)]
        pairs = (open_pair(video, mask, motion, source, target) for source, target in chosen)
        return [found for pair in pairs if pair is not None and (found := compare_pair(pair)) is not None]

    found = [each for layer in map_side_by_side(compare_layer, layers) for each in layer]
    if not found:
        return video
    log_ratios, differences_px = (np.array(values) for values in zip(*found, strict=True))
    return replace(video, shutter=choose_shutter(log_ratios, differences_px))


def compare_pair(pair: FramePair) -> tuple[Floats, float] | None:
    """Return how unequal two frames are and how much their blur differs; see `compare_slopes` and `compare_motions`.

    Slopes are measured at half the size of the pair. Returns None if the motions hardly differ, or if the frames have
    too little in common.
    """
    difference_px = compare_motions(pair.motion, pair.second_motion)
    if difference_px < LEAST_DIFFERENCE_PX:
        return None
    crop_size = pair.first_mask.shape[::-1]
    warped: NDArray[np.uint8] = np.asarray(
        cv2.warpPerspective(pair.second_mask, pair.second_to_first, crop_size), np.uint8
    )
    both = cv2.erode(warped & pair.first_mask, np.ones((INNER_PX, INNER_PX), np.uint8))[::2, ::2] > 0
    if both.sum() < LEAST_PIXELS:
        return None
    first, second = (
        cv2.pyrDown(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).astype(np.uint8) for image in (pair.first, pair.second)
    )
    log_ratios = compare_slopes(first, second, both, pair.motion / 2, pair.second_motion / 2)
    return log_ratios, difference_px
