"""Optical flow without a network: dense inverse search (DIS, Kroeger et al. 2016), as implemented in OpenCV.

DIS searches from coarse to fine, and can lose a small object that moves unlike its surroundings at a coarse level. An
area is lost if flow and flow back contradict each other there, and a guess of the flow fits the frames better. DIS
searches lost areas again from this guess: first the inverse of the other direction, then matches of features, which may
lie any distance apart, then the nearest flow on which both directions agree."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.feature_matches import Matches, match_features
from unwrap_utils import consistent_pixels, flow_targets, targets_inside

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Box = tuple[slice, slice]  # rows and columns

MIN_SIDE_PX = 16  # Smallest width and height that DIS accepts; smaller frames are padded.
# Gradient descent steps per patch, instead of the 25 of OpenCV's medium preset: the same error on the exact scenes in
# less time (benchmarks/flow.py). Fewer patches are faster still but fail on small frames.
DESCENT_STEPS = 12
FINEST_SCALE = 0  # The search goes down to full resolution: up to half of it, a quarter of the time, twice the error.
# New flow replaces old flow only where the frames differ along it by less than this fraction of their difference along
# the old flow, and by at least this many grey levels (of 255) less: noise would decide in areas without texture.
MAX_DIFFERENCE_RATIO, LEAST_GAIN = 0.7, 5.0
DIFFERENCE_WINDOW_PX = 9  # Side of the window around a pixel in which the frames are compared.
LEAST_LOST_PX = 14  # Least width and height of a lost area.
# Least share of the frame's longer side that is searched around a lost area; if the guess moves farther, that far.
LOST_MARGIN = 1 / 12
USUAL_SHARE = 0.95  # Share of the guessed motions that a margin has to cover; a single wrong one must not widen it.


@dataclass
class Direction:
    """Two grey images (H, W), or the same part of both, and the flow (H, W, 2) from the source to the target."""

    source: NDArray
    target: NDArray
    flow: Floats

    def part(self, box: Box) -> "Direction":
        """Return a part of the images. Its flow is that of this direction, so changes of it are seen in both."""
        return Direction(np.ascontiguousarray(self.source[box]), np.ascontiguousarray(self.target[box]), self.flow[box])

    def half(self) -> "Direction":
        """Return a copy of half the size."""
        return Direction(cv2.pyrDown(self.source), cv2.pyrDown(self.target), self.flow[::2, ::2] / np.float32(2))


@dataclass
class Halves:
    """Both directions at half the size, and the large areas (h, w) of each frame whose flow the other contradicts."""

    forth: Direction
    back: Direction
    wrong: Flags
    back_wrong: Flags


MakeGuesses = Callable[[Halves], tuple[Floats, Floats]]  # of the flow of both directions, (h, w, 2) each


class DisFlow:
    """Dense inverse search with OpenCV's medium preset, at full resolution and with fewer descent steps.

    Lost areas are searched a second time.
    """

    def __init__(self, searches_twice: bool = True) -> None:
        """searches_twice: whether lost areas are searched a second time."""
        self.searches_twice = searches_twice
        self.search = make_search()
        # Another one, because OpenCV keeps a first guess: the next search without one, in a larger image, would read
        # beyond its end and crash.
        self.guided_search = make_search()

    def __call__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Compute the flow between two frames (H, W, 3), in both directions.

        Returns the flow from the first frame to the second and the flow from the second to the first, (H, W, 2) each,
        pixels (dx, dy).
        """
        height, width = first.shape[:2]
        bottom, right = (max(0, MIN_SIDE_PX - side) for side in (height, width))
        first_grey, second_grey = (
            cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            for frame in (first, second)
        )
        # OpenCV's type stubs do not know that the first guess may be None.
        flow: Floats = self.search.calc(first_grey, second_grey, None)  # type: ignore[call-overload]
        back_flow: Floats = self.search.calc(second_grey, first_grey, None)  # type: ignore[call-overload]
        if self.searches_twice:
            forth = Direction(first_grey, second_grey, flow)
            self.search_again(forth, Direction(second_grey, first_grey, back_flow))
        return flow[:height, :width], back_flow[:height, :width]

    def search_again(self, forth: Direction, back: Direction) -> None:
        """Replace the flow of lost areas in both directions, in place, where a search from a guess fits better."""
        for make_guesses in (guess_from_back_flow, guess_from_features, guess_from_nearest):
            # Half the size is enough to see large errors, and takes a quarter of the time.
            halves = halve_both(forth, back)
            if not (halves.wrong | halves.back_wrong).any():
                return
            guesses = make_guesses(halves)
            lost = find_lost_areas(halves.forth, halves.wrong, guesses[0])
            back_lost = find_lost_areas(halves.back, halves.back_wrong, guesses[1])
            if not (lost | back_lost).any():
                continue
            # Along the old flow, the whole frames are compared: it may lead out of a box.
            old_fits = measure_fit(forth, forth.flow), measure_fit(back, back.flow)
            farthest = max(usual_motion(guesses[0][lost]), usual_motion(guesses[1][back_lost]))
            full_guesses = upsample_guess(guesses[0], forth.flow), upsample_guess(guesses[1], back.flow)
            for box in list_boxes(lost | back_lost, farthest):
                parts = forth.part(box), back.part(box)
                found = self.follow_guesses(*parts, full_guesses[0][box], full_guesses[1][box])
                for part, old_fit, (new, is_confirmed) in zip(parts, old_fits, found, strict=True):
                    chosen = is_confirmed & is_clearly_less(measure_fit(part, new), old_fit[box])
                    part.flow[chosen] = new[chosen]

    def follow_guesses(
        self, forth: Direction, back: Direction, guess: Floats, back_guess: Floats
    ) -> tuple[tuple[Floats, Flags], tuple[Floats, Flags]]:
        """Search both directions from guesses, (H, W, 2) each.

        Returns the new flow of each, and where the old or the new flow of the other direction leads back.
        """
        new, new_back = self.search_from(forth, guess), self.search_from(back, back_guess)
        is_confirmed = consistent_pixels(new, back.flow) | consistent_pixels(new, new_back)
        is_back_confirmed = consistent_pixels(new_back, forth.flow) | consistent_pixels(new_back, new)
        return (new, is_confirmed), (new_back, is_back_confirmed)

    def search_from(self, direction: Direction, guess: Floats) -> Floats:
        """Compute the flow of a direction from a guess of it, (H, W, 2), which stays as it is."""
        result = np.array(guess, np.float32, order="C")  # A copy, because OpenCV writes the result into the guess.
        return np.asarray(self.guided_search.calc(direction.source, direction.target, result), np.float32)


def make_search() -> cv2.DISOpticalFlow:
    """Return OpenCV's search with the settings of this module."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(FINEST_SCALE)
    search.setGradientDescentIterations(DESCENT_STEPS)
    return search


def halve_both(forth: Direction, back: Direction) -> Halves:
    """Return both directions at half the size, with the areas in which they contradict each other."""
    forth, back = forth.half(), back.half()
    wrong, back_wrong = (
        keep_large_areas(targets_inside(one.flow) & ~consistent_pixels(one.flow, other.flow))
        for one, other in ((forth, back), (back, forth))
    )
    return Halves(forth, back, wrong, back_wrong)


def find_lost_areas(direction: Direction, wrong: Flags, guess: Floats) -> Flags:
    """Return the parts of the wrong areas (h, w) that a guess fits better; all of half the size of the frame."""
    is_better = is_clearly_less(measure_fit(direction, guess), measure_fit(direction, direction.flow))
    return keep_large_areas(wrong & is_better)


def keep_large_areas(mask: Flags) -> Flags:
    """Return the parts of a mask (h, w), of half the frame's size, that are at least LEAST_LOST_PX wide and high."""
    square = np.ones((LEAST_LOST_PX // 2,) * 2, np.uint8)
    # A border of zeros, because OpenCV's own would count narrow strips at the edge of the frame as large.
    padded = np.pad(mask.astype(np.uint8), LEAST_LOST_PX)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, square)
    return np.asarray(opened)[LEAST_LOST_PX:-LEAST_LOST_PX, LEAST_LOST_PX:-LEAST_LOST_PX] > 0


def usual_motion(flow: Floats) -> float:
    """Return the length that nearly all of N vectors (N, 2) do not exceed; 0 if there is no vector."""
    return float(np.quantile(np.linalg.norm(flow, axis=1), USUAL_SHARE)) if len(flow) else 0.0


def upsample_guess(guess: Floats, flow: Floats) -> Floats:
    """Return a guess that was made for half the size, for the size of a flow (H, W, 2)."""
    height, width = flow.shape[:2]
    return np.float32(2) * guess.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def list_boxes(mask: Flags, farthest_px: float) -> list[Box]:
    """Return the rows and columns of the frame around each area of a mask (h, w), which is of half the frame's size.

    farthest_px: how far points of the areas move, in pixels of the mask. The boxes have a margin at least as wide. Near
    areas share a box; if all boxes together are larger than the frame, so do all areas.
    """
    margin = round(max(LOST_MARGIN * max(mask.shape), min(farthest_px, max(mask.shape))))
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8))
    areas = cv2.connectedComponentsWithStats(grown)[2][1:, :4].tolist()
    if sum(width * height for *_, width, height in areas) > mask.size:
        return [(slice(None), slice(None))]
    return [
        (slice(2 * top, 2 * (top + height)), slice(2 * left, 2 * (left + width))) for left, top, width, height in areas
    ]


def guess_from_back_flow(halves: Halves) -> tuple[Floats, Floats]:
    """Return a guess (h, w, 2) of the flow of each direction: the inverse of the other one."""
    forth, back = halves.forth.flow, halves.back.flow
    return invert_flow(back, forth), invert_flow(forth, back)


def guess_from_features(halves: Halves) -> tuple[Floats, Floats]:
    """Return a guess (h, w, 2) of the flow of each direction: where they contradict each other, the nearest match."""
    forth, back = halves.forth, halves.back
    matches = match_features(forth.source, forth.target, halves.wrong, halves.back_wrong)
    return (
        spread_matches(matches, forth.flow, halves.wrong),
        spread_matches(matches.swap(), back.flow, halves.back_wrong),
    )


def guess_from_nearest(halves: Halves) -> tuple[Floats, Floats]:
    """Return a guess (h, w, 2) of the flow of each direction: the nearest flow on which both agree."""
    forth, back = halves.forth.flow, halves.back.flow
    return spread_flow(forth, consistent_pixels(forth, back)), spread_flow(back, consistent_pixels(back, forth))


def invert_flow(back_flow: Floats, flow: Floats) -> Floats:
    """Return the inverse of the flow back (H, W, 2); where it leads to no pixel, the flow as it is."""
    height, width = flow.shape[:2]
    x, y = (np.rint(positions).astype(np.int64) for positions in flow_targets(back_flow))
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    guess = flow.copy()
    guess[y[is_inside], x[is_inside]] = -back_flow[is_inside]
    return guess


def spread_matches(matches: Matches, flow: Floats, area: Flags) -> Floats:
    """Return a flow (H, W, 2) with the motion of the nearest match in an area (H, W), and as it is elsewhere."""
    if not len(matches):
        return flow
    columns, rows = np.rint(matches.source).astype(np.int64).T
    is_match, motions = np.zeros(area.shape, bool), flow.copy()
    is_match[rows, columns], motions[rows, columns] = True, matches.target - matches.source
    return np.where(area[..., None], spread_flow(motions, is_match), flow)


def spread_flow(flow: Floats, chosen: Flags) -> Floats:
    """Return the flow (H, W, 2) of the nearest chosen pixel, for each pixel; the flow as it is if none is chosen."""
    if not chosen.any():
        return flow
    _, nearest = cv2.distanceTransformWithLabels(
        (~chosen).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    flow_by_label = np.zeros((int(nearest.max()) + 1, 2), np.float32)
    flow_by_label[nearest[chosen]] = flow[chosen]
    return flow_by_label[nearest]


def measure_fit(direction: Direction, flow: Floats) -> Floats:
    """Return how much the images differ along a flow (H, W, 2), averaged around each pixel, (H, W).

    The mean difference around a pixel does not count, because the light may change. The result is 0 where the flow
    leads out of the frame, because nothing shows there how well it fits.
    """
    moved = cv2.remap(direction.target, *flow_targets(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = direction.source.astype(np.float32) - moved
    window = (DIFFERENCE_WINDOW_PX, DIFFERENCE_WINDOW_PX)
    deviation = cv2.blur(np.abs(difference - cv2.blur(difference, window)), window)
    return np.where(targets_inside(flow), deviation, np.float32(0))


def is_clearly_less(difference: Floats, other: Floats) -> Flags:
    """Return the pixels (H, W) in which one difference of images is clearly less than another one."""
    return (difference < MAX_DIFFERENCE_RATIO * other) & (difference < other - LEAST_GAIN)
