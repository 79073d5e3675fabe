"""Whether masks are rough, as a detector's, or somebody's careful work that is better left alone.

The outline of careful masks lies on edges of the picture, and moves with the flow. A detector's lies a few pixels
beside them, and flickers."""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Flags, SmallClip, shrink, to_lab
from masks.overlap import iou
from media.clip import evenly_spaced
from media.flows import FORWARD

FRAMES = 24  # that are looked at, evenly spread
BAND = 1 / 96  # of the long edge: how far around the outline edges are compared
LEAST_BAND_PX = 8
ON_EDGES = 1.45  # how much stronger than around it they must be
STEADY = 0.9  # least IoU with the next mask, carried along the flow; jumping masks have weak edges, too
LEAST_KNOWN = 4.0  # pixels of two masks together whose flow must be valid
LONGEST_GAP = 5  # frames without a mask that are taken for missed; longer, and the object is hidden or gone


def are_exact(clip: SmallClip, frames: NDArray[np.uint8], masks: NDArray[np.uint8]) -> bool:
    """True where masks (T, H, W) uint8 of frames (T, H, W, 3) uint8 are better than what they could be mended to."""
    inside = masks > 127
    shown = np.flatnonzero(inside.any((1, 2)) & ~inside.all((1, 2)))
    if len(shown) == 0:
        return False
    chosen = shown[evenly_spaced(len(shown), FRAMES)]
    contrasts = [edge_contrast(frames[t], inside[t]) for t in chosen]
    return float(np.mean(contrasts)) >= ON_EDGES and temporal_consistency(clip, masks, chosen) >= STEADY


def frames_to_refine(
    clip: SmallClip, frames: NDArray[np.uint8], masks: NDArray[np.uint8], mask_quality: str, are_found: bool
) -> Flags:
    """(T,) frames whose masks (T, H, W) uint8 are better mended.

    All of rough masks, and of those that a method found, which look steady even where they are wrong; of others that
    look exact, what was missed; none of those that are said to be exact. mask_quality is the config's.
    """
    if mask_quality == "auto" and not are_found and are_exact(clip, frames, masks):
        return missed_frames(masks)
    return np.full(len(masks), mask_quality != "exact")


def missed_frames(masks: NDArray[np.uint8]) -> Flags:
    """(T,) frames without a mask in a short gap between frames that have one; masks (T, H, W) uint8."""
    shown = np.flatnonzero((masks > 127).any((1, 2)))
    result = np.zeros(len(masks), bool)
    for before, after in pairwise(shown):
        result[before + 1 : after] = after - before - 1 <= LONGEST_GAP
    return result


def edge_contrast(frame: NDArray[np.uint8], inside: Flags) -> float:
    """How much stronger than around it the edges of a picture (H, W, 3) are at the outline of what is inside (H, W).

    Some of the picture must be inside, and some outside.
    """
    reach = max(LEAST_BAND_PX, round(BAND * max(inside.shape)))
    mask = inside.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    near = tuple(slice(max(0, low - 2 * reach), low + side + 2 * reach) for low, side in ((top, height), (left, width)))
    mask, smooth = mask[near], cv2.GaussianBlur(to_lab(frame[near]), (0, 0), 1)
    strength = np.sqrt(sum(np.square(cv2.Sobel(smooth, -1, dx, 1 - dx)).sum(-1) for dx in (0, 1)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
    outline = mask > cv2.erode(mask, np.ones((3, 3), np.uint8))
    band = cv2.dilate(mask, disc) > cv2.erode(mask, disc)
    return float(strength[outline].mean() / max(strength[band].mean(), 1e-6))


def temporal_consistency(clip: SmallClip, masks: NDArray[np.uint8], chosen: NDArray[np.int64]) -> float:
    """Mean IoU of masks (T, H, W) of chosen frames with the next one carried along the flow; where both are known."""
    size = clip.rgb.shape[2:0:-1]
    overlaps = []
    for t in chosen[chosen < len(masks) - 1]:
        here, there = (shrink(masks[each], size).astype(np.float32) / 255 for each in (t, t + 1))
        if there.any():
            there, known = clip.warp_from_neighbour(there, FORWARD, t), clip.flow_valid[FORWARD, t]
            if (np.maximum(here, there) * known).sum() > LEAST_KNOWN:
                overlaps.append(iou(here, there, known))
    return float(np.mean(overlaps)) if overlaps else 0.0
