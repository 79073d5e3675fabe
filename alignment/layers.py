"""How each layer of a clip moves: one transform per frame."""

import numpy as np
from numpy.typing import NDArray

from alignment.long_range import match_distant_frames
from alignment.tracks import sample_point_pairs
from alignment.transforms import (
    OUTLIER_PX,
    align_frames,
    is_sound,
    median_residual_px,
    outlier_limit_px,
    refine_transforms,
    transform_points,
)
from unwrap_utils import Video

Floats = NDArray[np.float64]

RIGID = 1 / 1500  # of the long edge: most points of a rigid layer agree so well in frames far apart


def align_layer(video: Video, member: NDArray[np.bool_], kind: str) -> Floats:
    """(T, 3, 3) frame pixels -> pixels of the layer's reference frame, the middle one of those that show it.

    video on the CPU; member (T, H, W): pixels of the layer; kind: similarity, affine or homography.
    """
    frames, height, width = video.size
    return align_frames(sample_point_pairs(video, member), frames, reference_frame(member), kind, (height, width))


def reference_frame(member: NDArray[np.bool_]) -> int:
    """The middle one of the frames that show a layer; member (T, H, W)."""
    shown = np.flatnonzero(member.any((1, 2)))
    return int(shown[len(shown) // 2]) if len(shown) else len(member) // 2


def align_layers(video: Video) -> Floats:
    """(L, T, 3, 3): of every layer by its rough masks, the background last: affine for objects, else homographies."""
    return np.stack([align_layer(video, member, kind) for member, kind in layer_pixels(video)])


def refine_long_range(video: Video, transforms: Floats) -> Floats:
    """The same transforms (L, T, 3, 3), refined once more with frames far apart compared directly: without drift."""
    return np.stack(
        [
            refine_layer_long_range(video, each, member, kind)
            for each, (member, kind) in zip(transforms, layer_pixels(video), strict=True)
        ]
    )


def refine_layer_long_range(video: Video, transforms: Floats, member: NDArray[np.bool_], kind: str) -> Floats:
    """One layer's transforms (T, 3, 3) refined with frames far apart, if the layer is rigid enough.

    No transform fits frames far apart of an object that bends or turns, so those would draw it towards some part of
    it, away from what the flow says of the whole.
    """
    distant = match_distant_frames(video, member, transforms)
    if len(distant.source) == 0:
        return transforms
    pairs, size, reference = sample_point_pairs(video, member) + distant, video.size[1:], reference_frame(member)
    with np.errstate(all="ignore"):
        # At first as wide as the drift that was found, else the distant points would be the outliers.
        result = refine_transforms(transforms, pairs, reference, kind, size, outlier_limit_px(transforms, distant))
        result = refine_transforms(
            result, pairs, reference, kind, size, min(outlier_limit_px(result, pairs), OUTLIER_PX)
        )
        is_rigid = median_residual_px(result, distant) < RIGID * max(size)
    return result if is_rigid and is_sound(result, size) else transforms


def layer_pixels(video: Video) -> list[tuple[NDArray[np.bool_], str]]:
    """The pixels (T, H, W) of each layer by the rough masks, and the kind of its transforms; video on the CPU."""
    masks = video.masks.numpy() > 127
    return [*((mask, "affine") for mask in masks), (~masks.any(0), "homography")]


def object_boxes(inside: NDArray[np.bool_], margin: float) -> NDArray[np.int64]:
    """(T, 4) top, bottom, left, right around what is inside in a frame or its neighbours; empty where nothing is."""
    frames, height, width = inside.shape
    boxes = np.zeros((frames, 4), np.int64)
    for t in range(frames):
        near = inside[max(0, t - 1) : t + 2].any(0)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if len(rows) == 0:
            continue
        reach = int(margin * max(np.ptp(rows), np.ptp(columns))) + (2 if margin else 0)
        boxes[t] = (
            max(0, rows[0] - reach),
            min(height, rows[-1] + 1 + reach),
            max(0, columns[0] - reach),
            min(width, columns[-1] + 1 + reach),
        )
    return boxes


def box_corners(transforms: Floats, boxes: NDArray[np.int64]) -> Floats:
    """(n, 2): corners of the boxes that hold anything, as their transforms place them."""
    corners = [
        transform_points(matrix, np.array([[x, y] for x in (left, right - 1) for y in (top, bottom - 1)], float))
        for matrix, (top, bottom, left, right) in zip(transforms, boxes, strict=True)
        if bottom > top
    ]
    return np.concatenate(corners) if corners else np.array([[0.0, 0.0], [1.0, 1.0]])
