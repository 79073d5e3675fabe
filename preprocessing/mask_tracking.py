"""Follow objects through a clip by linking the detections of single frames along the optical flow.

A detector looks at each frame alone: its surest detection may be another object in the next frame, or missing there.
Two detections are linked if the flow warps the mask of one onto the mask of the other. Frames between two linked
detections are filled from both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from masks.overlap import iou
from media import Pixels
from unwrap_utils import warp_by_flow

TRACKING_LONG_EDGE_PX = 240  # Pixels of the longer side of the masks and of the flow that links them.
MIN_OVERLAP = 0.25  # IoU that a detection must have with the warped mask of a track to continue the track.
SAME_LABEL_BONUS = 0.15  # IoU that being of the same class is worth, when several detections overlap.
SCORE_BONUS = 0.1  # IoU that a score of 1 is worth, when several detections overlap.
MAX_GAP = 15  # Number of frames after which an object that is not detected is given up.
MAX_TAIL = 3  # Number of frames by which a mask is warped beyond the first and the last detection.
MAX_TRACKS = 10  # Number of objects that are followed.

Floats = NDArray[np.floating]


class Detection:
    """An object that a detector found in one frame: its class, its score and its mask.

    Only the part of the mask inside its bounding box is stored, to save memory.
    """

    def __init__(self, label: int, score: float, mask: Pixels):
        """Store a detection. mask: (H, W) soft, 255 surely inside."""
        self.label, self.score, self.shape = label, score, mask.shape
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        self.box = tuple(
            slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0) for indices in (rows, columns)
        )
        self.box_mask = mask[self.box].copy()

    @property
    def mask(self) -> Pixels:
        """The mask (H, W), soft, 255 surely inside."""
        mask = np.zeros(self.shape, np.uint8)
        mask[self.box] = self.box_mask
        return mask

    def covers(self, x: float, y: float) -> bool:
        """Return whether a pixel is inside the mask; pixels outside the frame are not."""
        height, width = self.shape
        return 0 <= x < width and 0 <= y < height and bool(self.mask[int(y), int(x)] > 127)


@dataclass
class Track:
    """One object of a clip: its detections by the number of the frame."""

    detections: dict[int, Detection] = field(default_factory=dict)

    @property
    def total_score(self) -> float:
        """The sum of the scores, which grows with certainty and with the number of detections."""
        return sum(detection.score for detection in self.detections.values())

    @property
    def label(self) -> int:
        """The most frequent class of the detections."""
        labels = [detection.label for detection in self.detections.values()]
        return max(set(labels), key=labels.count)


@dataclass(frozen=True)
class Motion:
    """The flow (h, w, 2) between neighbouring frames of a clip, in pixels of the size at which masks are compared."""

    forward: list[Floats]  # forward[t] leads from frame t to frame t + 1
    backward: list[Floats]  # backward[t] leads from frame t + 1 to frame t
    size: tuple[int, int]  # (width, height)

    def shrink_mask(self, mask: Pixels) -> Floats:
        """Return a mask (H, W) in 0..255 resized to (h, w), in [0, 1]."""
        return cv2.resize(mask, self.size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def warp_step(self, values: Floats, start: int, step: int) -> Floats:
        """Return the values (h, w) of frame `start` warped to the next frame (step 1) or the previous one (step -1)."""
        flow = (self.backward[start] if step == 1 else self.forward[start - 1]).astype(np.float32)
        return warp_by_flow(values, flow, cv2.BORDER_CONSTANT)


def link_detections(frames: list[list[Detection]], motion: Motion) -> list[Track]:
    """Return the objects of a clip as tracks, the surest and longest first. frames[t]: the detections of frame t."""
    small_masks = [[motion.shrink_mask(detection.mask) for detection in detections] for detections in frames]
    free = {(t, index) for t, detections in enumerate(frames) for index in range(len(detections))}
    tracks: list[Track] = []
    while free and len(tracks) < MAX_TRACKS:
        seed = max(free, key=lambda key: frames[key[0]][key[1]].score)
        track, used = link_track(frames, small_masks, motion, seed, free)
        free -= used
        tracks.append(track)
    return sorted(tracks, key=lambda track: -track.total_score)


def link_track(
    frames: list[list[Detection]],
    small_masks: list[list[Floats]],
    motion: Motion,
    seed: tuple[int, int],
    free: set[tuple[int, int]],
) -> tuple[Track, set[tuple[int, int]]]:
    """Return the track through one detection, and the detections that it uses.

    Detections are named by (frame, index in the frame). seed: the detection to start from. free: those that no other
    track uses. small_masks: the masks of all detections at the size of `motion`.
    """
    seed_frame, seed_index = seed
    label, used = frames[seed_frame][seed_index].label, {seed}
    for step in (1, -1):
        t, mask, gap = seed_frame, small_masks[seed_frame][seed_index], 0
        while 0 <= t + step < len(frames) and gap < MAX_GAP:
            mask = motion.warp_step(mask, t, step)
            t += step
            overlaps = {
                index: iou(mask, small_masks[t][index], if_empty=0.0)
                for index in range(len(frames[t]))
                if (t, index) in free
            }
            scores = {
                index: match_score(overlap, frames[t][index], label)
                for index, overlap in overlaps.items()
                if overlap >= MIN_OVERLAP
            }
            if not scores:
                gap += 1
                continue
            best = max(scores, key=lambda index: scores[index])
            used.add((t, best))
            mask, gap = small_masks[t][best], 0
    return Track({t: frames[t][index] for t, index in sorted(used)}), used


def match_score(overlap: float, detection: Detection, label: int) -> float:
    """Return how well a detection continues a track of the class `label` that it overlaps by the IoU `overlap`."""
    return overlap + SAME_LABEL_BONUS * (detection.label == label) + SCORE_BONUS * detection.score


def fill_gaps(track: Track, count: int, motion: Motion) -> tuple[list[Pixels | None], list[int]]:
    """Return the mask (H, W) of a track in each of `count` frames, and the numbers of the frames that were filled.

    A mask is None where the object is not visible. Between two detections the masks of both are warped along the flow
    and averaged, with weights that fall with the distance in frames. Before the first and after the last detection
    its mask is warped by up to MAX_TAIL frames.
    """
    height, width = next(iter(track.detections.values())).shape
    known = sorted(track.detections)
    warped_masks: dict[int, list[tuple[float, Floats]]] = {}  # (weight, mask) by the number of the frame
    for start in known:
        for step in (1, -1):
            mask, t, distance = motion.shrink_mask(track.detections[start].mask), start, 0
            others = [other for other in known if (other - start) * step > 0]
            reach = min((abs(other - start) for other in others), default=MAX_TAIL + 1) - 1
            while distance < reach and 0 <= t + step < count:
                mask, t, distance = motion.warp_step(mask, t, step), t + step, distance + 1
                warped_masks.setdefault(t, []).append((1 / distance, mask))
    masks: list[Pixels | None] = [None] * count
    for t, detection in track.detections.items():
        masks[t] = detection.mask
    for t, weighted in warped_masks.items():
        total = np.zeros_like(weighted[0][1])
        for weight, mask in weighted:
            total = total + weight * mask
        mean = total / sum(weight for weight, _ in weighted)
        masks[t] = np.rint(cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR) * 255).astype(np.uint8)
    return masks, sorted(warped_masks)


def find_track_at(tracks: list[Track], x: float, y: float, t: int, label_name: Callable[[int], str]) -> Track:
    """Return the track whose detection covers pixel (x, y) of frame t; of several, the smallest one.

    Raise UserError, with a list of the objects of that frame, if no detection covers the pixel.
    """
    in_frame = [track for track in tracks if t in track.detections]
    covering = [track for track in in_frame if track.detections[t].covers(x, y)]
    if not covering:
        names = ", ".join(label_name(track.label) for track in in_frame) or "nothing"
        raise UserError(
            f"--point {x:g},{y:g},{t}: no object was found there; frame {t} has {names}; give a point on one of them"
        )
    # The smallest mask is most probably the one in front.
    return min(covering, key=lambda track: np.count_nonzero(track.detections[t].mask > 127))
