"""The pixels of one iteration, and the neighbours and flow matches that the loss terms need.

There are two ways of sampling with the same expected losses. `published` draws independent pixels, each with
neighbours of its own; per pixel it evaluates each mapping 7 times, opacity 5 times and the atlas 3 times per layer.
`tiles` draws small squares, in which the pixels are each other's neighbours, and one flow direction per square; per
pixel it evaluates mappings and opacity twice and the atlas once per layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from config import Config
from media.flows import BACKWARD, FORWARD, STEPS
from parallel import processes
from unwrap_utils import Video


@dataclass
class Batch:
    """The points of one iteration and the loss terms that they serve. Index tensors hold rows of `points_px`.

    Only the first `num_color` points need a colour, and only the first `num_alpha` an opacity; all points need a uv.
    The flow matches are the points from `num_color` to `num_alpha`. Weights are 0 or 1. They select the valid pixels
    of a term, which does not make the host wait for the device as boolean indexing would.
    """

    points_px: Tensor  # (P, 3) (x, y, t)
    num_color: int
    num_alpha: int
    samples: Tensor  # (S,) pixels of the colour, sparsity and bootstrapping terms
    samples_weight: Tensor  # (S,)
    samples_rgb: Tensor  # (S, 3) in [0, 1]
    samples_mask: Tensor  # (F, S) in [0, 1]
    gradient: Tensor  # (3, G) a pixel, its right and its lower neighbour
    gradient_weight: Tensor  # (G,) 0 in the last column and row, which have no right or lower neighbour
    gradient_target: Tensor  # (2, G, 3) x and y differences of the frame's colours
    rigidity: Tensor  # (3, R) a pixel, its left and its upper neighbour, derivative_amount pixels away
    rigidity_weight: Tensor  # (R,)
    global_rigidity: Tensor  # (R',) pixels of the global rigidity; that term makes the neighbours itself
    global_rigidity_weight: Tensor  # (R',)
    flow: Tensor  # (K,) the match of flow[k] is points_px[num_color + k]
    flow_weight: Tensor  # (2, K) valid forward matches, valid backward matches


def read_colors(video: Video, pixels: Tensor) -> Tensor:
    """Return the colours (..., 3) in [0, 1] of integer pixels (..., 3). Outside the frame the nearest pixel is read."""
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    return video.frames[t, y.clamp(0, height - 1), x.clamp(0, width - 1)] / 255


def read_masks(video: Video, pixels: Tensor) -> Tensor:
    """Return the masks (F, N) in [0, 1] of integer pixels (N, 3). Outside the frame the nearest pixel is read."""
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    return video.masks[:, t, y.clamp(0, height - 1), x.clamp(0, width - 1)] / 255


def inside_weight(video: Video, pixels: Tensor) -> Tensor:
    """Return weights (N,): 1 where integer pixels (N, 3) lie in the frame, else 0."""
    _, height, width = video.size
    x, y, _ = pixels.unbind(-1)
    return ((x >= 0) & (x < width) & (y >= 0) & (y < height)).float()


def shift_pixels(pixels: Tensor, dx: int, dy: int) -> Tensor:
    """Shift integer pixels (N, 3) within their frames."""
    x, y, t = pixels.unbind(-1)
    return torch.stack((x + dx, y + dy, t), dim=-1)


def next_pixels_weight(video: Video, pixels: Tensor) -> Tensor:
    """Return weights (N,): 1 where a pixel and its right and lower neighbours lie in the frame, else 0."""
    return inside_weight(video, pixels) * inside_weight(video, shift_pixels(pixels, 1, 1))


def flow_matches(video: Video, pixels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the flow from integer pixels (N, 3).

    direction: (N,) FORWARD or BACKWARD. Returns the matches (x, y, t) (N, 3) and weights (N,), 1 for a valid match.
    """
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    step = torch.where(direction == FORWARD, STEPS[FORWARD], STEPS[BACKWARD])
    motion = torch.cat((video.flow_px(direction, t, y, x), step[:, None]), dim=1)
    weight = video.flow_valid[direction, t, y, x] * inside_weight(video, pixels)
    return pixels + motion, weight


def color_steps(colors: Tensor) -> Tensor:
    """Return the x and y differences (2, G, 3) of the colours (3, G, 3) of pixels, right and lower neighbours."""
    return colors[1:] - colors[0]


def make_published_batch(video: Video, pixels: Tensor, config: Config) -> Batch:
    """Return the published batch of integer pixels (N, 3): each has its own neighbours and both flow matches."""
    count = len(pixels)
    step = config.derivative_amount
    gradient_pixels = [pixels, shift_pixels(pixels, 1, 0), shift_pixels(pixels, 0, 1)]
    rigidity_neighbours = [shift_pixels(pixels, -step, 0), shift_pixels(pixels, 0, -step)]
    directions = [torch.full((count,), direction, device=pixels.device) for direction in (FORWARD, BACKWARD)]
    (forward, forward_weight), (backward, backward_weight) = (
        flow_matches(video, pixels, direction) for direction in directions
    )
    index = torch.arange(count, device=pixels.device)
    ones = torch.ones(count, device=pixels.device)
    zeros = torch.zeros(count, device=pixels.device)
    return Batch(
        points_px=torch.cat([*gradient_pixels, forward, backward, *rigidity_neighbours]).float(),
        num_color=3 * count,
        num_alpha=5 * count,
        samples=index,
        samples_weight=ones,
        samples_rgb=read_colors(video, pixels),
        samples_mask=read_masks(video, pixels),
        gradient=torch.stack((index, index + count, index + 2 * count)),
        gradient_weight=next_pixels_weight(video, pixels),
        gradient_target=color_steps(read_colors(video, torch.stack(gradient_pixels))),
        rigidity=torch.stack((index, index + 5 * count, index + 6 * count)),
        rigidity_weight=ones,
        global_rigidity=index,
        global_rigidity_weight=ones,
        flow=torch.cat((index, index)),
        flow_weight=torch.stack((torch.cat((forward_weight, zeros)), torch.cat((zeros, backward_weight)))),
    )


def make_tile_batch(video: Video, corners: Tensor, direction: Tensor, config: Config) -> Batch:
    """Return the batch of square tiles.

    corners: (N, 3) integer upper-left pixels, which may lie outside the frame. direction: (N,) FORWARD or BACKWARD,
    the flow of each tile. The pixels of a tile are samples and each other's neighbours: the gradient term uses the
    pixels whose right and lower neighbours are in the tile, rigidity those whose left and upper neighbours are. Pixels
    outside the frame have weight 0, so every pixel of the clip is drawn equally often for every term.
    """
    side, step = config.tile_size, config.derivative_amount
    row = torch.arange(side, device=corners.device)
    offsets = torch.stack(torch.meshgrid(row, row, row.new_zeros(1), indexing="xy"), dim=-1).view(-1, 3)
    pixels = (corners[:, None] + offsets).view(-1, 3)
    index = torch.arange(len(pixels), device=corners.device).view(-1, side, side)
    matches, match_weight = flow_matches(video, pixels, direction.repeat_interleave(side * side))
    is_forward = (direction == FORWARD).repeat_interleave(side * side)
    weight = inside_weight(video, pixels)
    gradient = torch.stack((index[:, :-1, :-1], index[:, :-1, 1:], index[:, 1:, :-1])).flatten(1)
    rigidity = torch.stack((index[:, step:, step:], index[:, step:, :-step], index[:, :-step, step:])).flatten(1)
    global_rigidity = index[:, 0, 0]
    return Batch(
        points_px=torch.cat((pixels, matches)).float(),
        num_color=len(pixels),
        num_alpha=2 * len(pixels),
        samples=index.flatten(),
        samples_weight=weight,
        samples_rgb=read_colors(video, pixels),
        samples_mask=read_masks(video, pixels),
        gradient=gradient,
        gradient_weight=next_pixels_weight(video, pixels[gradient[0]]),
        gradient_target=color_steps(read_colors(video, pixels[gradient])),
        rigidity=rigidity,
        rigidity_weight=weight[rigidity[0]],
        global_rigidity=global_rigidity,
        global_rigidity_weight=weight[global_rigidity],
        flow=index.flatten(),
        flow_weight=torch.stack((match_weight * is_forward, match_weight * ~is_forward)),
    )


def random_pixels(count: int, low: tuple[int, int, int], high: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw integers (count, 3), uniform from low to high - 1 in each column, on the device of `rng`."""
    columns = [
        torch.randint(first, end, (count,), generator=rng, device=rng.device)
        for first, end in zip(low, high, strict=True)
    ]
    return torch.stack(columns, dim=1)


def draw_batch(video: Video, config: Config, rng: torch.Generator) -> Batch:
    """Draw the batch of one iteration: `samples_batch` pixels, uniform over the clip, rounded to whole tiles.

    Several processes that train together draw the same batch, and each takes a part of it.
    """
    own = slice(processes.rank(), None, processes.count())
    frames, height, width = video.size
    if config.sampling == "published":
        pixels = random_pixels(config.samples_batch, (0, 0, 0), (width, height, frames), rng)
        return make_published_batch(video, pixels[own], config)
    side = config.tile_size
    count = max(1, round(config.samples_batch / side**2))
    corners = random_pixels(count, (1 - side, 1 - side, 0), (width, height, frames), rng)
    direction = torch.randint(0, 2, (count,), generator=rng, device=rng.device)
    return make_tile_batch(video, corners[own], direction[own], config)
