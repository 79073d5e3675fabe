"""Flow over several frames, for training: it keeps a mapping where the start has put it.

Flow between neighbouring frames alone lets a mapping drift: an error that is small from one frame to the next adds up,
and limbs slide away. So each step also looks at points that the flow connects over a few frames."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grids.flow_fit import Connections, follow_lattice
from grids.visible import visible_pixels
from parallel.side_by_side import map_side_by_side
from unwrap_utils import Video

MOST_POINTS_PER_LAYER = 100_000  # Most points of a layer that are followed; each step uses a few of them.
LONG_DISTANCES = (2, 4, 8)  # Frames over which the flow is followed; flow from frame to frame has a term of its own.
POINTS_PER_FRAME = 256  # Points of each layer that a step uses for each of its frames.


@dataclass
class LongFlow:
    """The points of one layer that flow connects over several frames: C pairs of frames with some points each.

    The pairs are ordered by their first frame. Where a frame has none, it is paired with itself, by one point, which
    does not count.
    """

    pair_ranges: Tensor  # (2, T) number of the first pair of each frame, and number of its pairs
    target: Tensor  # (C,) the other frame
    point_ranges: Tensor  # (2, C) number of the first point of each pair, and number of its points
    start_px: Tensor  # (N, 2) positions (x, y) in the first frame
    end_px: Tensor  # (N, 2) positions of the same points in the other frame

    @classmethod
    def of_pairs(cls, by_frame: list[list[tuple[int, Tensor, Tensor]]]) -> "LongFlow":
        """Return the pairs of all frames: other frame, points (n, 2), and where they are in the other frame."""
        nothing = torch.zeros(1, 2)
        filled = [pairs or [(own, nothing, nothing)] for own, pairs in enumerate(by_frame)]
        target, start_px, end_px = zip(*(pair for pairs in filled for pair in pairs), strict=True)
        pair_ranges, point_ranges = (list_ranges([len(each) for each in lists]) for lists in (filled, start_px))
        return cls(pair_ranges, torch.tensor(target), point_ranges, torch.cat(start_px), torch.cat(end_px))

    def draw(self, t: Tensor, rng: torch.Generator) -> Connections:
        """Draw for each frame of t (K,) another frame and POINTS_PER_FRAME points that the flow connects with it.

        Frames without any have weight 0 and are connected with themselves. All tensors are on the CPU.
        """
        pair = draw_numbers(self.pair_ranges[:, t, None], 1, rng)[:, 0]
        points = draw_numbers(self.point_ranges[:, pair, None], POINTS_PER_FRAME, rng)
        start_px, end_px = (values[points].transpose(1, 2) for values in (self.start_px, self.end_px))
        target = self.target[pair]
        weight = (target != t).float()[:, None].repeat(1, POINTS_PER_FRAME)
        return Connections(t, target, start_px, end_px, weight)


def list_ranges(lengths: list[int]) -> Tensor:
    """Return where lists of these lengths begin if they follow each other, and their lengths, (2, n)."""
    counts = torch.tensor(lengths)
    return torch.stack((counts.cumsum(0) - counts, counts))


def draw_numbers(ranges: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw numbers (K, count) from K ranges (2, K, 1): their first numbers, and how many numbers they have."""
    first, length = ranges
    drawn = torch.rand(len(first), count, generator=rng, dtype=torch.float64)  # 32 bits would favour some numbers.
    return first + (drawn * length).long()


def follow_layers(video: Video, probability: Tensor) -> list[LongFlow]:
    """Follow points of all layers over several frames, objects first and the background last.

    probability (F, T, ny, nx): of the objects in [0, 1], at nodes that are evenly spread over the frame.
    """
    cpu_video = video.to(torch.device("cpu"))
    frames, height, width = video.size
    rows, columns = (
        torch.linspace(0, nodes - 1, side).round().long()
        for nodes, side in zip(probability.shape[2:], (height, width), strict=True)
    )
    at_pixels = (probability.cpu() * 255).round().byte()[:, :, rows[:, None], columns].numpy()
    visible = visible_pixels(at_pixels)

    def follow_layer(layer: int) -> LongFlow:
        by_frame: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in range(frames)]
        for source, target, start, end, _ in follow_lattice(
            cpu_video, visible[layer], LONG_DISTANCES, MOST_POINTS_PER_LAYER
        ):
            start_px, end_px = (torch.from_numpy(np.ascontiguousarray(points)).float() for points in (start, end))
            by_frame[source].append((target, start_px, end_px))
            by_frame[target].append((source, end_px, start_px))
        return LongFlow.of_pairs(by_frame)

    return map_side_by_side(follow_layer, range(len(visible)))
