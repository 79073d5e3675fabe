"""The inverse of a frame's mapping, of either representation: where each texel of an atlas image lies in the frame."""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from grids.unwrap import fill_unknown
from rendering.frames import Floats

NEWTON_STEPS = 4
FOUND_TEXELS = 0.5  # a texel counts as found where the mapping comes this near
COARSER = 3.0  # steps between pixels, in texels, that a cell of the first guess spans
FOUND_PX = 0.5  # a uv counts as found where the mapping comes this near
FEW_POINTS = 32  # wanted at once
OUTSIDE_PX = 1.0  # positions may leave the frame by this before they count as outside


def invert_uv_field(texels: Floats, size: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Positions (h, w, 2) in the frame of the texels of an image of `size` (width, height), and which were found.

    texels (H, W, 2): where each pixel of the frame lies in the image. The first guess is splatted on a coarse lattice,
    holes are filled, and Newton's method does the rest.
    """
    height, width = texels.shape[:2]
    inverse = invert_matrices(slopes_of(texels))
    positions = guess_inverse(texels, size)
    wanted = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1).astype(np.float32)
    limits = np.float32([width - 1 + OUTSIDE_PX, height - 1 + OUTSIDE_PX])
    for _ in range(NEWTON_STEPS):
        missed = sample_bilinear(texels, positions) - wanted
        step = sample_bilinear(inverse, positions)
        positions[..., 0] -= (step[..., :2] * missed).sum(-1)
        positions[..., 1] -= (step[..., 2:] * missed).sum(-1)
        np.clip(positions, -OUTSIDE_PX, limits, out=positions)
    near = np.abs(sample_bilinear(texels, positions) - wanted).max(-1) < FOUND_TEXELS
    inside = ((positions >= -0.5) & (positions <= limits - OUTSIDE_PX + 0.5)).all(-1)
    return positions, near & inside


def locate_uv(
    wanted: Floats, uv: Floats, largest_step_px: float = math.inf
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Positions (N, 2) (x, y) in a frame whose pixels have the given uv (H, W, 2) at which uv is as wanted (N, 2).

    Newton's method from the pixel of the nearest uv; beyond the frame the mapping is continued by its slope at the
    border. largest_step_px: how far from that pixel a position may lie along each axis. Also returns where such a
    position was found inside the frame (N,).
    """
    height, width = uv.shape[:2]
    nearest = nearest_pixels(wanted, uv)
    inverse, limits = invert_matrices(slopes_of(uv)), np.array([width - 1, height - 1])
    positions = nearest
    for _ in range(NEWTON_STEPS + 1):
        inside = positions.clip(0, limits)
        step = newton_step(uv, inverse, inside, wanted)
        positions = nearest + (inside - step - nearest).clip(-largest_step_px, largest_step_px)
    inside = positions.clip(0, limits)
    step = newton_step(uv, inverse, inside, wanted)
    found = np.maximum(np.abs(positions - inside), np.abs(step)).max(-1) < FOUND_PX
    return positions, found


def nearest_pixels(wanted: Floats, uv: Floats) -> NDArray[np.floating]:
    """The pixel (x, y) whose uv (H, W, 2) is nearest to each wanted one (N, 2): (N, 2)."""
    if len(wanted) < FEW_POINTS:  # building a tree takes longer than looking at every pixel
        nearest = np.array([np.square(uv - each).sum(-1).argmin() for each in wanted])
    else:
        nearest = cKDTree(uv.reshape(-1, 2)).query(wanted)[1]
    y, x = np.divmod(nearest, uv.shape[1])
    return np.stack((x, y), axis=1).astype(float)


def newton_step(uv: Floats, inverse: Floats, positions: Floats, wanted: Floats) -> NDArray[np.floating]:
    """How far positions (N, 2) lie beyond the wanted uv (N, 2), to first order, in pixels (N, 2)."""
    missed = sample_at_points(uv, positions) - wanted
    return np.einsum("nij,nj->ni", sample_at_points(inverse, positions).reshape(-1, 2, 2), missed)


def sample_at_points(field: Floats, positions: Floats) -> NDArray[np.floating]:
    """(N, C): a field (H, W, C) at positions (N, 2), bilinear, exactly: OpenCV rounds positions to 1/32 pixel."""
    x, y = positions.T
    return np.stack(
        [map_coordinates(channel, (y, x), order=1, mode="nearest") for channel in np.moveaxis(field, -1, 0)], 1
    )


def slopes_of(field: Floats) -> Floats:
    """(H, W, 2, 2): derivative of a field (H, W, 2) along x and y, the last axis, by central differences."""
    return np.stack([np.gradient(field, axis=1), np.gradient(field, axis=0)], axis=-1)


def sample_bilinear(field: Floats, positions: Floats) -> Floats:
    """A field (H, W, C) at positions (h, w, 2), linear; beyond the border as on it."""
    return cv2.remap(field, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def invert_matrices(slopes: Floats) -> Floats:
    """(H, W, 4): the inverses, row by row, of matrices (H, W, 2, 2); damped where they are close to singular."""
    a, b, c, d = (slopes[..., i, j] for i in (0, 1) for j in (0, 1))
    determinant = a * d - b * c
    floor = 1e-3 * float(np.median(np.abs(determinant))) + 1e-12
    safe = np.where(np.abs(determinant) < floor, np.copysign(floor, determinant), determinant)
    return np.stack([d / safe, -b / safe, -c / safe, a / safe], axis=-1).astype(np.float32)


def guess_inverse(texels: Floats, size: tuple[int, int]) -> Floats:
    """Positions (h, w, 2): the mean position of the pixels that land in a cell, smooth between cells."""
    height, width = texels.shape[:2]
    steps = np.concatenate([np.linalg.norm(np.diff(texels, axis=axis), axis=-1).ravel() for axis in (0, 1)])
    cell = max(1.0, COARSER * float(np.median(steps)))
    coarse = tuple(max(2, int(np.ceil(side / cell))) for side in size)
    index = np.floor((texels + 0.5) / cell).astype(np.int64)
    inside = ((index >= 0) & (index < coarse)).all(-1)
    flat = (index[..., 1] * coarse[0] + index[..., 0])[inside]
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)[inside].astype(np.float32)
    count = np.bincount(flat, minlength=coarse[0] * coarse[1]).astype(np.float32)
    sums = [np.bincount(flat, pixels[:, axis], minlength=len(count)).astype(np.float32) for axis in (0, 1)]
    mean = torch.from_numpy(np.stack(sums) / np.maximum(count, 1)).view(1, 2, coarse[1], coarse[0])
    known = torch.from_numpy((count > 0).astype(np.float32)).view(1, 1, coarse[1], coarse[0])
    guess = fill_unknown(mean, known)[0].permute(1, 2, 0).contiguous().numpy()
    centers = [(np.arange(side, dtype=np.float32) + 0.5) / cell - 0.5 for side in size]
    return sample_bilinear(guess, np.stack(np.meshgrid(*centers), axis=-1))
