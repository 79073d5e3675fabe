"""Inversion of a frame's mapping: find the position in the frame of given uv, or of all texels of an atlas image.

It works on the rendered uv of a frame, so it serves both representations. Positions are in pixels, (x, y).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from grids.unwrap import fill_unknown
from rendering.frames import Floats
from rendering.resampling import sample_field, sample_field_exactly

NEWTON_STEPS = 4
TEXEL_TOLERANCE = 0.5  # Largest error of an inverted texel, in texels.
POSITION_TOLERANCE_PX = 0.5  # Largest error of a located position, in pixels of the frame.
STEPS_PER_CELL = 3.0  # Side of a cell of the first guess, in median steps between neighbouring pixels of the frame.
FEW_POINTS = 32  # For fewer points, comparing with every pixel is faster than building a search tree.
OUTSIDE_PX = 1.0  # Pixels by which Newton's method may leave the frame.


def invert_uv_field(texels: Floats, size: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Find the position in the frame of every texel of an atlas image.

    texels (H, W, 2): position of each pixel of the frame in the image, in texels. size: (width, height) of the image.
    Returns the positions (height, width, 2), and whether each texel lies in the frame and was found (height, width).
    The first guess is averaged on a coarse lattice, whose holes are filled; Newton's method refines it.
    """
    height, width = texels.shape[:2]
    inverse = invert_matrices(field_jacobian(texels))
    positions = guess_inverse(texels, size)
    targets = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1).astype(np.float32)
    limits = np.array([width - 1 + OUTSIDE_PX, height - 1 + OUTSIDE_PX], np.float32)
    for _ in range(NEWTON_STEPS):
        error = sample_field(texels, positions) - targets
        rows = sample_field(inverse, positions)
        positions[..., 0] -= rows[..., 0] * error[..., 0] + rows[..., 1] * error[..., 1]
        positions[..., 1] -= rows[..., 2] * error[..., 0] + rows[..., 3] * error[..., 1]
        np.clip(positions, -OUTSIDE_PX, limits, out=positions)
    # NumPy is slow along an axis of two values, so the two coordinates are compared one after the other.
    is_exact = np.abs(sample_field(texels, positions) - targets) < TEXEL_TOLERANCE
    is_inside = (positions >= -0.5) & (positions <= limits - OUTSIDE_PX + 0.5)
    is_found = is_exact & is_inside
    return positions, is_found[..., 0] & is_found[..., 1]


def locate_uv(targets: Floats, uv: Floats, largest_step_px: float = math.inf) -> tuple[Floats, NDArray[np.bool_]]:
    """Find the positions in a frame at which its uv (H, W, 2) equals the target uv (N, 2).

    Returns the positions (N, 2), and whether each one was found inside the frame (N,). Newton's method starts at the
    pixel of the nearest uv; beyond the frame the mapping is extrapolated linearly. largest_step_px: largest distance of
    a position from that pixel along each axis.
    """
    height, width = uv.shape[:2]
    nearest = nearest_pixels(targets, uv)
    inverse, limits = invert_matrices(field_jacobian(uv)), np.array([width - 1, height - 1])
    positions = nearest
    for _ in range(NEWTON_STEPS + 1):
        clamped = positions.clip(0, limits)
        step = newton_step(uv, inverse, clamped, targets)
        positions = nearest + (clamped - step - nearest).clip(-largest_step_px, largest_step_px)
    clamped = positions.clip(0, limits)
    step = newton_step(uv, inverse, clamped, targets)
    is_found = np.maximum(np.abs(positions - clamped), np.abs(step)).max(-1) < POSITION_TOLERANCE_PX
    return positions, is_found


def nearest_pixels(targets: Floats, uv: Floats) -> Floats:
    """Return the pixel (x, y) whose uv (H, W, 2) is nearest to each target uv (N, 2): (N, 2)."""
    if len(targets) < FEW_POINTS:
        indices = np.array([np.square(uv - target).sum(-1).argmin() for target in targets])
    else:
        indices = cKDTree(uv.reshape(-1, 2)).query(targets)[1]
    y, x = np.divmod(indices, uv.shape[1])
    return np.stack((x, y), axis=1).astype(float)


def newton_step(uv: Floats, inverse: Floats, positions: Floats, targets: Floats) -> Floats:
    """Return how far positions (N, 2) lie from those of the target uv (N, 2), to first order, in pixels (N, 2).

    inverse (H, W, 4): inverses of the derivatives of uv, as `invert_matrices` returns them.
    """
    error = sample_field_exactly(uv, positions) - targets
    return np.einsum("nij,nj->ni", sample_field_exactly(inverse, positions).reshape(-1, 2, 2), error)


def field_jacobian(field: Floats) -> Floats:
    """Return the derivatives of a field (H, W, 2) along x and y by central differences: (H, W, 2, 2).

    The last axis is the direction of the derivative, x or y.
    """
    return np.stack([np.gradient(field, axis=1), np.gradient(field, axis=0)], axis=-1)


def invert_matrices(matrices: Floats) -> Floats:
    """Invert matrices (H, W, 2, 2); the inverses are returned row by row, (H, W, 4).

    A determinant close to 0 is replaced by a small one of the same sign.
    """
    a, b, c, d = (matrices[..., i, j] for i in (0, 1) for j in (0, 1))
    determinant = a * d - b * c
    floor = 1e-3 * float(np.median(np.abs(determinant))) + 1e-12
    safe = np.where(np.abs(determinant) < floor, np.copysign(floor, determinant), determinant)
    return np.stack([d / safe, -b / safe, -c / safe, a / safe], axis=-1).astype(np.float32)


def guess_inverse(texels: Floats, size: tuple[int, int]) -> Floats:
    """Return a first guess of the position in the frame of every texel: (height, width, 2).

    The image of `size` (width, height) is divided into coarse cells. A cell takes the mean position of the pixels of
    the frame that land in it; the guess is interpolated between the cells.
    """
    height, width = texels.shape[:2]
    steps = np.concatenate([np.linalg.norm(np.diff(texels, axis=axis), axis=-1).ravel() for axis in (0, 1)])
    cell = max(1.0, STEPS_PER_CELL * float(np.median(steps)))
    columns, rows = (max(2, int(np.ceil(side / cell))) for side in size)
    index = np.floor((texels + 0.5) / cell).astype(np.int64)
    is_inside = (index[..., 0] >= 0) & (index[..., 0] < columns) & (index[..., 1] >= 0) & (index[..., 1] < rows)
    flat_index = (index[..., 1] * columns + index[..., 0])[is_inside]
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)[is_inside].astype(np.float32)
    count = np.bincount(flat_index, minlength=columns * rows).astype(np.float32)
    sums = [np.bincount(flat_index, pixels[:, axis], minlength=len(count)).astype(np.float32) for axis in (0, 1)]
    mean = torch.from_numpy(np.stack(sums) / np.maximum(count, 1)).view(1, 2, rows, columns)
    known = torch.from_numpy((count > 0).astype(np.float32)).view(1, 1, rows, columns)
    guess = fill_unknown(mean, known)[0].permute(1, 2, 0).contiguous().numpy()
    centers = [(np.arange(side, dtype=np.float32) + 0.5) / cell - 0.5 for side in size]
    return sample_field(guess, np.stack(np.meshgrid(*centers), axis=-1))
