"""Optical flow without a network: dense inverse search (DIS, Kroeger et al. 2016), as implemented in OpenCV.

DIS searches from coarse to fine. A small object that moves unlike what surrounds it is often lost at a coarse level.
Mostly it is lost in one of the two directions only, or only in part. So what is lost is searched again, from where the
other direction or the flow around it says that it is."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from unwrap_utils import consistent_pixels, flow_targets

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Box = tuple[slice, slice]  # rows and columns
MakeGuess = Callable[[Floats, Floats], Floats]  # of the flow and the flow back, (H, W, 2) each

MIN_SIDE_PX = 16  # Smallest width and height that DIS accepts; smaller frames are padded.
# Gradient descent steps per patch, instead of the 25 of OpenCV's medium preset: the same error on the exact scenes in
# less time (benchmarks/flow.py). Fewer patches are faster still but fail on small frames.
DESCENT_STEPS = 12
FINEST_SCALE = 0  # The search goes down to full resolution: up to half of it, a quarter of the time, twice the error.
BETTER = 0.7  # A flow replaces another one where the frames differ by less than this share along it.
LEAST_GAIN = 5.0  # Least gain in grey levels of 255. In flat areas, where any flow fits, noise would decide.
DIFFERENCE_WINDOW_PX = 9  # Side of the window around a pixel in which the difference of the frames is averaged.
LEAST_LOST_PX = 12  # Least width and height of an area that is searched again.
LOST_MARGIN_PX = 64  # Margin around these areas in the second search.


class DisFlow:
    """Dense inverse search with OpenCV's medium preset, at full resolution and with fewer descent steps."""

    def __init__(self, repeats: bool = True) -> None:
        """repeats: whether what is lost is searched again, which takes a fifth longer, and longer where much is lost."""
        self.repeats = repeats
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
        if self.repeats:
            self.search_again(first_grey, second_grey, flow, back_flow)
        return flow[:height, :width], back_flow[:height, :width]

    def search_again(self, first: NDArray, second: NDArray, flow: Floats, back_flow: Floats) -> None:
        """Replace flow that is wrong by flow to which a first guess leads, if that is better, in place.

        first, second (H, W): grey. flow, back_flow (H, W, 2): from the first to the second, and back.
        """
        half_first, half_second = cv2.pyrDown(first), cv2.pyrDown(second)
        for make_guess in (guess_from_back_flow, guess_from_nearest):
            # In images of half the size, large errors are seen as well.
            half_flow, half_back_flow = flow[::2, ::2] / np.float32(2), back_flow[::2, ::2] / np.float32(2)
            lost = find_lost(half_first, half_second, half_flow, half_back_flow, make_guess)
            lost |= find_lost(half_second, half_first, half_back_flow, half_flow, make_guess)
            for box in list_boxes(lost):
                self.follow_guesses(first[box], second[box], flow[box], back_flow[box], make_guess)

    def follow_guesses(
        self, first: NDArray, second: NDArray, flow: Floats, back_flow: Floats, make_guess: MakeGuess
    ) -> None:
        """Search both directions from first guesses, and replace flow that is wrong by better flow, in place."""
        first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
        new = self.search_from(first, second, make_guess(flow, back_flow))
        new_back = self.search_from(second, first, make_guess(back_flow, flow))
        is_replaced = find_better(first, second, (flow, back_flow), (new, new_back))
        is_back_replaced = find_better(second, first, (back_flow, flow), (new_back, new))
        flow[is_replaced] = new[is_replaced]
        back_flow[is_back_replaced] = new_back[is_back_replaced]

    def search_from(self, source: NDArray, target: NDArray, guess: Floats) -> Floats:
        """Compute the flow from one grey image (H, W) to another, from a first guess of it (H, W, 2)."""
        return np.asarray(self.guided_search.calc(source, target, np.ascontiguousarray(guess)), np.float32)


def make_search() -> cv2.DISOpticalFlow:
    """Return OpenCV's search with the settings of this module."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(FINEST_SCALE)
    search.setGradientDescentIterations(DESCENT_STEPS)
    return search


def find_lost(source: NDArray, target: NDArray, flow: Floats, back_flow: Floats, make_guess: MakeGuess) -> Flags:
    """Return the areas (h, w) whose flow is wrong, while two grey images agree better along a guess of it.

    All are of half the size of the frame.
    """
    wrong = keep_large_areas(contradicts(flow, back_flow))
    if not wrong.any():
        return wrong
    return keep_large_areas(wrong & fits_better(source, target, make_guess(flow, back_flow), flow))


def find_better(source: NDArray, target: NDArray, old: tuple[Floats, Floats], new: tuple[Floats, Floats]) -> Flags:
    """Return the pixels (H, W) whose flow is wrong, while the new one is right.

    old, new: flow from the source to the target, and back, (H, W, 2). New flow is right if the images agree better
    along it, and if the old or the new flow back leads back.
    """
    is_confirmed = consistent_pixels(new[0], old[1]) | consistent_pixels(new[0], new[1])
    return ~consistent_pixels(*old) & is_confirmed & fits_better(source, target, new[0], old[0])


def contradicts(flow: Floats, back_flow: Floats) -> Flags:
    """Return the pixels (H, W) whose flow leads to a place in the frame from where the flow back leads elsewhere."""
    height, width = flow.shape[:2]
    x, y = flow_targets(flow)
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return is_inside & ~consistent_pixels(flow, back_flow)


def keep_large_areas(pixels: Flags) -> Flags:
    """Return the parts of marked pixels (h, w), in half size, that are at least LEAST_LOST_PX wide and high."""
    square = np.ones((LEAST_LOST_PX // 2,) * 2, np.uint8)
    return np.asarray(cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_OPEN, square)) > 0


def list_boxes(pixels: Flags) -> list[Box]:
    """Return the rows and columns of the whole frame around each area of pixels (h, w) that are marked in half size.

    The boxes have a margin. Areas that are near each other share a box.
    """
    if not pixels.any():
        return []
    window = np.ones((LOST_MARGIN_PX + 1,) * 2, np.uint8)
    areas = cv2.connectedComponentsWithStats(cv2.dilate(pixels.astype(np.uint8), window))[2]
    return [
        (slice(2 * top, 2 * (top + height)), slice(2 * left, 2 * (left + width)))
        for left, top, width, height, _ in areas[1:].tolist()
    ]


def guess_from_back_flow(flow: Floats, back_flow: Floats) -> Floats:
    """Return the inverse of the flow back (H, W, 2); where it leads to no pixel, the flow as it is."""
    height, width = flow.shape[:2]
    x, y = (np.rint(positions).astype(np.int64) for positions in flow_targets(back_flow))
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    guess = flow.copy()
    guess[y[is_inside], x[is_inside]] = -back_flow[is_inside]
    return guess


def guess_from_nearest(flow: Floats, back_flow: Floats) -> Floats:
    """Return the flow (H, W, 2) of the nearest pixel where flow and flow back agree; the flow itself if none does."""
    is_right = consistent_pixels(flow, back_flow)
    if not is_right.any():
        return flow
    _, nearest = cv2.distanceTransformWithLabels(
        (~is_right).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    flow_by_label = np.zeros((int(nearest.max()) + 1, 2), np.float32)
    flow_by_label[nearest[is_right]] = flow[is_right]
    return flow_by_label[nearest]


def fits_better(source: NDArray, target: NDArray, flow: Floats, other: Floats) -> Flags:
    """Return the pixels (H, W) around which two grey images differ clearly less along one flow than along the other."""
    difference, other_difference = (frame_difference(source, target, each) for each in (flow, other))
    return (difference < BETTER * other_difference) & (difference < other_difference - LEAST_GAIN)


def frame_difference(source: NDArray, target: NDArray, flow: Floats) -> Floats:
    """Return how much two grey images (H, W) differ along the flow (H, W, 2), averaged around each pixel."""
    moved = cv2.remap(target, *flow_targets(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    window = (DIFFERENCE_WINDOW_PX, DIFFERENCE_WINDOW_PX)
    return np.asarray(cv2.blur(cv2.absdiff(source, moved).astype(np.float32), window), np.float32)
