"""Fields over (x, y, t) that are stored as values at nodes and interpolated linearly between them.

On a regular lattice of pixels, linear interpolation is two small matrix products, one per axis. This is the fastest
dense operation there is, forward and backward, and a crop of the lattice is a choice of matrix rows.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from implicit_neural_networks import output_centers


def linear_weights(positions: Tensor, last: float, nodes: int) -> Tensor:
    """Return the weight of each node at each position, (n, nodes); the weights of a position add up to 1.

    The nodes are evenly spread from 0 to `last`. Positions outside this range have the weights of the nearest end.
    """
    if nodes == 1:
        return torch.ones(len(positions), 1, device=positions.device)
    in_node_steps = (positions / last * (nodes - 1)).clamp(0, nodes - 1)
    numbers = torch.arange(nodes, device=positions.device)
    return (1 - (in_node_steps[:, None] - numbers).abs()).clamp(min=0)


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the CPU to the device without waiting for a GPU to finish its earlier work.

    A copy of 64 kB or more from memory that is not pinned may wait all the same: compute large tensors on the device.
    """
    return tensor.to(device, non_blocking=True)


@functools.cache
def device_constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor on the device. It is copied there once and cached, so callers must not change it.

    The cache has no limit, because a recorded step (`grids.step_graphs`) reads these tensors again in every replay.
    """
    return torch.tensor(values, dtype=torch.float32).to(device)


def add_tensors(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors, added one after the other."""
    return functools.reduce(torch.add, tensors)


@dataclass
class Lattice:
    """Rows and columns of positions at which fields are evaluated, in pixels of a frame of H x W pixels.

    The axes stay on the CPU, so that crops are decided without waiting for a GPU. In training on a GPU those for
    rigidity and flow are on the GPU, because they differ from step to step. Such a lattice is not cropped to boxes.
    """

    rows_px: Tensor  # (h,)
    columns_px: Tensor  # (w,)
    size: tuple[int, int]  # (H, W)
    # The axes on a device, once they were needed there.
    copies: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)
    # Results of `node_weights`, by number of nodes and device.
    weights: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = field(
        init=False, repr=False, default_factory=dict
    )

    @classmethod
    def of_stride(cls, stride: int, size: tuple[int, int]) -> "Lattice":
        """Return the centers of all whole squares of stride x stride pixels."""
        rows_px, columns_px = ((torch.arange(side // stride) + 0.5) * stride - 0.5 for side in size)
        return cls(rows_px, columns_px, size)

    @classmethod
    @functools.lru_cache(maxsize=8)  # Every frame that is rendered asks for the same one.
    def of_raster(cls, raster: tuple[int, int], size: tuple[int, int]) -> "Lattice":
        """Return the pixel centers of a raster (width, height) that covers the frame."""
        width, height = raster
        return cls(output_centers(size[0], height), output_centers(size[1], width), size)

    @classmethod
    def of_nodes(cls, nodes: tuple[int, int], size: tuple[int, int]) -> "Lattice":
        """Return the nodes (ny, nx) of a grid, which are evenly spread from the first pixel to the last."""
        rows_px, columns_px = (torch.linspace(0, side - 1, count) for count, side in zip(nodes, size, strict=True))
        return cls(rows_px, columns_px, size)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns, (h, w)."""
        return len(self.rows_px), len(self.columns_px)

    @property
    def is_on_pixels(self) -> bool:
        """Whether all positions are centers of pixels."""
        if self.rows_px.device.type != "cpu":
            return True  # Only `Batch.make_lattice` puts the axes there, and it takes whole pixels.
        return all(bool((axis == axis.round()).all()) for axis in (self.rows_px, self.columns_px))

    def crop(self, rows: slice, columns: slice) -> "Lattice":
        """Return the lattice of some rows and columns."""
        part = Lattice(self.rows_px[rows], self.columns_px[columns], self.size)
        # A list, because another thread may add a copy meanwhile.
        part.copies = {device: (y[rows], x[columns]) for device, (y, x) in list(self.copies.items())}
        return part

    def axes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return rows_px and columns_px on a device. They are copied there once, also for the crops that follow."""
        if device not in self.copies:
            self.copies[device] = to_device_async(self.rows_px, device), to_device_async(self.columns_px, device)
        return self.copies[device]

    def points(self, device: torch.device) -> Tensor:
        """Return homogeneous pixel positions (x, y, 1), row by row, (3, h * w)."""
        y, x = torch.meshgrid(*self.axes(device), indexing="ij")
        return torch.stack((x, y, torch.ones_like(x))).flatten(1)

    def box_mask(self, boxes: Tensor) -> Tensor:
        """Return 1 inside and 0 outside each box, (K, 1, h, w).

        boxes (K, 4): top, bottom, left, right in pixels; bottom and right are exclusive.
        """
        top, bottom, left, right = boxes.T[:, :, None]
        y, x = self.axes(boxes.device)
        rows, columns = ((y >= top) & (y < bottom)).float(), ((x >= left) & (x < right)).float()
        return (rows[:, :, None] * columns[:, None])[:, None]

    def interpolate(self, *grids: Tensor) -> Tensor:
        """Interpolate values at the nodes of grids, (K, C, ny, nx) each, on the lattice, and add them up, (K, C, h, w).

        The rows of all grids are one matrix product, so that large tensors are written once and not added.
        """
        weights = [self.node_weights((grid.shape[2], grid.shape[3]), grid.device) for grid in grids]
        columns = [grid @ column_weights.T for grid, (_, column_weights) in zip(grids, weights, strict=True)]
        if len(grids) == 1:
            return weights[0][0] @ columns[0]
        return torch.cat([row_weights for row_weights, _ in weights], dim=1) @ torch.cat(columns, dim=2)

    def node_weights(self, nodes: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the weights of (ny, nx) nodes at each row, (h, ny), and column, (w, nx). They are computed once."""
        key = (*nodes, device)
        if key not in self.weights:
            axes = zip(self.axes(device), self.size, nodes, strict=True)
            row_weights, column_weights = (linear_weights(axis, side - 1, count) for axis, side, count in axes)
            self.weights[key] = row_weights, column_weights
        return self.weights[key]


def axis_slice(axis: Tensor, first: float, end: float) -> slice:
    """Return the part of a lattice's axis (on the CPU) within [first, end) pixels, or else the nearest position."""
    inside = torch.nonzero((axis >= first) & (axis < end)).flatten()
    if len(inside) == 0:
        nearest = int((axis - first).abs().argmin())
        return slice(nearest, nearest + 1)
    return slice(int(inside[0]), int(inside[-1]) + 1)


def sample_nodes(nodes: Tensor, points_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate values at nodes (K, C, ny, nx) at any points (x, y), (K, 2, N), of frames of (H, W): (K, C, N)."""
    height, width = size
    scale = device_constant((max(width - 1, 1), max(height - 1, 1)), points_px.device)[:, None]
    grid = (points_px / scale * 2 - 1).transpose(1, 2)[:, None]
    return functional.grid_sample(nodes, grid, align_corners=True, padding_mode="border")[:, :, 0]


class Grid(nn.Module):
    """Values at nodes that are evenly spread over a clip, with one node per frame or fewer along time."""

    def __init__(self, channels: int, nodes: tuple[int, int, int], frames: int):
        """Create a grid of zeros. nodes: their numbers along (t, y, x); frames: frames of the clip."""
        super().__init__()
        self.frames = frames
        self.values = nn.Parameter(torch.zeros(nodes[0], channels, *nodes[1:]))
        weights = None if self.is_per_frame else linear_weights(torch.arange(frames).float(), frames - 1, nodes[0])
        self.time_weights: Tensor | None  # (T, nodes along time)
        self.register_buffer("time_weights", weights, persistent=False)

    @property
    def is_per_frame(self) -> bool:
        """True if every frame has nodes of its own."""
        return len(self.values) == self.frames

    def values_at(self, t: Tensor) -> Tensor:
        """Return the values at the nodes of frames t (K,), interpolated along time, (K, C, ny, nx)."""
        return self.interpolate_values(self.values, t)

    def interpolate_values(self, values: Tensor, t: Tensor) -> Tensor:
        """Return other values of the same shape as the grid's at the nodes of frames t (K,), (K, C, ny, nx)."""
        if self.time_weights is None:
            return values[t]
        return (self.time_weights[t] @ values.flatten(1)).unflatten(1, values.shape[1:])


def finest_nodes(grids: Iterable[Grid], size: tuple[int, int]) -> Lattice:
    """Return the nodes, in frames of (H, W), of the grid that has most of them."""
    nodes = max(((grid.values.shape[2], grid.values.shape[3]) for grid in grids), key=math.prod)
    return Lattice.of_nodes(nodes, size)


def sum_at_nodes(grids: Iterable[Grid], values: Iterable[Tensor], lattice: Lattice, t: Tensor) -> Tensor:
    """Return the sum of grids of one field, with other values at their nodes, in frames t (K,), (K, C, h, w).

    lattice: of `finest_nodes`; the grid that it belongs to is not interpolated.
    """
    fields = [grid.interpolate_values(each, t) for grid, each in zip(grids, values, strict=True)]
    coarse = [nodes for nodes in fields if nodes.shape[2:] != lattice.shape]
    parts = [nodes for nodes in fields if nodes.shape[2:] == lattice.shape]
    return add_tensors([*parts, lattice.interpolate(*coarse)] if coarse else parts)


def count_nodes(size: tuple[int, int, int], spacing_px: float, spacing_frames: int) -> tuple[int, int, int]:
    """Return the number of nodes along (t, y, x) for a clip of (T, H, W).

    Nodes are evenly spread from the first frame or pixel to the last. Neighbours are at most `spacing_frames` frames
    or `spacing_px` pixels apart, and there are at least two nodes along each axis.
    """
    frames, height, width = size

    def count(length: int, spacing: float) -> int:
        return max(2, math.ceil((length - 1) / spacing) + 1)

    return count(frames, spacing_frames), count(height, spacing_px), count(width, spacing_px)
