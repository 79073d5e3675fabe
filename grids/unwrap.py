"""Atlases by averaging: every texel takes the weighted mean of the colours that it has in the frames."""

import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from grids.fields import Lattice, axis_slice, linear_weights
from grids.model import GridModel
from grids.surfaces import invert_2x2, leave_surface, surface_jacobians
from implicit_neural_networks import output_centers

INVERSE_SPACING_TEXELS = 8  # Spacing of the lattice on which mappings are inverted; displacements are smooth.
NEWTON_STEPS = 4
FOOTPRINT_MARGIN_TEXELS = 8  # Texels that are added on each side of a frame's footprint in the atlas.
NEAREST = 1e-3  # Least depth of a ray of length 1 or more that can lie in a frame.
LEAST_WEIGHT = 0.02  # Texels with less weight than this, summed over the frames, are filled from their neighbours.
FAR_PX = 1e4  # Largest position in pixels, because OpenCV's remap stores positions as 16-bit integers.


@torch.no_grad()
def invert_mapping(model: GridModel, layer: int, t: int, lattice: Lattice) -> Tensor:
    """Return the pixel position in frame t of each texel of a layer's atlas, (2, h, w).

    lattice: rows and columns of the atlas, in texels of its full size. Texels that the frame does not show get
    positions far outside the frame. The method is Newton's, with the derivative of the closed-form start, which the
    displacements hardly change.
    """
    device = model.transforms.device
    coarse = Lattice(coarse_axis(lattice.rows_px), coarse_axis(lattice.columns_px), lattice.size)
    texels = coarse.points(device)
    rays = leave_surface(texels[:2], model.surface(layer))
    # On the CPU, because Apple's GPUs have no 64-bit floats.
    inverse_transform = torch.linalg.inv(model.transforms[layer, t].cpu().double()).float().to(device)
    homogeneous = inverse_transform @ rays
    points = homogeneous[:2] / homogeneous[2:]
    if model.surface(layer) is not None:  # A camera does not see what is behind it.
        points = torch.where(homogeneous[2] > NEAREST, points, FAR_PX)
    grid_frames = model.at_frames(t)
    if model.surface(layer) is None:
        inverse = torch.linalg.inv(model.start_jacobians(layer)[t])
    else:  # Its derivative changes too much over a wide frame to take that of the middle.
        inside = points.clamp(points.new_zeros(2, 1), points.new_tensor(model.shape.size[:0:-1])[:, None])
        inverse = invert_2x2(surface_jacobians(model.transforms[layer, t : t + 1], inside, model.surface(layer))[0])
    only_frame = torch.zeros(1, dtype=torch.long, device=device)
    for _ in range(NEWTON_STEPS):
        error = grid_frames.map_points(layer, only_frame, points[None])[0] - texels[:2]
        points = points - (inverse @ error.T[..., None])[..., 0].T
    row_weights, column_weights = (
        linear_weights(axis - nodes[0], float(nodes[-1] - nodes[0]), len(nodes)).to(device)
        for axis, nodes in ((lattice.rows_px, coarse.rows_px), (lattice.columns_px, coarse.columns_px))
    )
    return row_weights @ (points.unflatten(1, coarse.shape) @ column_weights.T)


def coarse_axis(axis: Tensor) -> Tensor:
    """Return positions from an axis' first to its last, evenly spread, about INVERSE_SPACING_TEXELS apart."""
    first, last = float(axis[0]), float(axis[-1])
    last = max(last, first + 1)
    return torch.linspace(first, last, max(2, round((last - first) / INVERSE_SPACING_TEXELS) + 1))


def atlas_lattice(model: GridModel, layer: int, reduction: int) -> Lattice:
    """Return the texel centers of a layer's atlas at 1 / reduction of its full size, in texels of the full size."""
    size, axes = model.shape.atlas_sizes[layer], []
    for side in size:
        count = max(2, round(side / reduction))
        axes.append(output_centers(side, count))
    rows_px, columns_px = axes
    return Lattice(rows_px, columns_px, size)


@functools.lru_cache(maxsize=8)
def outline_lattice(size: tuple[int, int]) -> Lattice:
    """Return the few points of a frame of (height, width) by which its place in an atlas is found."""
    return Lattice.of_nodes((9, 9), size)


@torch.no_grad()
def atlas_footprint(model: GridModel, layer: int, t: int, lattice: Lattice) -> tuple[slice, slice]:
    """Return the rows and columns of an atlas lattice that frame t can show, at least one of each."""
    height, width = model.shape.size[1:]
    texels = model.at_frames(t).texels(layer, outline_lattice((height, width)))[0].flatten(1)
    low, high = texels.amin(1) - FOOTPRINT_MARGIN_TEXELS, texels.amax(1) + FOOTPRINT_MARGIN_TEXELS
    rows = axis_slice(lattice.rows_px, float(low[1]), float(high[1]))
    columns = axis_slice(lattice.columns_px, float(low[0]), float(high[0]))
    return rows, columns


@torch.no_grad()
def average_atlas(
    model: GridModel,
    layer: int,
    frames: Tensor,
    weigh_pixels: Callable[[int], Tensor],
    stride: int,
    chosen_frames: Sequence[int],
) -> Tensor:
    """Return a layer's atlas as the weighted mean of what the chosen frames show of it, (1, 3, h, w).

    frames (T, 3, H / stride, W / stride) uint8: the video, whose light is divided out. weigh_pixels: returns the
    weights of a frame's pixels (ny, nx), at nodes that are evenly spread from the first pixel to the last.
    """
    lattice = atlas_lattice(model, layer, stride)
    size = model.shape.size[1:]
    color_sum = np.zeros((*lattice.shape, 3), np.float32)
    weight_sum = np.zeros(lattice.shape, np.float32)
    for t in chosen_frames:
        rows, columns, positions_px, weight = weigh_texels(model, layer, t, lattice, weigh_pixels(t))
        x, y = (positions_px + 0.5) / stride - 0.5  # in pixels of the reduced frame
        image = frames[t].permute(1, 2, 0).cpu().numpy().astype(np.float32) / 255
        if len(model.light):
            image /= model.at_frames(t).light(Lattice.of_stride(stride, size))[0].permute(1, 2, 0).cpu().numpy()
        # The last pixels of a frame whose side the stride does not divide are not in the reduced frame.
        weight = weight * ((x < image.shape[1] - 0.5) & (y < image.shape[0] - 0.5))
        color = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        color_sum[rows, columns] += color * weight[..., None]
        weight_sum[rows, columns] += weight
    values = torch.from_numpy(color_sum / np.maximum(weight_sum, 1e-6)[..., None]).permute(2, 0, 1)
    known = torch.from_numpy(weight_sum > LEAST_WEIGHT)[None, None].float()
    return fill_unknown(values[None], known).to(frames.device)


@torch.no_grad()
def weigh_texels(
    model: GridModel, layer: int, t: int, lattice: Lattice, pixel_weights: Tensor
) -> tuple[slice, slice, NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows and columns of an atlas lattice that frame t can show, and for their texels two arrays.

    These are the positions in the frame, (2, h, w) in pixels, and the weights (h, w), which are 0 outside the frame.
    pixel_weights (ny, nx): of the frame, at nodes that are evenly spread from the first pixel to the last.
    """
    size, frame_weights = model.shape.size[1:], pixel_weights.cpu().numpy()
    rows, columns = atlas_footprint(model, layer, t, lattice)
    positions_px = invert_mapping(model, layer, t, lattice.crop(rows, columns)).clamp(-FAR_PX, FAR_PX).cpu().numpy()
    nodes_per_px = [(count - 1) / (side - 1) for count, side in zip(frame_weights.shape[::-1], size[::-1], strict=True)]
    node_x, node_y = positions_px * np.array(nodes_per_px, np.float32)[:, None, None]
    weight = cv2.remap(frame_weights, node_x, node_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    x, y = positions_px
    return rows, columns, positions_px, weight * ((x > -0.5) & (y > -0.5) & (x < size[1] - 0.5) & (y < size[0] - 0.5))


@torch.no_grad()
def measure_coverage(
    model: GridModel, layer: int, weigh_pixels: Callable[[int], Tensor], stride: int, chosen_frames: Sequence[int]
) -> Tensor:
    """Return how much the chosen frames show of each texel of a layer's atlas at 1 / stride of its size, (h, w).

    weigh_pixels: see `average_atlas`.
    """
    lattice = atlas_lattice(model, layer, stride)
    total = np.zeros(lattice.shape, np.float32)
    for t in chosen_frames:
        rows, columns, _, weight = weigh_texels(model, layer, t, lattice, weigh_pixels(t))
        total[rows, columns] += weight
    return torch.from_numpy(total)


def fill_unknown(values: Tensor, known: Tensor) -> Tensor:
    """Fill the unknown pixels of an image (1, C, h, w) from averages of the known ones, coarser where none is near.

    known (1, 1, h, w): 1 for known pixels, 0 for unknown ones.
    """
    height, width = values.shape[2:]
    if min(height, width) <= 2 or bool((known > 0).all()):
        mean = (values * known).sum((2, 3), keepdim=True) / known.sum().clamp(min=1)
        return torch.where(known > 0, values, mean)
    pooled = functional.avg_pool2d(torch.cat((values * known, known), dim=1), 2, ceil_mode=True)
    known_part = pooled[:, -1:]
    coarse = fill_unknown(pooled[:, :-1] / known_part.clamp(min=1e-6), (known_part > 0).float())
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, smooth)
