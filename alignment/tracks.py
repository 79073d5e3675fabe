"""Sample pairs of points that the optical flow connects, over several distances in time.

Transforms of layers are fitted to these pairs."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from media.flows import FORWARD
from unwrap_utils import RELEASE_EVERY, Video

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


class LayerPixels(Protocol):
    """The pixels of a layer: an array (T, H, W), or something that computes one frame at a time."""

    def __len__(self) -> int:
        """Return the number of frames."""
        ...

    def __getitem__(self, t: int, /) -> Flags:
        """Return the pixels of frame t, (H, W)."""
        ...


DISTANCES = (1, 2, 4, 8, 16)  # Frames between the two ends of a pair.
POINTS_PER_PAIR = 80  # Most points that are kept for one pair of frames.
CANDIDATES_PER_FRAME = 600  # Most points that are tracked from one frame.
BORDER_PX = 2  # Pixels along the border of a frame, where the flow is unreliable.


@dataclass
class PointPairs:
    """Points of one layer in P pairs of frames, N points for each pair.

    Pairs with fewer than N points are padded. Padding has weight 0.
    """

    source: Indices  # (P,) frame numbers
    target: Indices  # (P,) frame numbers
    start_px: Floats  # (P, N, 2) positions (x, y) in the source frame
    end_px: Floats  # (P, N, 2) positions (x, y) of the same points in the target frame
    weight: Floats  # (P, N) weight of each point in a fit

    def first_points(self, count: int) -> "PointPairs":
        """Return at most `count` points of each pair, the first ones."""
        part = slice(count)
        return PointPairs(self.source, self.target, self.start_px[:, part], self.end_px[:, part], self.weight[:, part])

    def __add__(self, other: "PointPairs") -> "PointPairs":
        """Return the pairs of both operands. Both must be padded to the same number of points."""
        return PointPairs(
            np.concatenate((self.source, other.source)),
            np.concatenate((self.target, other.target)),
            np.concatenate((self.start_px, other.start_px)),
            np.concatenate((self.end_px, other.end_px)),
            np.concatenate((self.weight, other.weight)),
        )

    def points_between(self, source: int, target: int) -> tuple[Floats, Floats]:
        """Return the points (n, 2) of one pair of frames and their ends (n, 2); n is 0 if there is no such pair."""
        matches = np.flatnonzero((self.source == source) & (self.target == target))
        if len(matches) == 0:
            return np.zeros((0, 2)), np.zeros((0, 2))
        is_point = self.weight[matches[0]] > 0
        return self.start_px[matches[0]][is_point], self.end_px[matches[0]][is_point]


def nearest_pixels(points: Floats, size: tuple[int, int]) -> tuple[Indices, Indices, Flags]:
    """Return the columns x (n,) and rows y (n,) of the pixels nearest to points (n, 2), and which are in the frame.

    Points outside the frame of size (height, width) get the nearest pixel at its border.
    """
    height, width = size
    x, y = np.rint(points).astype(int).T
    is_inside: Flags = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return x.clip(0, width - 1), y.clip(0, height - 1), is_inside


def track_points(video: Video, t: int, points: Floats, steps: int) -> tuple[list[Floats], list[Flags]]:
    """Track points (n, 2) of frame t along the forward flow.

    Returns their positions (n, 2) after 1, 2, ... `steps` frames, and for each step whether the flow was valid all the
    way (n,). The lists are shorter where the video ends.
    """
    frames, height, width = video.size
    steps_px, steps_valid = video.flow_steps[FORWARD].numpy(), video.flow_valid[FORWARD].numpy()
    units = video.flow_unit_px[FORWARD].numpy()
    positions, validities = [], []
    is_valid = np.ones(len(points), bool)
    for frame in range(t, min(t + steps, frames - 1)):
        x, y, is_inside = nearest_pixels(points, (height, width))
        is_valid = is_valid & is_inside & steps_valid[frame, y, x]
        points = points + steps_px[frame, y, x] * units[frame]
        positions.append(points)
        validities.append(is_valid)
    return positions, validities


def find_shown_frames(mask: LayerPixels) -> Flags:
    """Return the frames (T,) in which a layer has pixels."""
    return np.array([bool(mask[t].any()) for t in range(len(mask))])


def sample_point_pairs(video: Video, mask: LayerPixels) -> PointPairs:
    """Sample pairs of points that lie on a layer at both ends.

    video: on the CPU. mask: (T, H, W), the pixels of the layer. A target frame with an empty mask accepts every point,
    so that a layer is tracked through frames whose mask was missed.
    """
    frames, height, width = video.size
    rng = np.random.default_rng(0)
    has_mask = find_shown_frames(mask)
    inner = (slice(BORDER_PX, -BORDER_PX),) * 2
    rows: list[tuple[int, int, Floats, Floats]] = []
    for t in range(frames - 1):
        if t % RELEASE_EVERY == RELEASE_EVERY - 1:
            video.release_memory()
        y, x = np.nonzero(mask[t][inner] & video.flow_valid[FORWARD, t].numpy()[inner])
        if len(x) == 0:
            continue
        chosen = rng.choice(len(x), min(len(x), CANDIDATES_PER_FRAME), replace=False)
        points = np.stack((x[chosen], y[chosen]), axis=1).astype(float) + BORDER_PX
        positions, validities = track_points(video, t, points, max(DISTANCES))
        for distance in DISTANCES:
            if distance > len(positions):
                break
            end, target = positions[distance - 1], t + distance
            column, row, is_inside = nearest_pixels(end, (height, width))
            is_pair = validities[distance - 1] & is_inside
            if has_mask[target]:
                is_pair &= mask[target][row, column]
            index = np.flatnonzero(is_pair)[:POINTS_PER_PAIR]
            if len(index):
                rows.append((t, target, points[index], end[index]))
    return pad_pairs(rows)


def pad_pairs(
    rows: list[tuple[int, int, Floats, Floats]], weight: float = 1.0, most_points: int = POINTS_PER_PAIR
) -> PointPairs:
    """Pad lists of points of different lengths to arrays.

    rows: source frame, target frame, points (n, 2) and their ends (n, 2). weight: the weight of every point; padding
    has weight 0. most_points: N, to which all are padded.
    """
    pairs = PointPairs(
        source=np.array([row[0] for row in rows], np.int64),
        target=np.array([row[1] for row in rows], np.int64),
        start_px=np.zeros((len(rows), most_points, 2)),
        end_px=np.zeros((len(rows), most_points, 2)),
        weight=np.zeros((len(rows), most_points)),
    )
    for index, (_, _, start, end) in enumerate(rows):
        pairs.start_px[index, : len(start)] = start
        pairs.end_px[index, : len(end)] = end
        pairs.weight[index, : len(start)] = weight
    return pairs
