"""Frames far apart compared directly: where flow that is followed from frame to frame has drifted, this has not.

Some frames, evenly spread, are laid onto each other as the transforms say, and dense flow between the two finds what
is still missing.
"""

from itertools import count, takewhile

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.dis_flow import DisFlow
from alignment.tracks import POINTS_PER_PAIR, Floats, Pairs, stacked
from alignment.transforms import FEWEST_POINTS, transformed
from unwrap_utils import Video, consistent_flow

MOST_FRAMES = 18  # that are compared with each other
LEAST_STEP = 4  # frames between two of these
NEAREST = 16  # frames apart, at least; nearer ones are tied by the flow followed
LONG_EDGE_PX = 512  # at which they are compared
WEIGHT = 16  # one point compared directly counts as so many that were followed


def distant_pairs(video: Video, member: NDArray[np.bool_], transforms: Floats) -> Pairs:
    """Pairs of points of a layer in frames far apart; video on the CPU, member (T, H, W), transforms (T, 3, 3)."""
    _, height, width = video.size
    scale = min(1.0, LONG_EDGE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    x, y = size[0] / width, size[1] / height
    to_small = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # between the pixels' centers
    chance, search, rows = np.random.default_rng(0), DisFlow(), []
    for here, there in distant_frames(len(transforms)):
        if not (member[here].any() and member[there].any()):
            continue
        between = np.linalg.inv(transforms[here]) @ transforms[there]
        images = [small(video.frames[t].numpy(), size) for t in (here, there)]
        inside = [small(member[t].astype(np.uint8), size) for t in (here, there)]
        points, ends = compared(*images, *inside, to_small @ between @ np.linalg.inv(to_small), search)
        if len(points) >= FEWEST_POINTS:
            chosen = chance.choice(len(points), min(len(points), POINTS_PER_PAIR), replace=False)
            back = np.linalg.inv(to_small)
            rows.append((here, there, *(transformed(back, each[chosen]) for each in (points, ends))))
    return stacked(rows, WEIGHT)


def distant_frames(frames: int) -> list[tuple[int, int]]:
    """Which frames of a clip are compared with which later one."""
    step = max(LEAST_STEP, -(-frames // MOST_FRAMES))
    nearest = step * -(-NEAREST // step)
    distances = takewhile(lambda distance: distance < frames, (nearest << power for power in count()))
    return [(t, t + distance) for distance in distances for t in range(0, frames - distance, step)]


def small(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture (H, W, ...) at (width, height)."""
    return picture if picture.shape[1::-1] == size else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def compared(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    first_inside: NDArray[np.uint8],
    second_inside: NDArray[np.uint8],
    between: Floats,
    search: DisFlow,
) -> tuple[Floats, Floats]:
    """Points (n, 2) of the first frame (H, W, 3), and where they are in the second, which `between` lays onto it.

    Inside (H, W), 1 or 0: pixels of the layer; both ends of a pair lie there.
    """
    size = first.shape[1::-1]
    laid = cv2.warpPerspective(second, between, size)
    inside = first_inside * cv2.warpPerspective(second_inside, between, size, flags=cv2.INTER_NEAREST)
    there, back = search(first, laid)
    y, x = np.nonzero(consistent_flow(there, back) & (inside > 0))
    points = np.stack((x, y), axis=1).astype(float)
    return points, transformed(np.linalg.inv(between), points + there[y, x])
