"""Find rough masks without a network: the object is what moves against the background."""

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.layers import align_layer
from command_line import UserError
from masks.cues import SmallClip, background_differences, motion_difference, shrink_video
from masks.refinement import smooth_along_flow
from media import Pixels
from unwrap_utils import Video

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

LONG_EDGE_PX = 192  # Pixels of the long edge at which motion is compared: averaging removes the noise of flow.
MIN_NOISE_PX = 0.15  # Pixels of the reduced clip by which flow is never trusted to be exact.
MIN_OBJECT_AREA = 0.002  # Share of a frame's pixels below which a moving part is no object.
MAX_OBJECT_AREA = 0.6  # Share of a frame's pixels above which a moving part is no object.
# Score of a pixel that moves 11 times as much against the background as the median pixel. Water and leaves move less.
CLEAR_MOTION_SCORE = 2.4
MEDIAN_SCORE = 0.15  # Score of a pixel that moves and looks as the median pixel does.
MIN_CLEAR_FRAMES = 0.5  # Share of the frames that must show clear motion; with fewer, weaker motion is accepted.


def segment_motion(video: Video) -> Pixels:
    """Return rough masks (T, H, W), 0 or 255, of what moves against the background.

    The background's motion is a homography per frame on which most pixels agree. Pixels whose flow or colour differs
    from it belong to the object. Raise UserError if nothing moves.
    """
    _, height, width = video.size
    background = align_layer(video, np.ones(video.size, bool), "homography")
    clip = shrink_video(video, LONG_EDGE_PX)
    score = motion_score(clip, clip.reduce_transforms(background))
    threshold = otsu_threshold(score)
    inside = largest_parts(score > max(threshold, CLEAR_MOTION_SCORE))
    if inside.any((1, 2)).mean() < MIN_CLEAR_FRAMES:
        inside = largest_parts(score > max(threshold, MEDIAN_SCORE))
    if not inside.any():
        raise UserError(
            "nothing moves against the background, so masks can't be found by motion; "
            "use --method maskrcnn, or put masks of your own into the folder"
        )
    masks = [
        cv2.resize(frame.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR) for frame in inside
    ]
    return np.where(np.stack(masks) > 127, 255, 0).astype(np.uint8)


def motion_score(clip: SmallClip, background: Floats) -> Floats:
    """Return a score (T, h, w) of how much each pixel moves and looks unlike the background.

    It is the logarithm of the motion against the background plus half the logarithm of the colour difference, each
    relative to its median, smoothed along the flow. background: transforms (T, 3, 3) of the background.
    """
    motion_px = motion_difference(clip, background)
    median_px = max(float(np.nanmedian(motion_px)), MIN_NOISE_PX)
    motion = np.log(np.nan_to_num(motion_px, nan=median_px) / median_px + 0.1)
    is_still = motion_px < 2 * median_px
    color_difference = background_differences(clip, background, is_still)[0]
    median_color = float(np.nanmedian(color_difference))
    color = np.log(np.nan_to_num(color_difference, nan=median_color) / max(median_color, 1e-3) + 0.1)
    return smooth_along_flow(clip, (motion + 0.5 * color).astype(np.float32))


def otsu_threshold(score: Floats) -> float:
    """Return the value that separates the scores best into two groups (Otsu 1979)."""
    low, high = np.quantile(score, [0.001, 0.999])
    levels = ((score.clip(low, high) - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    level, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(low + (level + 0.5) / 255 * (high - low))


def largest_parts(inside: Flags) -> Flags:
    """Return the largest connected part of every frame of (T, h, w)."""
    return np.stack([largest_part(frame) for frame in inside])


def largest_part(inside: Flags) -> Flags:
    """Return the largest connected part of a frame (h, w); nothing if it is too small or too large for an object."""
    opened = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(opened)
    if count < 2:
        return np.zeros_like(inside)
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    area = statistics[largest, cv2.CC_STAT_AREA] / inside.size
    return labels == largest if MIN_OBJECT_AREA < area < MAX_OBJECT_AREA else np.zeros_like(inside)
