"""Frames far apart compared directly: where flow that is followed from frame to frame has drifted, this has not.

Some frames, evenly spread, are laid onto each other as the transforms say, and dense flow between the two finds what
is still missing."""

from itertools import count, takewhile

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from alignment.dis_flow import DisFlow
from alignment.tracks import BORDER_PX, POINTS_PER_PAIR, Floats, PointPairs, pad_pairs
from alignment.transforms import FEWEST_POINTS, resize_matrix, transform_points
from unwrap_utils import Video, consistent_flow

MOST_FRAMES = 18  # that are compared with each other
LEAST_STEP = 4  # frames between two of these
NEAREST = 16  # frames apart, at least; nearer ones are tied by the flow followed
LONG_EDGE_PX = 512  # at which they are compared
WEIGHT = 16  # one point compared directly counts as so many that were followed
WINDOW_PX = 9  # around a point, that its texture is looked for in
LEAST_SLOPE = 2.0  # grey levels per pixel, in every direction; flow of what is flat is a guess


def match_distant_frames(video: Video, member: NDArray[np.bool_], transforms: Floats) -> PointPairs:
    """Pairs of points of a layer in frames far apart; video on the CPU, member (T, H, W), transforms (T, 3, 3)."""
    _, height, width = video.size
    scale = min(1.0, LONG_EDGE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    to_small, to_full = resize_matrix((width, height), size), resize_matrix(size, (width, height))
    rng, search, rows = np.random.default_rng(0), DisFlow(), []
    for here, there in choose_frame_pairs(len(transforms)):
        if not (member[here].any() and member[there].any()):
            continue
        between = to_small @ np.linalg.inv(transforms[here]) @ transforms[there] @ to_full
        images = [media.resize(video.frames[t].numpy(), *size) for t in (here, there)]
        inside = [clear_border(media.resize(member[t].astype(np.uint8), *size)) for t in (here, there)]
        points, ends = match_frames(*images, *inside, between, search)
        if len(points) >= FEWEST_POINTS:
            chosen = rng.choice(len(points), min(len(points), POINTS_PER_PAIR), replace=False)
            rows.append((here, there, *(transform_points(to_full, each[chosen]) for each in (points, ends))))
    return pad_pairs(rows, WEIGHT)


def choose_frame_pairs(frames: int) -> list[tuple[int, int]]:
    """Which frames of a clip are compared with which later one."""
    step = max(LEAST_STEP, -(-frames // MOST_FRAMES))
    nearest = step * -(-NEAREST // step)
    distances = takewhile(lambda distance: distance < frames, (nearest << power for power in count()))
    return [(t, t + distance) for distance in distances for t in range(0, frames - distance, step)]


def clear_border(inside: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels of a layer (H, W), 1 or 0, but for those at the border, where flow is unreliable."""
    inner = np.zeros_like(inside)
    middle = (slice(BORDER_PX, -BORDER_PX),) * 2
    inner[middle] = inside[middle]
    return inner


def match_frames(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    first_inside: NDArray[np.uint8],
    second_inside: NDArray[np.uint8],
    between: Floats,
    search: DisFlow,
) -> tuple[Floats, Floats]:
    """Points (n, 2) of the first frame (H, W, 3), and where they are in the second, which `between` lays onto it.

    Inside (H, W), 1 or 0: pixels of the layer; both ends of a pair lie there, on what has texture.
    """
    height, width = first_inside.shape
    laid = cv2.warpPerspective(second, between, (width, height), borderMode=cv2.BORDER_REPLICATE)
    there, back = search(first, laid)
    y, x = np.nonzero(consistent_flow(there, back) & (first_inside > 0) & has_texture(first))
    points = np.stack((x, y), axis=1).astype(float)
    ends = transform_points(np.linalg.inv(between), points + there[y, x])
    column, row = np.rint(ends).astype(int).T
    kept = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    kept &= second_inside[row.clip(0, height - 1), column.clip(0, width - 1)] > 0
    return points[kept], ends[kept]


def has_texture(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): around a pixel of an image (H, W, 3) the picture changes in every direction."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # OpenCV's derivatives, over a window, are such that this is four times the square of the mean slope.
    return cv2.cornerMinEigenVal(grey, WINDOW_PX) > 4 * LEAST_SLOPE**2
