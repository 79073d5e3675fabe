"""Fit one transform per frame that moves the frame's pixels to the layer's reference frame.

Neighbouring frames are aligned robustly and the transforms are chained. Then all transforms are refined together on
pairs of frames at several distances, so that errors do not accumulate over the clip (bundle adjustment with
Gauss-Newton steps)."""

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

from alignment.tracks import Flags, Floats, PointPairs

MIN_POINTS = 12  # Fewer points of a pair of frames are not enough to estimate a transform.
OUTLIER_PX = 2.0  # Residuals in pixels above this have little weight.
MIN_OUTLIER_PX = 0.5  # Smallest such limit in pixels, used for layers whose points agree well.
OUTLIER_FACTOR = 2.0  # The limit for outliers as a multiple of the median residual.
PAIRS_AT_ONCE = 1000  # Pairs of frames whose derivatives are held in memory at the same time.
MAX_ITERATIONS = 12  # Most Gauss-Newton steps.
MIN_GAIN = 1e-4  # Refinement stops when a step reduces the cost by less than this share of it.
PRIOR_WEIGHT = 1e-2  # Weight of "a frame changes as its neighbours do"; a point has weight 1.


def motion_generators(kind: str) -> Floats:
    """Return the directions (G, 3, 3) in which a transform may change.

    G is 4 for kind "similarity", 6 for "affine" and 8 for "homography". For kind "rotation", of a camera with focal
    length 1, it is 4: rotations around x, y and z, and zoom.
    """
    if kind == "rotation":
        turns = np.zeros((4, 3, 3))
        for axis, (first, second) in enumerate(((1, 2), (2, 0), (0, 1))):
            turns[axis, second, first], turns[axis, first, second] = 1, -1
        turns[3, 0, 0] = turns[3, 1, 1] = 1
        return turns
    generators = np.zeros((8, 3, 3))
    generators[0, 0, 2] = generators[1, 1, 2] = 1  # translation
    generators[2, 0, 0] = generators[2, 1, 1] = 1  # scale
    generators[3, 0, 1], generators[3, 1, 0] = -1, 1  # rotation
    generators[4, 0, 0], generators[4, 1, 1] = 1, -1  # stretch along the axes
    generators[5, 0, 1] = generators[5, 1, 0] = 1  # stretch along the diagonals
    generators[6, 2, 0] = generators[7, 2, 1] = 1  # perspective
    return generators[: {"similarity": 4, "affine": 6, "homography": 8}[kind]]


def to_homogeneous(points: Floats) -> Floats:
    """Return the homogeneous coordinates (..., 3) of points (..., 2)."""
    return np.concatenate((points, np.ones_like(points[..., :1])), axis=-1)


def transform_points(matrix: Floats, points: Floats) -> Floats:
    """Transform points (..., 2) by one matrix (3, 3), or stacks of points (P, N, 2) by one matrix each, (P, 3, 3)."""
    moved = to_homogeneous(points) @ matrix.swapaxes(-1, -2)
    return moved[..., :2] / moved[..., 2:]


def resize_matrix(before: tuple[int, int], after: tuple[int, int]) -> Floats:
    """Return the transform (3, 3) of pixel positions when an image is resized; both sizes are (width, height).

    The centres of pixels have integer coordinates.
    """
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def to_unit_matrix(size: tuple[int, int]) -> Floats:
    """Return the transform (3, 3) from pixels of frames of (height, width) to units of half the long edge, centered."""
    half = max(size) / 2
    return np.array([[1 / half, 0, -size[1] / 2 / half], [0, 1 / half, -size[0] / 2 / half], [0, 0, 1]])


def estimate_transform(start: Floats, end: Floats, kind: str) -> Floats | None:
    """Estimate the transform (3, 3) from points (n, 2) to their ends (n, 2) with RANSAC.

    kind is "homography" or "similarity". Return None if there are too few points, or if the result is not plausible
    for neighbouring frames.
    """
    if len(start) < MIN_POINTS:
        return None
    cv2.setRNGSeed(0)
    if kind == "homography":
        matrix, _ = cv2.findHomography(start, end, cv2.RANSAC, OUTLIER_PX)
    else:
        matrix, _ = cv2.estimateAffinePartial2D(start, end, ransacReprojThreshold=OUTLIER_PX)
        matrix = None if matrix is None else np.vstack((matrix, [0, 0, 1]))
    if matrix is None or not np.isfinite(matrix).all() or not 0.25 < np.linalg.det(matrix[:2, :2]) < 4:
        return None
    return np.asarray(matrix, float)


def chain_kind(kind: str) -> str:
    """Return the kind of transforms that are chained for a layer whose final transforms are of `kind`.

    Objects are chained with similarities, which cannot collapse when the points are noisy.
    """
    return "homography" if kind == "homography" else "similarity"


def chain_transforms(pairs: PointPairs, frames: int, reference: int, kind: str) -> Floats:
    """Estimate transforms between neighbouring frames and chain them.

    Returns transforms (T, 3, 3) from each frame to the reference frame. Between frames for which no transform can be
    estimated, the layer does not move.
    """
    estimates = (estimate_transform(*pairs.points_between(t, t + 1), kind) for t in range(frames - 1))
    steps = [np.eye(3) if step is None else step for step in estimates]
    transforms = np.empty((frames, 3, 3))
    transforms[reference] = np.eye(3)
    for t in reversed(range(reference)):
        transforms[t] = transforms[t + 1] @ steps[t]
    for t in range(reference + 1, frames):
        transforms[t] = transforms[t - 1] @ np.linalg.inv(steps[t - 1])
    return transforms


def refine_transforms(
    transforms: Floats,
    pairs: PointPairs,
    reference: int,
    kind: str,
    size: tuple[int, int],
    outlier_px: float = OUTLIER_PX,
) -> Floats:
    """Refine all transforms (T, 3, 3) together, so that points move between frames as in the pairs.

    The residuals are measured in pixels of the target frames, because in pixels of the reference frame the scale could
    shrink. They have Cauchy weights: residuals above outlier_px have little weight. size: (height, width).
    """
    half, to_unit = max(size) / 2, to_unit_matrix(size)
    generators, frames = motion_generators(kind), len(transforms)
    current = transforms @ np.linalg.inv(to_unit)  # unit frame coordinates -> reference pixels
    start, end = (transform_points(to_unit, points) for points in (pairs.start_px, pairs.end_px))
    best, best_cost = current, np.inf
    for _ in range(MAX_ITERATIONS):
        steps, cost = gauss_newton_step(current, start, end, pairs, generators, reference, outlier_px / half)
        if not cost < best_cost:  # also true for NaN
            break
        best, gain, best_cost = current, best_cost - cost, cost
        if gain < MIN_GAIN * cost:
            break
        current = current @ (np.eye(3) + np.einsum("tg,gij->tij", steps.reshape(frames, -1), generators))
        current = current / current[:, 2:, 2:]
    return best @ to_unit


def median_residual_px(transforms: Floats, pairs: PointPairs) -> float:
    """Return the median distance in pixels between points moved by transforms (T, 3, 3) and their true ends."""
    source_to_target = np.linalg.inv(transforms[pairs.target]) @ transforms[pairs.source]
    distances = np.linalg.norm(transform_points(source_to_target, pairs.start_px) - pairs.end_px, axis=-1)
    return float(np.median(distances[pairs.weight > 0]))


def outlier_limit_px(transforms: Floats, pairs: PointPairs) -> float:
    """Return the residual in pixels above which a point counts as an outlier of transforms (T, 3, 3).

    It is a multiple of the median residual, because points of a rigid layer agree better than others.
    """
    return max(OUTLIER_FACTOR * median_residual_px(transforms, pairs), MIN_OUTLIER_PX)


def are_plausible(transforms: Floats, size: tuple[int, int]) -> bool:
    """Return whether transforms (T, 3, 3) of frames of size (height, width) can be the motion of a layer.

    They must be finite, keep the whole frame in front of the camera, and neither mirror it nor collapse it.
    """
    height, width = size
    corners = to_homogeneous(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    depth = corners @ transforms[:, 2].T
    (a, b), (c, d) = transforms[:, :2, :2].transpose(1, 2, 0)
    area = a * d - b * c
    return bool(np.isfinite(transforms).all() and (depth > 0.1).all() and (area > 1e-3).all() and (area < 1e3).all())


def gauss_newton_step(
    current: Floats, start: Floats, end: Floats, pairs: PointPairs, generators: Floats, reference: int, outlier: float
) -> tuple[Floats, float]:
    """Compute one Gauss-Newton step for all frames.

    Returns the step (T, G), coefficients of the generators (G, 3, 3), and the robust cost before it.

    current: transforms (T, 3, 3) from unit coordinates to the reference frame. start, end: points (P, N, 2) in unit
    coordinates. outlier: the residual in unit coordinates above which a point has little weight.
    """
    cost, blocks, gradients = 0.0, [], []
    for first in range(0, len(pairs.source), PAIRS_AT_ONCE):
        part = slice(first, first + PAIRS_AT_ONCE)
        source_to_target = np.linalg.inv(current[pairs.target[part]]) @ current[pairs.source[part]]
        part_cost, part_blocks, part_gradients = normal_equations(
            source_to_target, start[part], end[part], pairs.weight[part], generators, outlier
        )
        cost += part_cost
        blocks.append(part_blocks)
        gradients.append(part_gradients)
    is_free = np.arange(len(current)) != reference
    return solve_step(np.concatenate(blocks), np.concatenate(gradients), pairs, is_free), cost


def normal_equations(
    source_to_target: Floats, start: Floats, end: Floats, weights: Floats, generators: Floats, outlier: float
) -> tuple[float, Floats, Floats]:
    """Return the robust cost of P pairs of frames, and their parts of the normal equations.

    These are the blocks (P, 2 G, 2 G) and gradients (P, 2 G) by the parameters of the source frame and then those of
    the target frame. source_to_target: (P, 3, 3). weights: (P, N). The rest: see `gauss_newton_step`.
    """
    source_points = to_homogeneous(start)
    target_points = source_points @ source_to_target.transpose(0, 2, 1)  # (P, N, 3)
    projection = target_points[..., :2] / target_points[..., 2:]
    residual = projection - end
    squared = np.square(residual).sum(-1)
    weight = weights / (1 + squared / outlier**2)
    cost = float((weights * np.log1p(squared / outlier**2)).sum())

    def project(points: Floats, matrices: Floats) -> Floats:
        """Return how the projection of points (P, N, 3) changes, (P, N, 2, G), along matrices (P or 1, G, 3, 3)."""
        change = points @ matrices.transpose(0, 3, 2, 1).reshape(len(matrices), 3, -1)
        x, y, z = np.split(change, 3, axis=-1)
        moved = (part - projection[..., axis, None] * z for axis, part in enumerate((x, y)))
        return np.stack(list(moved), axis=2) / target_points[..., 2:, None]

    slopes = np.concatenate(
        (
            project(source_points, source_to_target[:, None] @ generators),
            -project(target_points, generators[None]),
        ),
        axis=-1,
    )  # (P, N, 2, 2 G): the parameters of the source frame, then those of the target frame
    rows = slopes.reshape(len(slopes), -1, slopes.shape[-1])
    weighted = (slopes * weight[..., None, None]).reshape(rows.shape).swapaxes(1, 2)
    return cost, weighted @ rows, (weighted @ residual.reshape(len(rows), -1, 1))[..., 0]


def solve_step(blocks: Floats, gradients: Floats, pairs: PointPairs, is_free: Flags) -> Floats:
    """Add up the normal equations of all pairs and solve them for a step (T, G); it is 0 if they are not finite.

    blocks: (P, 2 G, 2 G) and gradients: (P, 2 G), of the source and the target frame of each pair. is_free: (T,),
    False for frames that must not change.
    """
    frames, count = len(is_free), blocks.shape[1] // 2
    step = np.zeros((frames, count))
    if not (np.isfinite(blocks).all() and np.isfinite(gradients).all()):
        return step
    ends = np.stack((pairs.source, pairs.target), axis=1)
    right_side = np.zeros((frames, count))
    np.add.at(right_side, ends, -gradients.reshape(-1, 2, count))
    numbers = (ends[:, :, None] * count + np.arange(count)).reshape(len(ends), -1)  # of the parameters of each pair
    rows, columns = (np.broadcast_to(axis, blocks.shape).ravel() for axis in (numbers[:, :, None], numbers[:, None]))
    pair_part = sparse.coo_array((blocks.ravel(), (rows, columns)), shape=(frames * count,) * 2)
    # Frames that no pair determines change as their neighbours do.
    change = sparse.diags_array([-np.ones(frames - 1), np.ones(frames - 1)], offsets=[0, 1], shape=(frames - 1, frames))
    prior = sparse.kron(PRIOR_WEIGHT * (change.T @ change), sparse.diags_array(np.ones(count)))
    is_unknown = np.repeat(is_free, count)
    system = sparse.csc_array(pair_part + prior)[is_unknown][:, is_unknown]
    step[is_free] = spsolve(system, right_side[is_free].ravel(), permc_spec="MMD_AT_PLUS_A").reshape(-1, count)
    return step


def align_frames(pairs: PointPairs, frames: int, reference: int, kind: str, size: tuple[int, int]) -> Floats:
    """Fit transforms (T, 3, 3) from pixels of each frame to pixels of the reference frame.

    kind: "similarity", "affine" or "homography". size: (height, width). If the refined transforms are not plausible,
    simpler ones are used: the chained transforms, then similarities, and at last no motion at all.
    """
    attempts = [(kind, True), (kind, False), ("similarity", True), ("similarity", False)]
    for attempt_kind, is_refined in attempts if len(pairs.source) else []:
        transforms = chain_transforms(pairs, frames, reference, chain_kind(attempt_kind))
        if is_refined and are_plausible(transforms, size):
            with np.errstate(all="ignore"):
                transforms = refine_transforms(transforms, pairs, reference, attempt_kind, size)
        if are_plausible(transforms, size):
            return transforms
    return np.tile(np.eye(3), (frames, 1, 1))
