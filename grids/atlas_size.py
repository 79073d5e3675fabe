"""How large the atlas of an object must be. One that has become too small grows; every texel keeps its place."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from alignment.transforms import transform_points
from grids.model import GridModel

Floats = NDArray[np.floating]

ATLAS_BORDER_TEXELS = 4  # Texels that an atlas gets beyond an object that has become larger than it.
# Share of an object's pixels, over all frames, that may lie beyond its extent on each side: so specks enlarge no atlas.
SPECK_SHARE = 0.0001
MOST_EXTENT_PIXELS = 200_000  # Most pixels of a clip by which the extent is found; of more, every n-th is taken.


def surface_extent(transforms: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the smallest and the largest place (x, y), (2, 2), of an object's pixels (T, H, W) on its surface.

    transforms (T, 3, 3): from pixels to the surface. Without pixels: two corners of a unit square.
    """
    pixels = list_pixels(inside, MOST_EXTENT_PIXELS)
    places = [transform_points(matrix, points) for matrix, points in zip(transforms, pixels, strict=True)]
    return quantile_extent(np.concatenate(places), SPECK_SHARE, np.array([[0.0, 0.0], [1.0, 1.0]]))


@torch.no_grad()
def texel_extent(model: GridModel, layer: int, inside: NDArray[np.bool_], speck_share: float = SPECK_SHARE) -> Floats:
    """Return the smallest and the largest texel (x, y), (2, 2), to which a layer's pixels (T, H, W) are mapped.

    speck_share: share of the pixels that may lie beyond on each side; with 0 every pixel counts, so that none is left
    out. Without pixels both texels are 0.
    """
    texels, first = [], torch.zeros(1, dtype=torch.long, device=model.transforms.device)
    for t, points in enumerate(list_pixels(inside, MOST_EXTENT_PIXELS if speck_share else inside.size)):
        points_px = torch.from_numpy(points.T.copy()).to(model.transforms)[None]
        texels.append(model.at_frames(t).map_points(layer, first, points_px)[0].T.cpu().numpy())
    return quantile_extent(np.concatenate(texels), speck_share, np.zeros((2, 2)))


def list_pixels(inside: NDArray[np.bool_], most: int) -> list[Floats]:
    """Return positions (n, 2), as (x, y), of the pixels in each frame of (T, H, W).

    most: about the most pixels of all frames; of more, every n-th of each frame is taken.
    """
    step = max(1, int(inside.sum()) // most)
    return [np.argwhere(mask)[::step, ::-1].astype(float) for mask in inside]


def quantile_extent(places: Floats, outside: float, if_empty: Floats) -> Floats:
    """Return the smallest and the largest (x, y), (2, 2), of n places (n, 2). outside: share beyond on each side."""
    return np.quantile(places, [outside, 1 - outside], axis=0) if len(places) else if_empty


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
