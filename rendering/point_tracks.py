"""Follow points of a frame through a clip by the mapping: where they are, and whether they are visible."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rendering.frames import VISIBLE, Floats, Frame
from rendering.inverse import locate_uv
from rendering.resampling import sample_field

# A place on the background that is no farther than this from an object is taken for the object: people who mark an
# outline, or a thin part such as a tail, miss it by about as much.
OUTLINE_PX = 1.5
DIRECTIONS = np.array([(np.cos(angle), np.sin(angle)) for angle in np.arange(8) * np.pi / 4])  # (8, 2)


@dataclass(frozen=True)
class Points:
    """N points of a clip, each on one layer."""

    layers: NDArray[np.int64]  # (N,) number of the layer that the point's place shows most; see `pick_in_frame`
    uv: Floats  # (N, 2) place in the layer's own square


def pick_in_frame(frame: Frame, positions: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the layer that is visible most at positions (N, 2) of a frame, (N,), and its uv there, (N, 2).

    Within OUTLINE_PX of an object it is the object, and not the background.
    """
    layers = measure_visibility(frame, positions).argmax(0)
    around = np.stack([measure_visibility(frame, positions + OUTLINE_PX * step) for step in DIRECTIONS]).max(0)
    nearest_object = around[:-1].argmax(0)
    is_object_near = around[:-1].max(0) > VISIBLE
    layers = np.where((layers == len(around) - 1) & is_object_near, nearest_object, layers)
    uv = np.stack([sample_at(layer_uv, positions) for layer_uv in frame.uv])
    return layers, uv[layers, np.arange(len(layers))]


def measure_visibility(frame: Frame, positions: Floats) -> Floats:
    """Return the visibility of each layer at positions (N, 2) of a frame, (L, N)."""
    return np.stack([sample_at(layer_visibility, positions) for layer_visibility in frame.visibility])


def follow_points(frames: Iterable[Frame], points: Points) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the position (N, T, 2) of each point in each of T frames, and whether it is visible there, (N, T).

    Positions are in pixels of working size. Beyond a frame the mapping is extrapolated linearly.
    """
    found = [follow_in_frame(frame, points) for frame in frames]
    return np.stack([positions for positions, _ in found], axis=1), np.stack([seen for _, seen in found], axis=1)


def follow_in_frame(frame: Frame, points: Points) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the position (N, 2) of each point in a frame, and whether it is visible there, (N,)."""
    positions, is_visible = np.zeros((len(points.layers), 2)), np.zeros(len(points.layers), bool)
    for layer in np.unique(points.layers):
        chosen = points.layers == layer
        positions[chosen], is_found = locate_uv(points.uv[chosen], frame.uv[layer])
        is_visible[chosen] = is_found & (sample_at(frame.visibility[layer], positions[chosen]) > VISIBLE)
    return positions, is_visible


def sample_at(field: Floats, positions: Floats) -> Floats:
    """Sample a field (H, W) or (H, W, C) bilinearly at positions (N, 2) in pixels: (N,) or (N, C)."""
    return sample_field(field, np.asarray(positions, np.float32)[None])[0]
