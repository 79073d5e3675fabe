"""Fields over (x, y, t) as values at nodes, linear in between.

On a regular lattice of pixels a linear interpolation is two small matrix products, one per axis: the fastest dense
operation there is, forward and backward, and a crop of the lattice is a choice of matrix rows."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from implicit_neural_networks import output_centers


def linear_weights(positions: Tensor, last: float, nodes: int) -> Tensor:
    """(n, nodes): what each node adds to each position; nodes lie evenly from 0 to `last`, beyond them it is flat."""
    if nodes == 1:
        return torch.ones(len(positions), 1, device=positions.device)
    places = (positions / last * (nodes - 1)).clamp(0, nodes - 1)
    numbers = torch.arange(nodes, device=positions.device)
    return (1 - (places[:, None] - numbers).abs()).clamp(min=0)


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on the device, without waiting until a GPU has done what it was given before.

    What is large (64 kB and more, not pinned) may wait all the same, and is to be computed on the device.
    """
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=64)
def device_constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor on the device, sent there once; not to be changed."""
    return torch.tensor(values, dtype=torch.float32).to(device)


@dataclass
class Lattice:
    """Rows and columns of pixels at which fields are evaluated, of frames of H x W pixels.

    The axes stay on the CPU, where crops are decided without waiting for a GPU.
    """

    rows_px: Tensor  # (h,)
    columns_px: Tensor  # (w,)
    size: tuple[int, int]  # (H, W)
    weights: dict[tuple, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)  # once computed

    @classmethod
    def of_stride(cls, stride: int, size: tuple[int, int]) -> "Lattice":
        """The centers of all whole squares of stride x stride pixels."""
        return cls(*((torch.arange(side // stride) + 0.5) * stride - 0.5 for side in size), size)

    @classmethod
    def of_raster(cls, raster: tuple[int, int], size: tuple[int, int]) -> "Lattice":
        """The pixel centers of a raster (width, height) that covers the frame."""
        return cls(*(output_centers(side, count) for side, count in zip(size, raster[::-1], strict=True)), size)

    @classmethod
    def of_nodes(cls, nodes: tuple[int, int], size: tuple[int, int]) -> "Lattice":
        """The nodes of a grid, which lie evenly from the first pixel to the last."""
        return cls(*(torch.linspace(0, side - 1, count) for count, side in zip(nodes, size, strict=True)), size)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows_px), len(self.columns_px)

    def crop(self, rows: slice, columns: slice) -> "Lattice":
        return Lattice(self.rows_px[rows], self.columns_px[columns], self.size)

    def points(self, device: torch.device) -> Tensor:
        """(3, h * w): homogeneous pixel positions, row by row."""
        y, x = torch.meshgrid(
            to_device_async(self.rows_px, device), to_device_async(self.columns_px, device), indexing="ij"
        )
        return torch.stack((x, y, torch.ones_like(x))).flatten(1)

    def box_mask(self, boxes: Tensor, device: torch.device) -> Tensor:
        """(K, 1, h, w) 1 within each of the boxes (K, 4), top, bottom, left, right, else 0; boxes on the CPU."""
        top, bottom, left, right = boxes.T[:, :, None]
        rows = to_device_async(((self.rows_px >= top) & (self.rows_px < bottom)).float(), device)
        columns = to_device_async(((self.columns_px >= left) & (self.columns_px < right)).float(), device)
        return (rows[:, :, None] * columns[:, None])[:, None]

    def interpolate(self, nodes: Tensor) -> Tensor:
        """Values at nodes (K, C, ny, nx) to values at the lattice (K, C, h, w)."""
        down, across = self.node_weights(tuple(nodes.shape[2:]), nodes.device)
        return down @ (nodes @ across.T)

    def node_weights(self, nodes: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """(h, ny), (w, nx): what each node adds to each row and column; computed once a lattice."""
        key = (*nodes, device)
        if key not in self.weights:
            axes = zip((self.rows_px, self.columns_px), self.size, nodes, strict=True)
            weights = (linear_weights(to_device_async(axis, device), side - 1, count) for axis, side, count in axes)
            self.weights[key] = tuple(weights)
        return self.weights[key]


def sample_nodes(nodes: Tensor, points_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Values at nodes (K, C, ny, nx) to values at any points (K, 2, N) (x, y) -> (K, C, N)."""
    height, width = size
    scale = device_constant((max(width - 1, 1), max(height - 1, 1)), points_px.device)[:, None]
    grid = (points_px / scale * 2 - 1).transpose(1, 2)[:, None]
    return functional.grid_sample(nodes, grid, align_corners=True, padding_mode="border")[:, :, 0]


class Grid(nn.Module):
    """Values at nodes evenly spread over a clip of (T, H, W); with a node per frame or fewer."""

    def __init__(self, channels: int, nodes: tuple[int, int, int], frames: int):
        super().__init__()
        self.frames = frames
        self.values = nn.Parameter(torch.zeros(nodes[0], channels, *nodes[1:]))

    @property
    def is_per_frame(self) -> bool:
        """True if every frame has nodes of its own."""
        return len(self.values) == self.frames

    def values_at(self, t: Tensor) -> Tensor:
        """(K, C, ny, nx): the nodes' values at frames t (K,)."""
        if self.is_per_frame:
            return self.values[t]
        weights = linear_weights(t.float(), self.frames - 1, len(self.values))
        return torch.einsum("kn,ncyx->kcyx", weights, self.values)


def count_nodes(size: tuple[int, int, int], spacing_px: float, frames_apart: int) -> tuple[int, int, int]:
    """Nodes over (t, y, x), from the first to the last of each, so that neighbours lie at most so far apart."""
    frames, height, width = size
    spacings = ((frames, frames_apart), (height, spacing_px), (width, spacing_px))
    return tuple(max(2, math.ceil((side - 1) / spacing) + 1) for side, spacing in spacings)
