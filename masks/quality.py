"""Decide whether masks are rough, as those of a detector, or exact, so that they are better left unchanged.

The outline of exact masks lies on edges of the image and moves with the flow. The outline of a detector's masks lies a
few pixels beside the edges and flickers."""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Flags, SmallClip, shrink, to_lab
from masks.overlap import iou
from media.clip import evenly_spaced_indices
from media.flows import FORWARD

MAX_CHECKED_FRAMES = 24  # Most frames whose masks are checked, evenly spaced.
BAND_WIDTH = (
    1 / 96
)  # Share of the long edge: distance to the outline up to which edges are compared with the outline's.
MIN_BAND_PX = 8  # Least such distance in pixels.
MIN_EDGE_CONTRAST = 1.45  # Least ratio of the edge strength on the outline of exact masks to that around it.
MIN_CONSISTENCY = 0.9  # Least IoU of exact masks with the next mask, warped by the flow.
MIN_KNOWN_PX = 4.0  # Least area of the union of two masks for their IoU, in reduced pixels with valid flow.
MAX_GAP_FRAMES = 5  # Most consecutive empty masks that count as missed; in longer gaps the object is hidden or gone.


def are_exact(clip: SmallClip, frames: NDArray[np.uint8], masks: NDArray[np.uint8]) -> bool:
    """Return whether masks (T, H, W) of frames (T, H, W, 3) are so exact that refinement would make them worse."""
    inside = masks > 127
    partial_frames = np.flatnonzero(inside.any((1, 2)) & ~inside.all((1, 2)))
    if len(partial_frames) == 0:
        return False
    chosen = partial_frames[evenly_spaced_indices(len(partial_frames), MAX_CHECKED_FRAMES)]
    contrasts = [edge_contrast(frames[t], inside[t]) for t in chosen]
    # Both are checked, because steady masks may lie beside the edges and masks that lie on edges may jump.
    is_on_edges = float(np.mean(contrasts)) >= MIN_EDGE_CONTRAST
    return is_on_edges and temporal_consistency(clip, masks, chosen) >= MIN_CONSISTENCY


def frames_to_refine(
    clip: SmallClip, frames: NDArray[np.uint8], masks: NDArray[np.uint8], mask_quality: str, is_found: bool
) -> Flags:
    """Return for each frame (T,) whether its mask should be refined.

    masks: (T, H, W) of frames (T, H, W, 3). mask_quality: as in the config. is_found: whether the masks were found by a
    method. With mask_quality "exact" no mask is refined, with "rough" every one. With "auto", masks that look exact are
    only refined in frames where they were missed, and all others in every frame. Masks found by a method count as
    rough, because they look steady even where they are wrong.
    """
    if mask_quality == "auto" and not is_found and are_exact(clip, frames, masks):
        return find_missed_frames(masks)
    return np.full(len(masks), mask_quality != "exact")


def find_missed_frames(masks: NDArray[np.uint8]) -> Flags:
    """Return for each frame (T,) whether its mask is empty in a short gap between masks (T, H, W) that are not."""
    frames_with_mask = np.flatnonzero((masks > 127).any((1, 2)))
    is_missed = np.zeros(len(masks), bool)
    for before, after in pairwise(frames_with_mask):
        is_missed[before + 1 : after] = after - before - 1 <= MAX_GAP_FRAMES
    return is_missed


def edge_contrast(frame: NDArray[np.uint8], inside: Flags) -> float:
    """Return the mean edge strength on the outline of a mask, relative to that in a band around the outline.

    frame: (H, W, 3). inside: the mask (H, W), which must have pixels inside and outside.
    """
    band_px = max(MIN_BAND_PX, round(BAND_WIDTH * max(inside.shape)))
    mask: NDArray = inside.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    box = tuple(
        slice(max(0, low - 2 * band_px), low + side + 2 * band_px) for low, side in ((top, height), (left, width))
    )
    mask, smooth = mask[box], cv2.GaussianBlur(to_lab(frame[box]), (0, 0), 1)
    strength = np.sqrt(sum(np.square(cv2.Sobel(smooth, -1, dx, 1 - dx)).sum(-1) for dx in (0, 1)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band_px + 1,) * 2)
    outline = mask > cv2.erode(mask, np.ones((3, 3), np.uint8))
    band = cv2.dilate(mask, disc) > cv2.erode(mask, disc)
    return float(strength[outline].mean() / max(strength[band].mean(), 1e-6))


def temporal_consistency(clip: SmallClip, masks: NDArray[np.uint8], frames: NDArray[np.int64]) -> float:
    """Return the mean IoU of masks with the next frame's mask, warped by the flow, where the flow is valid.

    masks: (T, H, W). frames: the frame numbers whose masks are compared with the next.
    """
    size = clip.rgb.shape[2:0:-1]
    ious = []
    for t in frames[frames < len(masks) - 1]:
        mask, next_mask = (shrink(masks[frame], size).astype(np.float32) / 255 for frame in (t, t + 1))
        if next_mask.any():
            warped, valid = clip.warp_from_neighbour(next_mask, FORWARD, t), clip.flow_valid[FORWARD, t]
            if (np.maximum(mask, warped) * valid).sum() > MIN_KNOWN_PX:
                ious.append(iou(mask, warped, valid))
    return float(np.mean(ious)) if ious else 0.0
