"""Pairs of points that the flow connects, over several distances in time: what an alignment is fitted to."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from media.flows import FORWARD
from unwrap_utils import Video

Floats = NDArray[np.float64]

DISTANCES = (1, 2, 4, 8, 16)  # frames between the two ends of a pair
POINTS_PER_PAIR = 80
CANDIDATES_PER_FRAME = 600
BORDER_PX = 2  # flow is unreliable there


@dataclass
class PointPairs:
    """Points of one layer in pairs of frames: P pairs of N points, those beyond a pair's own count 0."""

    source: NDArray[np.int64]  # (P,) frame numbers
    target: NDArray[np.int64]  # (P,)
    start_px: Floats  # (P, N, 2) (x, y) in the source frame
    end_px: Floats  # (P, N, 2) where they are in the target frame
    weight: Floats  # (P, N) how much a point counts

    def __add__(self, other: "PointPairs") -> "PointPairs":
        both = (np.concatenate((getattr(self, field.name), getattr(other, field.name))) for field in fields(PointPairs))
        return PointPairs(*both)

    def between(self, source: int, target: int) -> tuple[Floats, Floats]:
        """The points (n, 2) of one pair of frames and their ends (n, 2); none if the pair is not there."""
        found = np.flatnonzero((self.source == source) & (self.target == target))
        if len(found) == 0:
            return np.zeros((0, 2)), np.zeros((0, 2))
        here = self.weight[found[0]] > 0
        return self.start_px[found[0]][here], self.end_px[found[0]][here]


def follow_flow(video: Video, t: int, points: Floats, steps: int) -> tuple[list[Floats], list[NDArray[np.bool_]]]:
    """Carry points (n, 2) of frame t along the forward flow: positions and validity after 1, 2, ... `steps` frames."""
    frames, height, width = video.size
    steps_px, steps_valid = video.flow_steps[FORWARD].numpy(), video.flow_valid[FORWARD].numpy()
    units = video.flow_unit_px[FORWARD].numpy()
    positions, alive = [], np.ones(len(points), bool)
    valid = []
    for now in range(t, min(t + steps, frames - 1)):
        x, y = np.rint(points).astype(int).T
        alive = alive & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
        alive = alive & steps_valid[now, y, x]
        points = points + steps_px[now, y, x] * units[now]
        positions.append(points)
        valid.append(alive)
    return positions, valid


def sample_point_pairs(video: Video, member: NDArray[np.bool_]) -> PointPairs:
    """Pairs of points that belong to a layer at both ends; video on the CPU, member (T, H, W).

    A frame without any member pixel (a missed mask) accepts every end, so that a layer is followed through it.
    """
    frames, height, width = video.size
    rng = np.random.default_rng(0)
    is_known = member.any((1, 2))
    rows: list[tuple[int, int, Floats, Floats]] = []
    for t in range(frames - 1):
        inner = member[t, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
        y, x = np.nonzero(inner & video.flow_valid[FORWARD, t, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX].numpy())
        if len(x) == 0:
            continue
        chosen = rng.choice(len(x), min(len(x), CANDIDATES_PER_FRAME), replace=False)
        points = np.stack((x[chosen], y[chosen]), axis=1).astype(float) + BORDER_PX
        positions, valid = follow_flow(video, t, points, max(DISTANCES))
        for distance in DISTANCES:
            if distance > len(positions):
                break
            end, other = positions[distance - 1], t + distance
            column, row = np.rint(end).astype(int).T
            kept = valid[distance - 1] & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            if is_known[other]:
                kept &= member[other, row.clip(0, height - 1), column.clip(0, width - 1)]
            index = np.flatnonzero(kept)[:POINTS_PER_PAIR]
            if len(index):
                rows.append((t, other, points[index], end[index]))
    return pad_pairs(rows)


def pad_pairs(rows: list[tuple[int, int, Floats, Floats]], weight: float = 1.0) -> PointPairs:
    """Lists of points of different length as arrays: all count `weight`, what fills up counts 0."""
    pairs = PointPairs(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        *(np.zeros((len(rows), POINTS_PER_PAIR, 2)) for _ in range(2)),
        np.zeros((len(rows), POINTS_PER_PAIR)),
    )
    for index, (_, _, start, end) in enumerate(rows):
        pairs.start_px[index, : len(start)] = start
        pairs.end_px[index, : len(end)] = end
        pairs.weight[index, : len(start)] = weight
    return pairs
