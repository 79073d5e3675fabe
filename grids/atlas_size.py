"""How large the atlas of an object must be. One that has become too small grows; every texel keeps its place."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from alignment.transforms import transform_points
from grids.fields import Lattice
from grids.model import GridModel

Floats = NDArray[np.floating]

ATLAS_BORDER_TEXELS = 4  # Texels that an atlas gets beyond an object that has become larger than it.
EXTENT_SAMPLES = 192  # Pixels along the frame's long edge by which the extent of an object is found.
EXTENT_QUANTILES = (0.0005, 0.9995)  # Of their places: specks and single pixels that fly away enlarge no atlas.


def surface_extent(transforms: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the smallest and the largest place (x, y), (2, 2), of an object's pixels (T, H, W) on its surface.

    transforms (T, 3, 3): from pixels to the surface. Without pixels: two corners of a unit square.
    """
    rows, columns = sample_pixels(sample_lattice(inside.shape[1:]))
    points = np.stack(np.meshgrid(columns, rows), axis=-1).astype(float)
    found = [
        transform_points(matrix, points[mask[np.ix_(rows, columns)]])
        for matrix, mask in zip(transforms, inside, strict=True)
    ]
    return usual_extent(np.concatenate(found), np.array([[0.0, 0.0], [1.0, 1.0]]))


@torch.no_grad()
def texel_extent(model: GridModel, layer: int, inside: NDArray[np.bool_]) -> Floats:
    """Return the smallest and the largest texel (x, y), (2, 2), to which a layer's pixels (T, H, W) are mapped.

    Without pixels both are 0.
    """
    lattice = sample_lattice(inside.shape[1:])
    rows, columns = sample_pixels(lattice)
    found = [
        model.at_frames(t).texels(layer, lattice)[0].permute(1, 2, 0).cpu().numpy()[mask[np.ix_(rows, columns)]]
        for t, mask in enumerate(inside)
    ]
    return usual_extent(np.concatenate(found), np.zeros((2, 2)))


def sample_lattice(size: tuple[int, ...]) -> Lattice:
    """Return the pixels of frames of (height, width) by which the extent of an object is found."""
    return Lattice.of_stride(max(1, round(max(size) / EXTENT_SAMPLES)), (size[0], size[1]))


def sample_pixels(lattice: Lattice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns of the pixels of a lattice."""
    return lattice.rows_px.long().numpy(), lattice.columns_px.long().numpy()


def usual_extent(places: Floats, if_empty: Floats) -> Floats:
    """Return the smallest and the largest (x, y), (2, 2), of all but a few of n places (n, 2)."""
    return np.quantile(places, EXTENT_QUANTILES, axis=0) if len(places) else if_empty


def enlarge_atlas(model: GridModel, layer: int, corners: Floats) -> None:
    """Add texels on the sides of a layer's atlas until it holds positions (n, 2), in texels.

    On each side it grows by at most its own size, so that wrong positions do not use up the memory.
    """
    height, width = model.shape.atlas_sizes[layer]
    most = np.array([width, height])
    low = np.ceil(np.clip(-corners.min(0) + ATLAS_BORDER_TEXELS, 0, most)).astype(int)
    high = np.ceil(np.clip(corners.max(0) + ATLAS_BORDER_TEXELS - [width, height], 0, most)).astype(int)
    left, top, right, bottom = (int(side) if side > ATLAS_BORDER_TEXELS else 0 for side in (*low, *high))
    if not any((left, top, right, bottom)):
        return
    atlas = model.atlases[layer].data
    reduction = height / atlas.shape[2]
    padding = [round(side / reduction) for side in (left, right, top, bottom)]
    left, right, top, bottom = (round(side * reduction) for side in padding)
    model.atlases[layer] = torch.nn.Parameter(functional.pad(atlas, padding, mode="replicate"))
    shift = torch.eye(3).to(model.transforms)
    shift[0, 2], shift[1, 2] = left, top
    model.transforms[layer] = shift @ model.transforms[layer]
    sizes, parts = list(model.shape.atlas_sizes), [model.shape.first_part(index) for index in range(len(model.layers))]
    sizes[layer] = (height + top + bottom, width + left + right)
    first_left, first_top, *first_size = parts[layer]
    parts[layer] = (first_left + left, first_top + top, *first_size)
    model.shape = replace(model.shape, atlas_sizes=tuple(sizes), first_parts=tuple(parts))
