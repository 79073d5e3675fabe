"""Follow points of a frame through a clip by the mapping: where they are, and whether they are visible."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from rendering.frames import VISIBLE, Floats, Frame
from rendering.inverse import locate_uv
from rendering.resampling import sample_field

# A place on the background that is no farther from an object's outline is taken for the object: people who mark an
# outline, or a thin part such as a tail, may miss it by as much. The nearest object is taken.
BESIDE_PX = 1.5
# Such a point is visible in a frame if the outline is no farther from it than this, because outlines waver.
FOLLOWED_BESIDE_PX = 3.0


@dataclass(frozen=True)
class Points:
    """N points of a clip, each on one layer."""

    layers: NDArray[np.int64]  # (N,) number of the layer that the point is on
    uv: Floats  # (N, 2) place in the layer's own square
    is_beside: NDArray[np.bool_]  # (N,) whether the point was given beside the object that it is on

    def select(self, chosen: NDArray[np.int64]) -> "Points":
        """Return some of the points, by their indices."""
        return Points(self.layers[chosen], self.uv[chosen], self.is_beside[chosen])

    @classmethod
    def join(cls, parts: Sequence["Points"]) -> "Points":
        """Return the points of all parts, one part after the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def pick_in_frame(frame: Frame, positions: Floats) -> Points:
    """Return the points at positions (N, 2) of a frame: on the layer that is visible most, or on an object beside it.

    See BESIDE_PX. The uv of a point is that of its own position, even where its object begins beside it.
    """
    visibility = frame.visibility
    layers = np.stack([sample_at(each, positions) for each in visibility]).argmax(0)
    distances_px = np.stack([sample_at(measure_distance(each), positions) for each in visibility[:-1]])
    is_beside = (layers == len(visibility) - 1) & (distances_px.min(0) <= BESIDE_PX)
    layers = np.where(is_beside, distances_px.argmin(0), layers)
    uv = np.stack([sample_at(layer_uv, positions) for layer_uv in frame.uv])
    return Points(layers, uv[layers, np.arange(len(layers))], is_beside)


def follow_points(frames: Iterable[Frame], points: Points) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the position (N, T, 2) of each point in each of T frames, and whether it is visible there, (N, T).

    Positions are in pixels of working size. Beyond a frame the mapping is extrapolated linearly.
    """
    found = [follow_in_frame(frame, points) for frame in frames]
    return np.stack([positions for positions, _ in found], axis=1), np.stack([seen for _, seen in found], axis=1)


def follow_in_frame(frame: Frame, points: Points) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the position (N, 2) of each point in a frame, and whether it is visible there, (N,)."""
    positions, is_visible = np.zeros((len(points.layers), 2)), np.zeros(len(points.layers), bool)
    visibilities = frame.visibility
    for layer in np.unique(points.layers):
        chosen = points.layers == layer
        positions[chosen], is_found = locate_uv(points.uv[chosen], frame.uv[layer])
        visibility, beside = visibilities[layer], chosen & points.is_beside
        is_visible[chosen] = sample_at(visibility, positions[chosen]) > VISIBLE
        if beside.any():
            is_visible[beside] = sample_at(measure_distance(visibility), positions[beside]) <= FOLLOWED_BESIDE_PX
        is_visible[chosen] &= is_found
    return positions, is_visible


def measure_distance(visibility: Floats) -> Floats:
    """Return how far each pixel is from the outline of a layer's visible part (H, W), in pixels; inside it -0.5."""
    is_outside = (visibility <= VISIBLE).astype(np.uint8)
    # The outline lies half a pixel beyond the center of the outermost pixel.
    return np.asarray(cv2.distanceTransform(is_outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5)


def sample_at(field: Floats, positions: Floats) -> Floats:
    """Sample a field (H, W) or (H, W, C) bilinearly at positions (N, 2) in pixels: (N,) or (N, C)."""
    return sample_field(field, np.asarray(positions, np.float32)[None])[0]
