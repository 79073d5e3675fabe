"""Atlases that become too small for their object get more texels, and every texel keeps its place."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from grids.model import GridModel

Floats = NDArray[np.floating]

ATLAS_BORDER_TEXELS = 4  # Texels that an atlas gets beyond an object that has become larger than it.


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
