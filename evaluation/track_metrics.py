"""Metrics of point tracks against points that people placed by hand: those of TAP-Vid and of BADJA.

Sources: Doersch et al. 2022 (TAP-Vid: average Jaccard, delta, occlusion accuracy) and Biggs et al. 2018 (BADJA, PCK).
Positions are in pixels, (x, y)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

THRESHOLDS_PX = (1, 2, 4, 8, 16)  # of TAP-Vid, in pixels of a picture of 256 x 256
PCK_SHARE = 0.2  # BADJA: share of the square root of the mask's area within which a joint is right


def tap_vid_metrics(
    positions: Floats, is_visible: Flags, true_positions: Floats, is_truly_visible: Flags, counts: Flags
) -> dict[str, float]:
    """Return the average Jaccard, delta and occlusion accuracy, each in percent; NaN where nothing counts.

    positions, true_positions: (N, T, 2) in pixels of a picture of 256 x 256. is_visible, is_truly_visible: (N, T).
    counts: (N, T), False for the frames that are left out, such as those of the queries.
    """
    distance = np.linalg.norm(positions - true_positions, axis=-1)
    seen = is_truly_visible & counts
    jaccards, shares = [], []
    for threshold in THRESHOLDS_PX:
        is_near = distance < threshold
        shares.append(percentage((seen & is_near).sum(), seen.sum()))
        hits = (seen & is_near & is_visible).sum()
        false_alarms = (counts & is_visible & ~(is_near & is_truly_visible)).sum()
        jaccards.append(percentage(hits, seen.sum() + false_alarms))
    occlusion = percentage((counts & (is_visible == is_truly_visible)).sum(), counts.sum())
    return {"aj": float(np.mean(jaccards)), "delta": float(np.mean(shares)), "oa": occlusion}


def percentage(part: float, whole: float) -> float:
    """Return a part in percent of a whole; NaN if the whole is 0."""
    return 100 * float(part) / float(whole) if whole else float("nan")


def correct_joints(positions: Floats, true_positions: Floats, is_visible: Flags, mask_areas: Sequence[float]) -> Flags:
    """Return for the visible joints of all frames whether each is right (PCK-T of BADJA), (n,).

    positions, true_positions: (A, N, 2) in A frames, in pixels of a picture of 512 x 320. is_visible: (A, N).
    mask_areas: area of the object's mask in each frame, in pixels of the same picture.
    """
    limit = PCK_SHARE * np.sqrt(np.asarray(mask_areas, float))
    distance = np.linalg.norm(positions - true_positions, axis=-1)
    return (distance < limit[:, None])[is_visible]


def find_visible_so_far(is_visible: Flags) -> Flags:
    """Return which joints are visible in a frame and in all frames before it, (A, N), from `is_visible` (A, N)."""
    return np.logical_and.accumulate(is_visible, axis=0)


def uv_spread_px(uv: Floats, is_visible: Flags, px_per_uv: Floats) -> Floats:
    """Return for each track how far apart its places in the atlas are, in pixels of the frames, (N,).

    It is the mean distance of the places from their median, over the frames in which the point is visible; NaN for a
    point that is visible in fewer than two frames. A mapping without error has 0.

    uv (N, T, 2): where the hand-placed positions are mapped to. px_per_uv (N,): size of a unit of uv, in pixels.
    """
    spreads = np.full(len(uv), np.nan)
    for index, (places, seen) in enumerate(zip(uv, is_visible, strict=True)):
        if seen.sum() >= 2:
            distance = np.linalg.norm(places[seen] - np.median(places[seen], axis=0), axis=-1)
            spreads[index] = float(distance.mean() * px_per_uv[index])
    return spreads
