"""Find rough masks without a network: the object is what moves against the background, or looks unlike it.

No single measure is right for every clip: water moves, a torso moves less than its legs, a parked car looks unlike the
road. Their mistakes differ, so four segmentations of the clip vote for each pixel. Each is also a candidate of its own,
for people to choose from where the vote is wrong. Motion is that between two frames, unless the object stands still in
many frames: then it is the motion over many frames."""

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from alignment.layers import align_background
from command_line import UserError
from masks.cues import SmallClip, background_differences, color_cue, motion_difference, shrink_video
from masks.departure import measure_departure
from masks.overlap import iou
from masks.refinement import log_likelihood_ratio, smooth_along_flow
from media import Pixels
from media.flows import FORWARD
from parallel.side_by_side import map_side_by_side, run_side_by_side
from unwrap_utils import Video

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

LONG_EDGE_PX = 192  # Pixels of the long edge at which motion is compared: averaging removes the noise of flow.
MIN_NOISE_PX = 0.15  # Pixels of the reduced clip by which flow is never trusted to be exact.
MIN_OBJECT_AREA = 0.002  # Share of a frame's pixels below which a moving part is no object.
MAX_OBJECT_AREA = 0.6  # Share of a frame's pixels above which a moving part is no object.
COLOR_WEIGHT = 0.5  # Weight of a colour's score beside that of motion.
BORDER = 0.06  # Share of the frame's height that counts as its border, where objects are rare.
# Score of a pixel that moves 11 times as much against the background as the median pixel. Water and leaves move less.
CLEAR_MOTION_SCORE = 2.4
MEDIAN_SCORE = 0.15  # Score of a pixel that moves and looks as the median pixel does.
MIN_CLEAR_FRAMES = 0.5  # Share of the frames that must show clear motion; with fewer, weaker motion is accepted.
# Least share of what moves within 40 frames that the motion between two frames must show in the median frame. It is .13
# or less for an object that stands still at times, and .67 or more for sixteen that do not (docs/ablations.md).
LEAST_SHOWN = 0.5
# Masks of what moves within 40 frames must follow the flow better: their error against that of the other ones. It is
# .12 for an object that stands still at times. Where wrong flow lets the ground move with small objects, it is larger.
LESS_UNSTEADY = 0.6
# Least median of departures, in units of noise; it is .1 to .6 where the camera stands still or moves slowly.
LEAST_MEDIAN_RATIO = 0.5
NEIGHBOURHOOD = 0.05  # Share of the long edge by which the first object is enlarged before another one is looked for.


def find_candidates(video: Video) -> dict[str, Pixels]:
    """Return rough masks (T, h, w), 0 to 255, of what may be the object, by a few words about it; the best guess first.

    They have a reduced size, see `enlarge_masks`. The first one is the vote of the next four. The background's motion
    is a homography per frame on which most pixels agree; pixels whose flow or colour differs from it belong to the
    object. The last one is the vote with the other kind of motion. Raise UserError if nothing moves.
    """
    clip = shrink_video(video, LONG_EDGE_PX)
    background = clip.reduce_transforms(align_background(video, np.ones(video.size, bool)))
    (motion, color), border, ratios = run_side_by_side(
        lambda: background_scores(clip, background),
        lambda: border_score(clip),
        lambda: measure_departure(clip, background, MIN_NOISE_PX),
    )
    usual = float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else 1.0
    departure = log_score(clip, ratios, max(usual, LEAST_MEDIAN_RATIO))
    (votes, inside), (other_votes, other_inside) = map_side_by_side(
        lambda moving: segment_clip(moving, color, border), (motion, departure)
    )
    other_name = "moves within 40 frames"
    if stands_still(clip, votes > 0.5, other_votes > 0.5):
        motion, inside, other_name = departure, other_inside, "moves between two frames"
        votes, other_votes = other_votes, votes
    if not votes.any():
        raise UserError(
            "nothing moves against the background, so masks can't be found by motion; "
            "use --method maskrcnn, or put masks of your own into the folder"
        )
    reach = 2 * round(NEIGHBOURHOOD * LONG_EDGE_PX) + 1
    both = motion + COLOR_WEIGHT * color
    near = np.stack([cv2.dilate(frame, np.ones((reach, reach), np.uint8)) for frame in votes]) > 0.5
    masks = {
        "what most others show": votes,
        **inside,
        "another moving thing": largest_moving_parts(np.where(near, both.min(), both)),
        other_name: other_votes,
    }
    # Rounded down, so that two votes of four are not yet inside.
    return {name: (values * 255).astype(np.uint8) for name, values in masks.items() if values.any()}


def segment_clip(motion: Floats, color: Floats, border: Floats) -> tuple[Floats, dict[str, Flags]]:
    """Segment a clip four times by scores (T, h, w); return the votes (T, h, w), 0 to 1, and each segmentation by name.

    If no pixel gets most of the votes, those of motion and colour together are returned.
    """
    both = motion + COLOR_WEIGHT * color
    inside = {
        "moves or looks different": largest_moving_parts(both),
        "moves differently": largest_moving_parts(motion),
        "looks different": largest_moving_parts(color, clear_score=0.0),
        "different, not at the border": largest_moving_parts(both + COLOR_WEIGHT * border),
    }
    votes = np.mean([flags.astype(np.float32) for flags in inside.values()], axis=0)
    return (votes if (votes > 0.5).any() else inside["moves or looks different"].astype(np.float32)), inside


def stands_still(clip: SmallClip, moves: Flags, has_moved: Flags) -> bool:
    """Return whether the object stands still in many frames, so that masks of what has moved at any time are better.

    Masks of what moves between two frames then miss most of it, and do not follow the flow, because its parts come and
    go. moves, has_moved: both kinds of masks (T, h, w). If either has no pixel, or the second one has fewer frames with
    a mask, nothing is known.
    """
    areas = has_moved.sum((1, 2))
    if not moves.any() or (areas > 0).sum() < max(1, moves.any((1, 2)).sum()):
        return False
    shown = (moves & has_moved).sum((1, 2))[areas > 0] / areas[areas > 0]
    errors = 1 - measure_steadiness(clip, has_moved), 1 - measure_steadiness(clip, moves)
    return float(np.median(shown)) < LEAST_SHOWN and errors[0] < LESS_UNSTEADY * errors[1]


def measure_steadiness(clip: SmallClip, masks: Flags) -> float:
    """Return the mean IoU of masks (T, h, w) with those of the next frames, which the flow brings to them.

    Pixels without valid flow and pairs of empty masks do not count; 1 if there are no others.
    """
    overlaps = []
    for t in range(len(masks) - 1):
        following = clip.warp_from_neighbour(masks[t + 1].astype(np.float32), FORWARD, t) > 0.5
        is_known = clip.flow_valid[FORWARD, t] >= 0.5
        overlaps.append(iou(masks[t], following, is_known, if_empty=np.nan))
    return float(np.nanmean(overlaps)) if np.isfinite(overlaps).any() else 1.0


def enlarge_masks(masks: Pixels, size: tuple[int, int, int]) -> Pixels:
    """Return masks (T, h, w) enlarged to a video's size (T, H, W)."""
    _, height, width = size
    return np.stack([media.resize(mask, width, height) for mask in masks])


def background_scores(clip: SmallClip, background: Floats) -> tuple[Floats, Floats]:
    """Return how much each pixel moves, and how much it looks, unlike the background: two scores (T, h, w).

    They are the logarithms of the motion against the background and of the colour difference from it, each relative to
    its median, smoothed along the flow. background: transforms (T, 3, 3) of the background.
    """
    motion_px = motion_difference(clip, background)
    median_px = max(float(np.nanmedian(motion_px)), MIN_NOISE_PX)
    is_still = motion_px < 2 * median_px
    color_difference = background_differences(clip, background, is_still)[0]
    median_color = max(float(np.nanmedian(color_difference)), 1e-3)
    by_motion, by_color = run_side_by_side(
        lambda: log_score(clip, motion_px, median_px), lambda: log_score(clip, color_difference, median_color)
    )
    return by_motion, by_color


def log_score(clip: SmallClip, values: Floats, median: float) -> Floats:
    """Return the logarithm of values (T, h, w) relative to their median, smoothed along the flow; NaN is the median."""
    ratio = np.nan_to_num(values, nan=median) / median
    return smooth_along_flow(clip, np.log(ratio + 0.1).astype(np.float32))


def border_score(clip: SmallClip) -> Floats:
    """Return how much more frequent the colour of each pixel is inside the frames than at their border, (T, h, w).

    It is a log-likelihood ratio, smoothed along the flow.
    """
    height, width = clip.rgb.shape[1:3]
    edge = max(2, round(BORDER * height))
    is_inner = np.zeros((height, width), bool)
    is_inner[edge : height - edge, edge : width - edge] = True
    everything = np.ones(clip.rgb.shape[:3], bool)
    ratio = log_likelihood_ratio(color_cue(clip), np.broadcast_to(is_inner, everything.shape), everything)
    return smooth_along_flow(clip, ratio)


def largest_moving_parts(score: Floats, clear_score: float = CLEAR_MOTION_SCORE) -> Flags:
    """Return the largest part of each frame (T, h, w) whose score is high; nothing in frames without such a part.

    High is above Otsu's threshold and above clear_score, or above MEDIAN_SCORE if that leaves too few frames.
    """
    threshold = otsu_threshold(score)
    inside = largest_parts(score > max(threshold, clear_score))
    if inside.any((1, 2)).mean() >= MIN_CLEAR_FRAMES:
        return inside
    return largest_parts(score > max(threshold, MEDIAN_SCORE))


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
