"""Decide whether masks are kept or refined. Careful masks must never be lost, so only masks that are surely rough are.

The outline of careful masks lies on edges of the image, and follows the object from frame to frame. The outline of a
detector's masks lies some pixels beside the edges, and flickers. Masks count as rough only if both are seen."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from masks.cues import Flags, Floats, to_lab
from media.clip import evenly_spaced_indices
from media.flows import FORWARD
from unwrap_utils import Video, warp_by_flow

MAX_CHECKED_FRAMES = 24  # Most frames whose masks are checked, evenly spaced.
OUTLINE_PX = 1  # Distance in pixels up to which edges count as lying on the outline.
BESIDE_PX = (3, 5)  # Smallest and largest distance in pixels of the edges that they are compared with.
MAX_ROUGH_PROMINENCE = 1.55  # Ratio of both edge strengths above which masks are never rough.
MIN_ROUGH_JITTER = 1 / 512  # Share of the long edge: mean distance of two outlines below which masks are never rough.
MAX_JITTER = 1 / 40  # Share of the long edge: largest distance that counts for that mean.
MIN_OUTLINE_PX = 20  # Least number of outline pixels with valid flow that are compared.
MAX_GAP_FRAMES = 5  # Most consecutive empty masks that count as missed; in longer gaps the object is hidden or gone.


@dataclass(frozen=True)
class MaskDecision:
    """Which masks of an object are refined, and why."""

    is_refined: Flags  # (T,)
    reason: str  # for the user


def decide_masks(video: Video, masks: NDArray[np.uint8], mask_quality: str, source: str) -> MaskDecision:
    """Decide for each frame whether the mask of an object is refined or kept.

    masks: (T, H, W). mask_quality: as in the config; "exact" and "rough" override everything. source: one of
    `masks.provenance.SOURCES`. Masks that a method found are refined, because they look steady even where they are
    wrong. Masks that somebody brought are kept. Others are kept unless they are surely rough; then gaps of a few frames
    are filled.
    """
    nothing, everything = np.zeros(len(masks), bool), np.ones(len(masks), bool)
    if mask_quality != "auto":
        is_exact = mask_quality == "exact"
        return MaskDecision(
            nothing if is_exact else everything,
            f"masks are {'kept' if is_exact else 'refined'}, as mask_quality {mask_quality!r} says",
        )
    if source == "found":
        return MaskDecision(everything, "masks were found by a method and are refined")
    if source == "brought":
        return MaskDecision(nothing, "masks that you brought are kept")
    if are_rough(video, masks):
        return MaskDecision(
            everything, 'masks look rough and are refined; set mask_quality to "exact" in the config to keep them'
        )
    missed = find_missed_frames(masks)
    filled = f", {missed.sum()} missing ones are filled in" if missed.any() else ""
    return MaskDecision(
        missed, f'masks are kept{filled}; set mask_quality to "rough" in the config if they should be refined'
    )


def are_rough(video: Video, masks: NDArray[np.uint8]) -> bool:
    """Return whether masks (T, H, W) are surely rough; video on the CPU."""
    inside = masks > 127
    frames = np.flatnonzero(inside.any((1, 2)) & ~inside.all((1, 2)))
    if len(frames) == 0:
        return True  # There is nothing to keep.
    frames = frames[evenly_spaced_indices(len(frames), MAX_CHECKED_FRAMES)]
    pictures = video.frames.numpy()
    prominence = mean_of_known([outline_prominence(pictures[t], inside[t]) for t in frames])
    if prominence is None or prominence >= MAX_ROUGH_PROMINENCE:
        return False
    jitter = mean_of_known([outline_jitter(video, inside, t) for t in frames[frames < len(masks) - 1]])
    return jitter is not None and jitter >= MIN_ROUGH_JITTER


def mean_of_known(values: list[float]) -> float | None:
    """Return the mean of the values that are not NaN; None if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def find_missed_frames(masks: NDArray[np.uint8]) -> Flags:
    """Return for each frame (T,) whether its mask is empty in a short gap between masks (T, H, W) that are not."""
    frames_with_mask = np.flatnonzero((masks > 127).any((1, 2)))
    is_missed = np.zeros(len(masks), bool)
    for before, after in pairwise(frames_with_mask):
        is_missed[before + 1 : after] = after - before - 1 <= MAX_GAP_FRAMES
    return is_missed


def outline_prominence(frame: NDArray[np.uint8], inside: Flags) -> float:
    """Return how much stronger the edges of a frame (H, W, 3) are on the outline of a mask (H, W) than beside it.

    It is NaN if the outline is too short.
    """
    smooth = cv2.GaussianBlur(to_lab(frame), (0, 0), 1)
    strength = np.sqrt(sum(np.square(cv2.Sobel(smooth, -1, dx, 1 - dx)).sum(-1) for dx in (0, 1)))
    distance = signed_distance(inside)
    at_distance = []
    for px in range(-BESIDE_PX[1], BESIDE_PX[1] + 1):
        pixels = strength[np.abs(distance - px) <= 0.5]
        at_distance.append(pixels.mean() if len(pixels) >= MIN_OUTLINE_PX else np.nan)
    middle = BESIDE_PX[1]
    on_outline = max(at_distance[middle - OUTLINE_PX : middle + OUTLINE_PX + 1])
    beside = [at_distance[middle + sign * px] for sign in (-1, 1) for px in range(BESIDE_PX[0], BESIDE_PX[1] + 1)]
    return float(on_outline / max(float(np.mean(beside)), 1e-6))


def signed_distance(inside: Flags) -> Floats:
    """Return the distance in pixels (H, W) to the outline of a mask, positive outside, negative inside, never 0."""
    inner, outer = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (inside, ~inside))
    return np.where(inside, 0.5 - inner, outer - 0.5)


def outline_jitter(video: Video, inside: Flags, t: int) -> float:
    """Return the mean distance between the outline of frame t and that of frame t + 1, warped by the flow.

    It is a share of the long edge. inside: masks (T, H, W). Only pixels with valid flow count. It is NaN if there are
    too few of them, or no mask.
    """
    if not (inside[t].any() and inside[t + 1].any()):
        return float("nan")
    flow = video.flow_steps[FORWARD, t].numpy() * np.float32(video.flow_unit_px[FORWARD, t])
    valid = video.flow_valid[FORWARD, t].numpy()
    following = warp_by_flow(inside[t + 1].astype(np.float32), flow) > 0.5
    if not following.any() or following.all():
        return float("nan")
    here, there = np.abs(signed_distance(inside[t])), np.abs(signed_distance(following))
    distances = np.concatenate([there[(here < 1) & valid], here[(there < 1) & valid]])
    if len(distances) < MIN_OUTLINE_PX:
        return float("nan")
    long_edge = max(inside.shape[1:])
    return float((distances - 0.5).clip(max=MAX_JITTER * long_edge).mean() / long_edge)
