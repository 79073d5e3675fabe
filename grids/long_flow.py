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
    """The points of one layer that flow connects over several frames, for each frame."""

    # for each frame: another frame, points (2, n) of this frame and where they are in the other one, in pixels
    by_frame: list[list[tuple[int, Tensor, Tensor]]]

    def draw(self, t: Tensor, rng: torch.Generator) -> Connections:
        """Draw for each frame of t (K,) another frame and POINTS_PER_FRAME points that the flow connects with it.

        Frames without any have weight 0 and are connected with themselves. All tensors are on the CPU.
        """
        count = len(t)
        drawn = Connections(
            t,
            t.clone(),
            torch.zeros(count, 2, POINTS_PER_FRAME),
            torch.zeros(count, 2, POINTS_PER_FRAME),
            torch.zeros(count, POINTS_PER_FRAME),
        )
        for index, own in enumerate(t.tolist()):
            if not self.by_frame[own]:
                continue
            other, start, end = self.by_frame[own][draw_numbers(len(self.by_frame[own]), 1, rng)[0]]
            chosen = draw_numbers(start.shape[1], POINTS_PER_FRAME, rng)
            drawn.target[index], drawn.weight[index] = other, 1
            drawn.start_px[index], drawn.end_px[index] = start[:, chosen], end[:, chosen]
        return drawn


def draw_numbers(end: int, count: int, rng: torch.Generator) -> Tensor:
    """Draw `count` numbers from 0 to end - 1."""
    return torch.randint(end, (count,), generator=rng)


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
            start_px, end_px = (torch.from_numpy(np.ascontiguousarray(points.T)).float() for points in (start, end))
            by_frame[source].append((target, start_px, end_px))
            by_frame[target].append((source, end_px, start_px))
        return LongFlow(by_frame)

    return map_side_by_side(follow_layer, range(len(visible)))
