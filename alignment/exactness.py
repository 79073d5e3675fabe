"""Whether masks are rough, as a detector's, or somebody's careful work that is better left alone.

The outline of careful masks lies on edges of the picture, and moves with the flow. A detector's lies a few pixels
beside them, and flickers.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.cues import Flags, SmallClip, shrunk
from unwrap_utils import FORWARD, spread_numbers

FRAMES = 24  # that are looked at, evenly spread
BAND = 1 / 96  # of the long edge: how far around the outline edges are compared
LEAST_BAND_PX = 8
ON_EDGES = 1.45  # how much stronger than around it they must be; measured: rough 1.1 to 1.4, exact 1.6 to 1.8
STEADY = 0.9  # least IoU with the next mask, carried along the flow; measured: rough 0.7 to 0.92, exact 0.93 to 0.98


def are_exact(clip: SmallClip, frames: NDArray[np.uint8], masks: NDArray[np.uint8]) -> bool:
    """True where masks (T, H, W) uint8 of frames (T, H, W, 3) uint8 are better than what they could be mended to."""
    inside = masks > 127
    shown = np.flatnonzero(inside.any((1, 2)))
    if len(shown) == 0:
        return False
    chosen = shown[spread_numbers(len(shown), min(FRAMES, len(shown)))]
    contrasts = [edge_contrast(frames[t], inside[t]) for t in chosen]
    return float(np.mean(contrasts)) >= ON_EDGES and steadiness(clip, masks, chosen) >= STEADY


def edge_contrast(frame: NDArray[np.uint8], inside: Flags) -> float:
    """How much stronger than around it the edges of a picture (H, W, 3) are at the outline of what is inside (H, W)."""
    reach = max(LEAST_BAND_PX, round(BAND * max(inside.shape)))
    mask = inside.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    near = tuple(slice(max(0, low - 2 * reach), low + side + 2 * reach) for low, side in ((top, height), (left, width)))
    mask, lab = mask[near], cv2.cvtColor(frame[near], cv2.COLOR_RGB2LAB).astype(np.float32)
    smooth = cv2.GaussianBlur(lab, (0, 0), 1)
    strength = np.sqrt(sum(np.square(cv2.Sobel(smooth, -1, dx, 1 - dx)).sum(-1) for dx in (0, 1)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
    outline = mask > cv2.erode(mask, np.ones((3, 3), np.uint8))
    band = cv2.dilate(mask, disc) > cv2.erode(mask, disc)
    if not outline.any():  # the whole frame is inside
        return 1.0
    return float(strength[outline].mean() / max(strength[band].mean(), 1e-6))


def steadiness(clip: SmallClip, masks: NDArray[np.uint8], chosen: NDArray[np.int64]) -> float:
    """Mean IoU of masks (T, H, W) of chosen frames with the next one carried along the flow; of frames with both."""
    size = clip.rgb.shape[2:0:-1]
    overlaps = []
    for t in chosen[chosen < len(masks) - 1]:
        here, there = (shrunk(masks[each], size).astype(np.float32) / 255 for each in (t, t + 1))
        if there.any():
            there, known = clip.carried(there, FORWARD, t), clip.flow_valid[FORWARD, t]
            union = (np.maximum(here, there) * known).sum()
            overlaps.append((np.minimum(here, there) * known).sum() / max(union, 1e-6))
    return float(np.mean(overlaps)) if overlaps else 0.0
