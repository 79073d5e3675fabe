"""Fields over (x, y, t) as values at nodes, linear in between.

On a regular lattice of pixels a linear interpolation is two small matrix products, one per axis: the fastest dense
operation there is, forward and backward, and a crop of the lattice is a choice of matrix rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def hat_weights(positions: Tensor, last: float, nodes: int) -> Tensor:
    """(n, nodes): what each node adds to each position; nodes lie evenly from 0 to `last`, beyond them it is flat."""
    if nodes == 1:
        return torch.ones(len(positions), 1, device=positions.device)
    places = (positions / last * (nodes - 1)).clamp(0, nodes - 1)
    numbers = torch.arange(nodes, device=positions.device)
    return (1 - (places[:, None] - numbers).abs()).clamp(min=0)


@dataclass
class Lattice:
    """Rows and columns of pixels at which fields are evaluated, of frames of H x W pixels."""

    rows_px: Tensor  # (h,)
    columns_px: Tensor  # (w,)
    size: tuple[int, int]  # (H, W)

    @classmethod
    def of_stride(cls, stride: int, size: tuple[int, int], device: torch.device) -> "Lattice":
        """The centers of all whole squares of stride x stride pixels."""
        axes = [(torch.arange(side // stride, device=device) + 0.5) * stride - 0.5 for side in size]
        return cls(*axes, size)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows_px), len(self.columns_px)

    def cropped(self, rows: slice, columns: slice) -> "Lattice":
        return Lattice(self.rows_px[rows], self.columns_px[columns], self.size)

    def points(self) -> Tensor:
        """(3, h * w): homogeneous pixel positions, row by row."""
        y, x = torch.meshgrid(self.rows_px, self.columns_px, indexing="ij")
        return torch.stack((x, y, torch.ones_like(x))).flatten(1)

    def interpolated(self, nodes: Tensor) -> Tensor:
        """Values at nodes (K, C, ny, nx) to values at the lattice (K, C, h, w)."""
        height, width = self.size
        across = hat_weights(self.columns_px, width - 1, nodes.shape[3])
        down = hat_weights(self.rows_px, height - 1, nodes.shape[2])
        return down @ (nodes @ across.T)


def at_points(nodes: Tensor, points_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Values at nodes (K, C, ny, nx) to values at any points (K, 2, N) (x, y) -> (K, C, N)."""
    height, width = size
    scale = points_px.new_tensor([max(width - 1, 1), max(height - 1, 1)])[:, None]
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

    def at_frames(self, t: Tensor) -> Tensor:
        """(K, C, ny, nx): the nodes' values at frames t (K,)."""
        if self.is_per_frame:
            return self.values[t]
        weights = hat_weights(t.float(), self.frames - 1, len(self.values))
        return torch.einsum("kn,ncyx->kcyx", weights, self.values)


def nodes_for(size: tuple[int, int, int], spacing_px: float, frames_apart: int) -> tuple[int, int, int]:
    """Nodes over (t, y, x) so that neighbours lie at most so far apart."""
    frames, height, width = size
    along_t = frames if frames_apart == 1 else max(2, -(-frames // frames_apart))
    return (min(frames, along_t), *(max(2, round((side - 1) / spacing_px) + 1) for side in (height, width)))
