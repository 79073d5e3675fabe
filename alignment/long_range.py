"""Match frames that are far apart in time directly, which removes the drift of flow tracked from frame to frame.

Some evenly spaced frames are compared: one is warped onto the other by the transforms found so far, and dense flow
between the two measures the motion that is still missing. Where one of them has more motion blur than the other, both
are blurred equally before."""

from dataclasses import dataclass
from itertools import count, takewhile

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from alignment.dis_flow import DisFlow
from alignment.motion_blur import blur_along, limit_motion, measure_motion
from alignment.tracks import (
    BORDER_PX,
    Flags,
    Floats,
    LayerPixels,
    PointPairs,
    nearest_pixels,
    pad_pairs,
)
from alignment.transforms import MIN_POINTS, resize_matrix, to_homogeneous, transform_points
from media.images import fit_size
from parallel.side_by_side import map_side_by_side
from unwrap_utils import Video, consistent_pixels

MAX_FRAMES = 18  # Most frames of a clip that take part, unless that leaves more than MIN_DISTANCE between them.
MIN_STEP = 4  # Least number of frames between two frames that take part.
MIN_DISTANCE = 16  # Least number of frames between two frames that are compared; nearer ones are tied by tracked flow.
LONG_EDGE_PX = 512  # Pixels of the long edge at which frames are compared; larger frames are reduced to it.
MATCHES_PER_PAIR = 2560  # Most points that are kept for one pair of frames.
POINT_WEIGHT = 16  # Weight of a directly matched point in a fit of transforms; a tracked point has weight 1.
TEXTURE_WINDOW_PX = 9  # Side in pixels of the window around a point in which texture is measured.
CROP_MARGIN_PX = 32  # Pixels around a layer that are compared. Points that move farther beyond it are not found.
MIN_SLOPE = 2.0  # Least slope in grey levels per pixel, in every direction; the flow of flat areas is a guess.


@dataclass(frozen=True)
class FramePair:
    """Two reduced frames of a layer, of which the second one is warped onto the part of the first around the layer."""

    first: NDArray[np.uint8]  # (h, w, 3)
    second: NDArray[np.uint8]  # (h, w, 3), warped
    first_mask: NDArray[np.uint8]  # (h, w), 1 on the layer
    second_mask: NDArray[np.uint8]  # (H, W), the same of the whole second frame, as it is
    second_to_first: Floats  # (3, 3), the transform of the second frame, before it is warped, to `first`
    corner: tuple[int, int]  # (x, y) of the first pixel of `first` in its frame
    motion: Floats  # (2,) of the middle of the layer in the first frame, pixels per frame
    second_motion: Floats  # (2,) the same in the second frame, in pixels of the first one

    def blur_equally(self, shutter: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return both pictures, each blurred as the other one is. shutter: the exposure time in frames; 0: no blur."""
        return blur_along(self.first, shutter * self.second_motion), blur_along(self.second, shutter * self.motion)


def match_distant_frames(
    video: Video, mask: LayerPixels, transforms: Floats, most_points: int = MATCHES_PER_PAIR
) -> PointPairs:
    """Match points of a layer between frames that are far apart.

    video: on the CPU. mask: (T, H, W), the pixels of the layer. transforms: (T, 3, 3), from frames to the layer's
    reference frame; they need to be right up to the drift. most_points: that are kept of each pair of frames, in
    random order.
    """
    height, width = video.size[1:]
    to_full = resize_matrix(fit_size((width, height), LONG_EDGE_PX), (width, height))

    def match_pair(numbers: tuple[int, int]) -> tuple[Floats, Floats]:
        """Return points (n, 2) of one frame in random order, and their positions (n, 2) in the other one."""
        pair = open_pair(video, mask, transforms, *numbers)
        if pair is None:
            return np.zeros((0, 2)), np.zeros((0, 2))
        # What differs between distant frames, such as an object's other side, would often be searched in vain.
        points, ends = match_frames(pair, video.shutter, DisFlow(searches_twice=False))
        rng = np.random.default_rng(numbers)
        chosen = rng.choice(len(points), min(len(points), most_points), replace=False)
        return transform_points(to_full, points[chosen]), transform_points(to_full, ends[chosen])

    numbers = choose_frame_pairs(len(transforms))
    found = zip(numbers, map_side_by_side(match_pair, numbers), strict=True)
    rows = [(*pair, *points) for pair, points in found if len(points[0]) >= MIN_POINTS]
    return pad_pairs(rows, POINT_WEIGHT, most_points)


def choose_frame_pairs(frames: int) -> list[tuple[int, int]]:
    """Return pairs (frame, later frame) of a clip of so many frames that are compared.

    The distances are MIN_DISTANCE, rounded up to the step between frames, and its doubles.
    """
    step = min(max(MIN_STEP, -(-frames // MAX_FRAMES)), MIN_DISTANCE)
    shortest = step * -(-MIN_DISTANCE // step)
    distances = takewhile(lambda distance: distance < frames, (shortest << power for power in count()))
    return [(t, t + distance) for distance in distances for t in range(0, frames - distance, step)]


def clear_border(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of a mask (H, W) that is 0 at the border of the frame, where the flow is unreliable."""
    cleared = np.zeros_like(mask)
    inner = (slice(BORDER_PX, -BORDER_PX),) * 2
    cleared[inner] = mask[inner]
    return cleared


def crop_around(mask: NDArray[np.uint8]) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """Return the rows and columns around the pixels of a mask (H, W), which has some, and the first pixel (x, y)."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = max(0, rows[0] - CROP_MARGIN_PX), max(0, columns[0] - CROP_MARGIN_PX)
    crop = slice(top, rows[-1] + 1 + CROP_MARGIN_PX), slice(left, columns[-1] + 1 + CROP_MARGIN_PX)
    return crop, (int(left), int(top))


def open_pair(video: Video, mask: LayerPixels, transforms: Floats, source: int, target: int) -> FramePair | None:
    """Return two frames of a layer; None if one of them does not show it, or if it is behind the camera of the other.

    The arguments are those of `match_distant_frames`.
    """
    _, height, width = video.size
    size = fit_size((width, height), LONG_EDGE_PX)
    to_small, to_full = resize_matrix((width, height), size), resize_matrix(size, (width, height))
    masks = [clear_border(media.resize(mask[t].astype(np.uint8), *size)) for t in (source, target)]
    if not all(each.any() for each in masks):
        return None
    first, second = (media.resize(video.frames[t].numpy(), *size) for t in (source, target))
    crop, (left, top) = crop_around(masks[0])
    to_crop = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    to_first = to_crop @ to_small @ np.linalg.inv(transforms[source]) @ transforms[target] @ to_full
    crop_size = masks[0][crop].shape[::-1]
    motions = []
    for t, to_pixels, each in ((source, to_crop, masks[0]), (target, to_first, masks[1])):
        middle = transform_points(to_full, np.argwhere(each)[:, ::-1].mean(0, keepdims=True))[0]
        if (to_homogeneous(middle[None]) @ (to_pixels @ to_small)[2])[0] <= 0:
            return None
        with np.errstate(all="ignore"):
            ends = np.stack((middle, middle + measure_motion(transforms, t, middle)))
            motions.append(limit_motion(np.diff(transform_points(to_pixels @ to_small, ends), axis=0)[0]))
    warped: NDArray = cv2.warpPerspective(second, to_first, crop_size, borderMode=cv2.BORDER_REPLICATE)
    return FramePair(first[crop], warped, masks[0][crop], masks[1], to_first, (left, top), *motions)


def match_frames(pair: FramePair, shutter: float, dis_flow: DisFlow) -> tuple[Floats, Floats]:
    """Return points (n, 2) of the first frame of a pair and their positions (n, 2) in the second one, in pixels.

    Both ends lie on the layer, and the first end on texture. shutter: the exposure time in frames; 0: no motion blur.
    """
    first, second = pair.blur_equally(shutter)
    flow, back_flow = dis_flow(first, second)
    y, x = np.nonzero(consistent_pixels(flow, back_flow) & (pair.first_mask > 0) & find_textured_pixels(first))
    points = np.stack((x, y), axis=1).astype(float)
    to_second = np.linalg.inv(pair.second_to_first)
    moved = points + flow[y, x]
    is_in_front = to_homogeneous(moved) @ to_second[2] > 0  # A camera that turned far has nothing of it in view.
    points, moved = points[is_in_front], moved[is_in_front]
    ends = transform_points(to_second, moved)
    column, row, is_inside = nearest_pixels(ends, pair.second_mask.shape)
    is_match = is_inside & (pair.second_mask[row, column] > 0)
    return points[is_match] + pair.corner, ends[is_match]


def find_textured_pixels(image: NDArray[np.uint8]) -> Flags:
    """Return an (H, W) mask: True where an image (H, W, 3) changes in every direction around a pixel."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # With OpenCV's scaling of the derivatives, the least eigenvalue is four times the square of the mean slope.
    return np.asarray(cv2.cornerMinEigenVal(grey, TEXTURE_WINDOW_PX) > 4 * MIN_SLOPE**2)
