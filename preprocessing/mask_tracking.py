"""One object followed through a clip: a detector's finds in every frame, linked along the flow.

A detector looks at each frame alone: its best find may be another object in the next frame, or missing. So finds are
linked where the flow carries one mask onto the next, and the frames between two finds are filled from both sides."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from masks.overlap import iou
from unwrap_utils import warp_by_flow

LONG_EDGE_PX = 240  # masks are compared at this size
LEAST_OVERLAP = 0.25  # IoU of a carried mask with a find that continues it
SAME_LABEL, BY_SCORE = 0.15, 0.1  # what a find of the same class, and a sure one, are worth in IoU
LONGEST_GAP = 15  # frames that an object may be missed for
LONGEST_TAIL = 3  # frames that a mask is carried on after the last find
MOST_TRACKS = 10

Floats = NDArray[np.float32]
Flow = NDArray[np.floating]


class Detection:
    """What a detector found in a frame: its class, how sure it is, and a mask, of which only the box is kept."""

    def __init__(self, label: int, score: float, mask: NDArray[np.uint8]):
        """mask (H, W), soft, 255 surely inside."""
        self.label, self.score, self.shape = label, score, mask.shape
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        spans = [slice(int(each[0]), int(each[-1]) + 1) if len(each) else slice(0) for each in (rows, columns)]
        self.box = tuple(spans)
        self.inside = mask[self.box].copy()

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(H, W) soft, 255 surely inside."""
        mask = np.zeros(self.shape, np.uint8)
        mask[self.box] = self.inside
        return mask

    def covers(self, x: float, y: float) -> bool:
        """Whether a pixel is inside."""
        height, width = self.shape
        return 0 <= x < width and 0 <= y < height and bool(self.mask[int(y), int(x)] > 127)


@dataclass
class Track:
    """One object: which find of each frame it is. Masks of frames without a find come from `filled`."""

    detections: dict[int, Detection] = field(default_factory=dict)  # by frame

    @property
    def weight(self) -> float:
        """How sure and how long it was seen."""
        return sum(find.score for find in self.detections.values())

    @property
    def label(self) -> int:
        """The class it was taken for most often."""
        labels = [find.label for find in self.detections.values()]
        return max(set(labels), key=labels.count)


@dataclass(frozen=True)
class Motion:
    """Flow between neighbouring frames at the size of the comparison: there[t] to t + 1, back[t] from t + 1."""

    forward: list[Flow]
    backward: list[Flow]
    size: tuple[int, int]  # (width, height)

    def shrink_mask(self, mask: NDArray[np.uint8]) -> Floats:
        """A mask (H, W) at the size of the comparison, in [0, 1]."""
        return cv2.resize(mask, self.size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def warp_step(self, values: Floats, start: int, step: int) -> Floats:
        """Values (h, w) of frame `start` as the next (step 1) or the previous frame (step -1) shows them."""
        flow = (self.backward[start] if step == 1 else self.forward[start - 1]).astype(np.float32)
        return warp_by_flow(values, flow, cv2.BORDER_CONSTANT)


def link_detections(frames: list[list[Detection]], motion: Motion) -> list[Track]:
    """The objects of a clip, the surest and longest first; frames[t] are the finds of frame t."""
    small = [[motion.shrink_mask(find.mask) for find in finds] for finds in frames]
    left = {(t, index) for t, finds in enumerate(frames) for index in range(len(finds))}
    tracks = []
    while left and len(tracks) < MOST_TRACKS:
        seed = max(left, key=lambda each: frames[each[0]][each[1]].score)
        track, used = link_track(frames, small, motion, seed, left)
        left -= used
        tracks.append(track)
    return sorted(tracks, key=lambda track: -track.weight)


def link_track(
    frames: list[list[Detection]],
    small: list[list[Floats]],
    motion: Motion,
    seed: tuple[int, int],
    left: set[tuple[int, int]],
) -> tuple[Track, set[tuple[int, int]]]:
    """The track through one find (frame, index), out of the finds that are left; and those it uses."""
    start, first = seed
    label, used = frames[start][first].label, {seed}
    for step in (1, -1):
        t, mask, missed = start, small[start][first], 0
        while 0 <= t + step < len(frames) and missed < LONGEST_GAP:
            mask = motion.warp_step(mask, t, step)
            t += step
            rated = {
                index: (iou(mask, small[t][index], if_empty=0.0), find)
                for index, find in enumerate(frames[t])
                if (t, index) in left
            }
            rated = {index: each for index, each in rated.items() if each[0] >= LEAST_OVERLAP}
            if not rated:
                missed += 1
                continue
            best = max(rated, key=lambda index: match_score(*rated[index], label))
            used.add((t, best))
            mask, missed = small[t][best], 0
    return Track({t: frames[t][index] for t, index in sorted(used)}), used


def match_score(shared: float, find: Detection, label: int) -> float:
    """How well a find continues a track of a class that it overlaps by so much."""
    return shared + SAME_LABEL * (find.label == label) + BY_SCORE * find.score


def fill_gaps(track: Track, count: int, motion: Motion) -> tuple[list[NDArray[np.uint8] | None], list[int]]:
    """The track's mask in each of `count` frames, None where it is not seen; and the frames that were filled.

    Between two finds a mask is carried along the flow from both, the nearer weighing more; beyond the first and the
    last find it is carried a few frames on.
    """
    size = next(iter(track.detections.values())).shape[::-1]
    known = sorted(track.detections)
    sums: dict[int, list[tuple[float, Floats]]] = {}
    for t in known:
        for step in (1, -1):
            mask, at, away = motion.shrink_mask(track.detections[t].mask), t, 0
            others = [other for other in known if (other - t) * step > 0]
            reach = min((abs(other - t) for other in others), default=LONGEST_TAIL + 1) - 1
            while away < reach and 0 <= at + step < count:
                mask, at, away = motion.warp_step(mask, at, step), at + step, away + 1
                sums.setdefault(at, []).append((1 / away, mask))
    masks: list[NDArray[np.uint8] | None] = [None] * count
    for t, find in track.detections.items():
        masks[t] = find.mask
    for t, parts in sums.items():
        mean = sum(weight * mask for weight, mask in parts) / sum(weight for weight, _ in parts)
        masks[t] = np.rint(cv2.resize(mean, size, interpolation=cv2.INTER_LINEAR) * 255).astype(np.uint8)
    return masks, sorted(sums)


def find_track_at(tracks: list[Track], x: float, y: float, t: int, name_of: Callable[[int], str]) -> Track:
    """The track whose find covers pixel (x, y) of frame t. Raises UserError listing what there is instead."""
    there = [track for track in tracks if t in track.detections]
    covering = [track for track in there if track.detections[t].covers(x, y)]
    if not covering:
        listed = ", ".join(name_of(track.label) for track in there) or "nothing"
        raise UserError(f"--point {x:g},{y:g},{t}: no object was found there; frame {t} has {listed}")
    return min(covering, key=lambda track: np.count_nonzero(track.detections[t].mask > 127))  # the one in front
