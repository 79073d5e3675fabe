"""The closed-form start: one transform per frame and layer that lays the frame onto the layer's reference frame.

Neighbours are aligned robustly and chained; then all frames are refined together over pairs at several distances
(bundle adjustment by Gauss-Newton), so that errors do not add up over the clip."""

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.tracks import PointPairs

Floats = NDArray[np.float64]

FEWEST_POINTS = 12  # below it a pair of frames says nothing about a transform
OUTLIER_PX = 2.0  # residuals beyond it hardly count
SHARP_PX = 0.5  # the same where most of a layer's points agree much better
TYPICAL = 2.0  # times their median, residuals count as outliers
ITERATIONS = 12
PRIOR_WEIGHT = 1e-2  # of "as in the neighbouring frame", where nothing else is known, against one point


def motion_generators(kind: str) -> Floats:
    """(G, 3, 3): the directions in which a transform may change; 4 for a similarity, 6 affine, 8 homography."""
    moves = np.zeros((8, 3, 3))
    moves[0, 0, 2] = moves[1, 1, 2] = 1  # shifts
    moves[2, 0, 0] = moves[2, 1, 1] = 1  # scale
    moves[3, 0, 1], moves[3, 1, 0] = -1, 1  # turn
    moves[4, 0, 0], moves[4, 1, 1] = 1, -1  # stretches
    moves[5, 0, 1] = moves[5, 1, 0] = 1
    moves[6, 2, 0] = moves[7, 2, 1] = 1  # perspective
    return moves[: {"similarity": 4, "affine": 6, "homography": 8}[kind]]


def to_homogeneous(points: Floats) -> Floats:
    """(..., 2) -> (..., 3)."""
    return np.concatenate((points, np.ones_like(points[..., :1])), axis=-1)


def transform_points(matrix: Floats, points: Floats) -> Floats:
    """Points (..., 2) through a transform (3, 3), or a stack (P, N, 2) through one each (P, 3, 3)."""
    moved = to_homogeneous(points) @ matrix.swapaxes(-1, -2)
    return moved[..., :2] / moved[..., 2:]


def resize_matrix(before: tuple[int, int], after: tuple[int, int]) -> Floats:
    """(3, 3): where the pixels of a picture (width, height) lie when it is resized; centers are whole numbers."""
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def estimate_transform(start: Floats, end: Floats, kind: str) -> Floats | None:
    """Robust transform (3, 3) that takes points (n, 2) to their ends; None if too few points agree."""
    if len(start) < FEWEST_POINTS:
        return None
    cv2.setRNGSeed(0)
    if kind == "homography":
        matrix, _ = cv2.findHomography(start, end, cv2.RANSAC, OUTLIER_PX)
    else:
        matrix, _ = cv2.estimateAffinePartial2D(start, end, ransacReprojThreshold=OUTLIER_PX)
        matrix = None if matrix is None else np.vstack((matrix, [0, 0, 1]))
    if matrix is None or not np.isfinite(matrix).all() or not 0.25 < np.linalg.det(matrix[:2, :2]) < 4:
        return None
    return matrix


def chain_motion(kind: str) -> str:
    """The kind of a layer's chain: an object's is one of similarities, which noise can't collapse."""
    return "homography" if kind == "homography" else "similarity"


def chain_transforms(pairs: PointPairs, frames: int, reference: int, kind: str) -> Floats:
    """(T, 3, 3) frame -> reference frame, from neighbours; where a pair says nothing, the layer stands still."""
    found = (estimate_transform(*pairs.between(t, t + 1), kind) for t in range(frames - 1))
    steps = [np.eye(3) if step is None else step for step in found]
    result = np.empty((frames, 3, 3))
    result[reference] = np.eye(3)
    for t in reversed(range(reference)):
        result[t] = result[t + 1] @ steps[t]
    for t in range(reference + 1, frames):
        result[t] = result[t - 1] @ np.linalg.inv(steps[t - 1])
    return result


def refine_transforms(
    transforms: Floats,
    pairs: PointPairs,
    reference: int,
    kind: str,
    size: tuple[int, int],
    outlier_px: float = OUTLIER_PX,
) -> Floats:
    """All transforms (T, 3, 3) refined together: where a point of one frame lands in the other, as the pairs say.

    Residuals are measured in the frames' own pixels, which keeps the scale from shrinking, with Cauchy weights: those
    beyond outlier_px hardly count. size: (height, width).
    """
    half = max(size) / 2
    to_unit = np.array([[1 / half, 0, -size[1] / 2 / half], [0, 1 / half, -size[0] / 2 / half], [0, 0, 1]])
    moves, frames = motion_generators(kind), len(transforms)
    current = transforms @ np.linalg.inv(to_unit)  # unit frame coordinates -> reference pixels
    start, end = (transform_points(to_unit, points) for points in (pairs.start_px, pairs.end_px))
    best, cost = current, np.inf
    for _ in range(ITERATIONS):
        steps, now = gauss_newton_step(current, start, end, pairs, moves, reference, outlier_px / half)
        if not now < cost:  # NaN included
            break
        best, gain, cost = current, cost - now, now
        if gain < 1e-4 * cost:
            break
        current = current @ (np.eye(3) + np.einsum("tg,gij->tij", steps.reshape(frames, -1), moves))
        current = current / current[:, 2:, 2:]
    return best @ to_unit


def median_residual_px(transforms: Floats, pairs: PointPairs) -> float:
    """By how much transforms (T, 3, 3) typically miss where a point is in the other frame."""
    between = np.linalg.inv(transforms[pairs.target]) @ transforms[pairs.source]
    away = np.linalg.norm(transform_points(between, pairs.start_px) - pairs.end_px, axis=-1)
    return float(np.median(away[pairs.weight > 0]))


def outlier_limit_px(transforms: Floats, pairs: PointPairs) -> float:
    """From where on residuals of transforms (T, 3, 3) are outliers: those of a rigid layer agree better than others."""
    return max(TYPICAL * median_residual_px(transforms, pairs), SHARP_PX)


def is_sound(transforms: Floats, size: tuple[int, int]) -> bool:
    """Whether transforms (T, 3, 3) are finite, keep every frame in front, and turn none inside out or to a dot."""
    height, width = size
    corners = to_homogeneous(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    depth = corners @ transforms[:, 2].T
    (a, b), (c, d) = transforms[:, :2, :2].transpose(1, 2, 0)
    area = a * d - b * c
    return bool(np.isfinite(transforms).all() and (depth > 0.1).all() and (area > 1e-3).all() and (area < 1e3).all())


def gauss_newton_step(
    current: Floats, start: Floats, end: Floats, pairs: PointPairs, moves: Floats, reference: int, outlier: float
) -> tuple[Floats, float]:
    """One Gauss-Newton step for all frames (T * G,), and the robust cost before it."""
    frames, count = len(current), len(moves)
    between = np.linalg.inv(current[pairs.target]) @ current[pairs.source]  # (P, 3, 3)
    here = to_homogeneous(start)
    there = here @ between.transpose(0, 2, 1)  # (P, N, 3)
    landed = there[..., :2] / there[..., 2:]
    residual = landed - end
    squared = np.square(residual).sum(-1)
    weight = pairs.weight / (1 + squared / outlier**2)
    cost = float((pairs.weight * np.log1p(squared / outlier**2)).sum())

    def projected(direction: Floats) -> Floats:
        """Change of the landing place (P, N, 2, G) for a change (P, N, G, 3) of its homogeneous coordinates."""
        change = direction[..., :2] - landed[:, :, None] * direction[..., 2:]
        return (change / there[:, :, None, 2:]).swapaxes(2, 3)

    moved_here = np.einsum("gij,pnj->pngi", moves, here)
    slopes = np.concatenate(
        (
            projected(np.einsum("pij,pngj->pngi", between, moved_here)),
            -projected(np.einsum("gij,pnj->pngi", moves, there)),
        ),
        axis=-1,
    )  # (P, N, 2, 2 G): the source's parameters, then the target's
    weighted = slopes * weight[..., None, None]
    blocks = np.einsum("pnia,pnib->pab", weighted, slopes, optimize=True)
    right = np.einsum("pnia,pni->pa", weighted, residual, optimize=True)
    normal, target = np.zeros((frames, count, frames, count)), np.zeros((frames, count))
    for pair, (a, b) in enumerate(zip(pairs.source, pairs.target, strict=True)):
        block = blocks[pair].reshape(2, count, 2, count)
        for i, frame in enumerate((a, b)):
            target[frame] -= right[pair].reshape(2, count)[i]
            for j, other in enumerate((a, b)):
                normal[frame, :, other] += block[i, :, j]
    # Where no pair ties a frame down its step follows its neighbours'.
    for t in range(frames - 1):
        for g in range(count):
            normal[t, g, t, g] += PRIOR_WEIGHT
            normal[t + 1, g, t + 1, g] += PRIOR_WEIGHT
            normal[t, g, t + 1, g] -= PRIOR_WEIGHT
            normal[t + 1, g, t, g] -= PRIOR_WEIGHT
    free = np.arange(frames) != reference
    size = count * (frames - 1)
    system = normal[free][:, :, free].reshape(size, size)
    step = np.zeros((frames, count))
    if np.isfinite(system).all() and np.isfinite(target).all():
        step[free] = np.linalg.solve(system, target[free].reshape(-1)).reshape(-1, count)
    return step, cost


def align_frames(pairs: PointPairs, frames: int, reference: int, kind: str, size: tuple[int, int]) -> Floats:
    """(T, 3, 3) frame pixels -> pixels of the reference frame. kind: similarity, affine or homography.

    Refinement gives a chain its full freedom. What is not sound gives way to something simpler: a chain, similarities,
    no motion at all.
    """
    attempts = [(kind, True), (kind, False), ("similarity", True), ("similarity", False)]
    for freedom, refining in attempts if len(pairs.source) else []:
        result = chain_transforms(pairs, frames, reference, chain_motion(freedom))
        if refining:
            with np.errstate(all="ignore"):
                result = (
                    refine_transforms(result, pairs, reference, freedom, size) if is_sound(result, size) else result
                )
        if is_sound(result, size):
            return result
    return np.tile(np.eye(3), (frames, 1, 1))
