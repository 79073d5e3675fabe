"""Fit the motion of each layer of a clip: one transform per frame."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.long_range import MATCHES_PER_PAIR, match_distant_frames
from alignment.still_camera import are_still, is_camera_still
from alignment.tracks import (
    POINTS_PER_PAIR,
    Flags,
    Floats,
    LayerPixels,
    PointPairs,
    find_shown_frames,
    pad_pairs,
    sample_point_pairs,
)
from alignment.transforms import (
    OUTLIER_PX,
    align_frames,
    are_plausible,
    median_residual_px,
    outlier_limit_px,
    refine_transforms,
    transform_points,
)
from implicit_neural_networks import Layers
from parallel.side_by_side import map_side_by_side
from unwrap_utils import Video

# Largest median residual of matches between distant frames for a layer that counts as rigid, as a share of the frame's
# long edge.
MAX_RIGID_RESIDUAL = 1 / 1500


class MaskedPixels:
    """The pixels of a layer by the rough masks, computed for one frame at a time, because a clip may be long."""

    def __init__(self, masks: NDArray[np.uint8], index: int):
        """masks: (F, T, H, W). index: of the object; F for the background, the pixels of no object."""
        self.masks, self.index = masks, index

    def __len__(self) -> int:
        return self.masks.shape[1]

    def __getitem__(self, t: int) -> Flags:
        if self.index < len(self.masks):
            inside: Flags = self.masks[self.index, t] > 127
            return inside
        return ~np.asarray((self.masks[:, t] > 127).any(0))

    def __array__(self, *_: Any, **__: Any) -> Flags:
        return np.stack([self[t] for t in range(len(self))])


def align_layer(video: Video, mask: LayerPixels, kind: str) -> Floats:
    """Fit transforms (T, 3, 3) from pixels of each frame to pixels of the layer's reference frame.

    video: on the CPU. mask: (T, H, W), the pixels of the layer. kind: "similarity", "affine" or "homography".
    """
    frames, height, width = video.size
    return align_frames(sample_point_pairs(video, mask), frames, reference_frame(mask), kind, (height, width))


def align_background(video: Video, mask: LayerPixels) -> Floats:
    """Fit the background's transforms (T, 3, 3): homographies, or the identity if the camera stands still.

    The arguments are those of `align_layer`.
    """
    transforms = align_layer(video, mask, Layers.for_objects(1).background.motion_kind)
    return np.tile(np.eye(3), (len(transforms), 1, 1)) if is_camera_still(video, mask, transforms) else transforms


def reference_frame(mask: LayerPixels) -> int:
    """Return the middle one of the frames in which a layer's mask (T, H, W) is not empty."""
    visible_frames = np.flatnonzero(find_shown_frames(mask))
    return int(visible_frames[len(visible_frames) // 2]) if len(visible_frames) else len(mask) // 2


def align_layers(video: Video) -> Floats:
    """Fit the transforms (L, T, 3, 3) of all layers, with pixels assigned by the rough masks; video on the CPU.

    The background is the last layer. It moves by homographies, unless the camera stands still, the objects by affine
    transforms.
    """
    *objects, (background, _) = layer_pixels(video)
    return np.stack([align_layer(video, *pixels) for pixels in objects] + [align_background(video, background)])


def match_layers(video: Video, transforms: Floats, most_points: int = MATCHES_PER_PAIR) -> list[PointPairs]:
    """Match points of each layer between frames that are far apart.

    A layer whose transforms are all the identity, as the background of a camera that stands still, cannot drift, so it
    gets no points. video: on the CPU. transforms (L, T, 3, 3): of all layers, from pixels to any plane, or to rays of a
    camera. most_points: that are kept of each pair of frames.
    """
    layers = zip(transforms, layer_pixels(video), strict=True)
    return [
        pad_pairs([]) if are_still(motion) else match_distant_frames(video, mask, motion, most_points)
        for motion, (mask, _) in layers
    ]


def refine_long_range(video: Video, transforms: Floats, matches: list[PointPairs]) -> Floats:
    """Refine the transforms (L, T, 3, 3) of all layers with direct matches of distant frames, which removes drift.

    video: on the CPU. matches: see `match_layers`.
    """
    layers = zip(transforms, layer_pixels(video), matches, strict=True)
    return np.stack(
        map_side_by_side(lambda layer: refine_layer_long_range(video, layer[0], *layer[1], layer[2]), layers)
    )


def refine_layer_long_range(
    video: Video, transforms: Floats, mask: LayerPixels, kind: str, distant: PointPairs
) -> Floats:
    """Refine one layer's transforms (T, 3, 3) with direct matches of distant frames, if the layer is rigid enough.

    If an object bends or turns, no transform fits frames that are far apart. The matches would then pull the
    transforms to one part of the object, away from the flow of the whole. Such a layer keeps its transforms. So does
    one without matches.
    """
    if len(distant.source) == 0:
        return transforms
    distant = distant.first_points(POINTS_PER_PAIR)
    pairs, size, reference = sample_point_pairs(video, mask) + distant, video.size[1:], reference_frame(mask)
    with np.errstate(all="ignore"):
        # The first limit is as large as the measured drift. With a smaller one the distant matches would be outliers.
        result = refine_transforms(transforms, pairs, reference, kind, size, outlier_limit_px(transforms, distant))
        result = refine_transforms(
            result, pairs, reference, kind, size, min(outlier_limit_px(result, pairs), OUTLIER_PX)
        )
        is_rigid = median_residual_px(result, distant) < MAX_RIGID_RESIDUAL * max(size)
    return result if is_rigid and are_plausible(result, size) else transforms


def layer_pixels(video: Video) -> list[tuple[MaskedPixels, str]]:
    """Return for each layer its pixels (T, H, W) by the rough masks and the kind of its transforms.

    The background is the last layer: the pixels of no object. video: on the CPU.
    """
    masks = video.masks.numpy()
    return [(MaskedPixels(masks, layer.index), layer.motion_kind) for layer in Layers.for_objects(len(masks))]


def object_boxes(masks: Flags, margin: float) -> NDArray[np.int64]:
    """Return boxes (T, 4) as top, bottom, left, right, in pixels, around the masks (T, H, W) of an object.

    The box of a frame also holds the object in the previous and the next frame. Bottom and right are exclusive. A box
    is all zeros if the three masks are empty. margin: share of the box's longer side that is added on each side; if
    it is above 0, another 2 pixels are added.
    """
    frames, height, width = masks.shape
    boxes = np.zeros((frames, 4), np.int64)
    for t in range(frames):
        mask = np.asarray(masks[max(0, t - 1) : t + 2].any(0))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) == 0:
            continue
        margin_px = int(margin * max(np.ptp(rows), np.ptp(columns))) + (2 if margin else 0)
        boxes[t] = (
            max(0, rows[0] - margin_px),
            min(height, rows[-1] + 1 + margin_px),
            max(0, columns[0] - margin_px),
            min(width, columns[-1] + 1 + margin_px),
        )
    return boxes


def box_corners(transforms: Floats, boxes: NDArray[np.int64]) -> Floats:
    """Return the corners (n, 2) of all boxes (T, 4) that are not empty, moved by their transforms (T, 3, 3).

    If all boxes are empty, return two corners of a unit square.
    """
    corners = [
        transform_points(matrix, np.array([[x, y] for x in (left, right - 1) for y in (top, bottom - 1)], float))
        for matrix, (top, bottom, left, right) in zip(transforms, boxes, strict=True)
        if bottom > top
    ]
    return np.concatenate(corners) if corners else np.array([[0.0, 0.0], [1.0, 1.0]])
