"""Atlases by averaging: every texel looks up where it lies in each frame and takes the mean of what it finds there."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grids.fields import Lattice, linear_weights
from grids.model import GridModel, axis_slice, start_jacobians

SPACING_TEXELS = 8  # the inverse mapping is solved on this lattice; displacements are smooth
NEWTON_STEPS = 4
MARGIN_TEXELS = 8  # around a frame's footprint
LEAST_WEIGHT = 0.02  # texels seen less than this over the whole clip are filled from around


@torch.no_grad()
def invert_mapping(model: GridModel, layer: int, t: int, lattice: Lattice) -> Tensor:
    """(2, h, w): where texels of a layer's atlas lie in frame t, in pixels; far outside if they are not in the frame.

    lattice: rows and columns of the atlas, in texels of its full size. Newton's method on the mapping with the start's
    derivative, which the displacements hardly change.
    """
    device = model.transforms.device
    coarse = Lattice(*(coarse_axis(axis) for axis in (lattice.rows_px, lattice.columns_px)), lattice.size)
    wanted = coarse.points(device)
    back = torch.linalg.inv(model.transforms[layer, t].double()).float() @ wanted
    points = back[:2] / back[2:]
    view = model.at_frames(t)
    slope = torch.linalg.inv(start_jacobians(model.transforms[layer, t : t + 1], model.shape.size)[0])
    for _ in range(NEWTON_STEPS):
        missed = view.map_points(layer, torch.zeros(1, dtype=torch.long, device=device), points[None])[0] - wanted[:2]
        points = points - slope @ missed
    down, across = (
        linear_weights(axis - nodes[0], float(nodes[-1] - nodes[0]), len(nodes)).to(device)
        for axis, nodes in ((lattice.rows_px, coarse.rows_px), (lattice.columns_px, coarse.columns_px))
    )
    return down @ (points.unflatten(1, coarse.shape) @ across.T)


def coarse_axis(axis: Tensor) -> Tensor:
    """Few positions, evenly from an axis' first to its last, about SPACING_TEXELS apart."""
    first, last = float(axis[0]), float(axis[-1])
    last = max(last, first + 1)
    return torch.linspace(first, last, max(2, round((last - first) / SPACING_TEXELS) + 1))


def atlas_lattice(model: GridModel, layer: int, reduction: int) -> Lattice:
    """The texel centers of a layer's atlas at 1 / reduction of its full size."""
    full, axes = model.shape.atlas_sizes[layer], []
    for side in full:
        count = max(2, round(side / reduction))
        axes.append((torch.arange(count) + 0.5) * (side / count) - 0.5)
    return Lattice(*axes, full)


@torch.no_grad()
def atlas_footprint(model: GridModel, layer: int, t: int, lattice: Lattice) -> tuple[slice, slice]:
    """Rows and columns of an atlas lattice that frame t can show; at least one of each."""
    height, width = model.shape.size[1:]
    places = model.at_frames(t).texels(layer, Lattice.of_nodes((9, 9), (height, width)))[0].flatten(1)
    low, high = places.amin(1), places.amax(1)
    axes = ((lattice.rows_px, 1), (lattice.columns_px, 0))
    return tuple(axis_slice(axis, float(low[i]) - MARGIN_TEXELS, float(high[i]) + MARGIN_TEXELS) for axis, i in axes)


@torch.no_grad()
def average_atlas(
    model: GridModel, layer: int, frames: Tensor, visibility: Tensor, stride: int, chosen: Sequence[int]
) -> Tensor:
    """(1, 3, h, w): a layer's atlas as the mean of what the chosen frames show of it.

    frames (T, 3, H / stride, W / stride) uint8, whose light is taken off; visibility (T, ny, nx) share of the layer at
    nodes that lie evenly from the first pixel to the last.
    """
    lattice = atlas_lattice(model, layer, stride)
    size = model.shape.size[1:]
    total = np.zeros((*lattice.shape, 3), np.float32)
    weight = np.zeros(lattice.shape, np.float32)
    for t in chosen:
        rows, columns = atlas_footprint(model, layer, t, lattice)
        part = lattice.crop(rows, columns)
        places = invert_mapping(model, layer, t, part).clamp(-1e4, 1e4).cpu().numpy()
        pixels = (places + 0.5) / stride - 0.5
        picture = frames[t].permute(1, 2, 0).cpu().numpy().astype(np.float32) / 255
        if model.light:
            picture /= model.at_frames(t).light(Lattice.of_stride(stride, size))[0].permute(1, 2, 0).cpu().numpy()
        share = visibility[t].cpu().numpy()
        nodes_per_px = [(count - 1) / (side - 1) for count, side in zip(share.shape[::-1], size[::-1], strict=True)]
        at_nodes = places * np.float32(nodes_per_px)[:, None, None]
        seen = cv2.remap(share, *at_nodes, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (pixels > -0.5).all(0) & (pixels[0] < picture.shape[1] - 0.5) & (pixels[1] < picture.shape[0] - 0.5)
        seen = seen * inside
        color = cv2.remap(picture, *pixels, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        total[rows, columns] += color * seen[..., None]
        weight[rows, columns] += seen
    values = torch.from_numpy(total / np.maximum(weight, 1e-6)[..., None]).permute(2, 0, 1)
    return fill_unknown(values[None], torch.from_numpy(weight > LEAST_WEIGHT)[None, None].float()).to(frames.device)


def fill_unknown(values: Tensor, known: Tensor) -> Tensor:
    """Unknown pixels of an image (1, C, h, w) from ever coarser averages of the known ones (1, 1, h, w), 0 or 1."""
    height, width = values.shape[2:]
    if min(height, width) <= 2 or bool((known > 0).all()):
        mean = (values * known).sum((2, 3), keepdim=True) / known.sum().clamp(min=1)
        return torch.where(known > 0, values, mean)
    pooled = functional.avg_pool2d(torch.cat((values * known, known), dim=1), 2, ceil_mode=True)
    share = pooled[:, -1:]
    coarse = fill_unknown(pooled[:, :-1] / share.clamp(min=1e-6), (share > 0).float())
    around = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, around)
