"""The inverse of a frame's mapping, of either representation: where each texel of an atlas image lies in the frame."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from grids.unwrap import fill_unknown
from rendering.frames import Floats

NEWTON_STEPS = 4
FOUND_TEXELS = 0.5  # a texel counts as found where the mapping comes this near
COARSER = 3.0  # steps between pixels, in texels, that a cell of the first guess spans
OUTSIDE_PX = 1.0  # positions may leave the frame by this before they count as outside


def invert_uv_field(texels: Floats, size: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Positions (h, w, 2) in the frame of the texels of an image of `size` (width, height), and which were found.

    texels (H, W, 2): where each pixel of the frame lies in the image. The first guess is splatted on a coarse lattice,
    holes are filled, and Newton's method does the rest.
    """
    height, width = texels.shape[:2]
    slopes = np.stack([np.gradient(texels, axis=1), np.gradient(texels, axis=0)], axis=-1)  # [..., uv, xy]
    inverse = invert_matrices(slopes)
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
