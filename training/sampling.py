"""Which pixels an iteration looks at, and which of their neighbours serve which loss.

Two samplings with the same expected losses. `published`: independent pixels, each with neighbours of its own, which
costs 7 evaluations of each mapping, 5 of opacity and 6 of the atlas per pixel. `tiles`: small squares whose pixels are
one another's neighbours, with one flow direction drawn per tile: 2, 2 and 2."""

from dataclasses import dataclass

import torch
from torch import Tensor

from config import Config
from media.flows import BACKWARD, FORWARD, STEPS
from unwrap_utils import Video


@dataclass
class Batch:
    """Points to evaluate, and the terms they serve. Indices point into `points_px`.

    Points come in three runs: the first `colored` get everything, the flow matches up to `opaque` get a place and an
    opacity, the rest only a place. Weights are 0 or 1 and select what is valid without waiting for the device.
    """

    points_px: Tensor  # (P, 3) (x, y, t)
    num_color: int
    num_alpha: int
    samples: Tensor  # (S,) pixels of the colour, sparsity and bootstrapping terms
    samples_weight: Tensor  # (S,)
    samples_rgb: Tensor  # (S, 3) in [0, 1]
    samples_mask: Tensor  # (F, S) in [0, 1]
    gradient: Tensor  # (3, G) a pixel, its right and its lower neighbour
    gradient_weight: Tensor  # (G,) 0 in the last column and row, which have no neighbour to differ from
    gradient_target: Tensor  # (2, G, 3) x and y differences of the frame's colours
    rigid: Tensor  # (3, R) a pixel, its left and its upper neighbour, derivative_amount away
    rigid_weight: Tensor  # (R,)
    global_rigid: Tensor  # (R',) pixels of the global rigidity; its far neighbours are made where it is on
    global_rigid_weight: Tensor  # (R',)
    flow: Tensor  # (K,) pixels whose match is points_px[colored + k]
    flow_weight: Tensor  # (2, K) valid forward matches, valid backward matches


def colors_at(video: Video, pixels: Tensor) -> Tensor:
    """(..., 3) in [0, 1] of integer pixels (..., 3); outside the frame, the nearest pixel's."""
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    return video.frames[t, y.clamp(0, height - 1), x.clamp(0, width - 1)] / 255


def masks_at(video: Video, pixels: Tensor) -> Tensor:
    """(F, N) in [0, 1] of integer pixels (N, 3)."""
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    return video.masks[:, t, y.clamp(0, height - 1), x.clamp(0, width - 1)] / 255


def inside_frame(video: Video, pixels: Tensor) -> Tensor:
    """(N,) 1 where integer pixels lie in the frame, else 0."""
    _, height, width = video.size
    x, y, _ = pixels.unbind(-1)
    return ((x >= 0) & (x < width) & (y >= 0) & (y < height)).float()


def shift_pixels(pixels: Tensor, dx: int, dy: int) -> Tensor:
    """Integer pixels (N, 3), moved within their frames."""
    x, y, t = pixels.unbind(-1)
    return torch.stack((x + dx, y + dy, t), dim=-1)


def has_next_pixel(video: Video, pixels: Tensor) -> Tensor:
    """(N,) 1 where a pixel has a right and a lower neighbour in the frame, else 0."""
    return inside_frame(video, pixels) * inside_frame(video, shift_pixels(pixels, 1, 1))


def flow_matches(video: Video, pixels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where the flow takes integer pixels (N, 3): (x, y, t) of the match (N, 3), and 1 where it is valid (N,)."""
    _, height, width = video.size
    x, y, t = pixels.unbind(-1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    step = torch.where(direction == FORWARD, STEPS[FORWARD], STEPS[BACKWARD])
    moved = torch.cat((video.flow_px(direction, t, y, x), step[:, None]), dim=1)
    valid = video.flow_valid[direction, t, y, x] * inside_frame(video, pixels)
    return pixels + moved, valid


def color_steps(colors: Tensor) -> Tensor:
    """Colours of (pixel, right, lower), (3, G, 3) -> their x and y differences (2, G, 3)."""
    return colors[1:] - colors[0]


def published_batch(video: Video, pixels: Tensor, config: Config) -> Batch:
    """The published sampling of integer pixels (N, 3): neighbours and both flow matches are evaluated for each."""
    count = len(pixels)
    step = config.derivative_amount
    near = [pixels, shift_pixels(pixels, 1, 0), shift_pixels(pixels, 0, 1)]
    before = [shift_pixels(pixels, -step, 0), shift_pixels(pixels, 0, -step)]
    directions = [torch.full((count,), direction, device=pixels.device) for direction in (FORWARD, BACKWARD)]
    (there, there_valid), (back, back_valid) = (flow_matches(video, pixels, direction) for direction in directions)
    index = torch.arange(count, device=pixels.device)
    everywhere = torch.ones(count, device=pixels.device)
    nothing = torch.zeros(count, device=pixels.device)
    return Batch(
        points_px=torch.cat([*near, there, back, *before]).float(),
        num_color=3 * count,
        num_alpha=5 * count,
        samples=index,
        samples_weight=everywhere,
        samples_rgb=colors_at(video, pixels),
        samples_mask=masks_at(video, pixels),
        gradient=torch.stack((index, index + count, index + 2 * count)),
        gradient_weight=has_next_pixel(video, pixels),
        gradient_target=color_steps(colors_at(video, torch.stack(near))),
        rigid=torch.stack((index, index + 5 * count, index + 6 * count)),
        rigid_weight=everywhere,
        global_rigid=index,
        global_rigid_weight=everywhere,
        flow=torch.cat((index, index)),
        flow_weight=torch.stack((torch.cat((there_valid, nothing)), torch.cat((nothing, back_valid)))),
    )


def tile_batch(video: Video, corners: Tensor, direction: Tensor, config: Config) -> Batch:
    """Square tiles with integer upper-left corners (N, 3), which may lie outside the frame, and a flow direction (N,).

    A tile's pixels are samples, and each other's neighbours: the gradient is taken where the right and lower
    neighbours are in the tile, rigidity where the left and upper ones are. Pixels outside the frame get weight 0, so
    every pixel of the clip is drawn equally often in every role.
    """
    side, step = config.tile_size, config.derivative_amount
    row = torch.arange(side, device=corners.device)
    offsets = torch.stack(torch.meshgrid(row, row, row.new_zeros(1), indexing="xy"), dim=-1).view(-1, 3)
    pixels = (corners[:, None] + offsets).view(-1, 3)
    index = torch.arange(len(pixels), device=corners.device).view(-1, side, side)
    matches, valid = flow_matches(video, pixels, direction.repeat_interleave(side * side))
    forward = (direction == FORWARD).repeat_interleave(side * side)
    weight = inside_frame(video, pixels)
    gradient = torch.stack((index[:, :-1, :-1], index[:, :-1, 1:], index[:, 1:, :-1])).flatten(1)
    rigid = torch.stack((index[:, step:, step:], index[:, step:, :-step], index[:, :-step, step:])).flatten(1)
    global_rigid = index[:, 0, 0]
    return Batch(
        points_px=torch.cat((pixels, matches)).float(),
        num_color=len(pixels),
        num_alpha=2 * len(pixels),
        samples=index.flatten(),
        samples_weight=weight,
        samples_rgb=colors_at(video, pixels),
        samples_mask=masks_at(video, pixels),
        gradient=gradient,
        gradient_weight=has_next_pixel(video, pixels[gradient[0]]),
        gradient_target=color_steps(colors_at(video, pixels[gradient])),
        rigid=rigid,
        rigid_weight=weight[rigid[0]],
        global_rigid=global_rigid,
        global_rigid_weight=weight[global_rigid],
        flow=index.flatten(),
        flow_weight=torch.stack((valid * forward, valid * ~forward)),
    )


def random_pixels(
    count: int, low: tuple[int, int, int], high: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """(count, 3) integers, uniform from low to high - 1 in each column; drawn on the generator's device."""
    columns = [
        torch.randint(first, end, (count,), generator=generator, device=generator.device)
        for first, end in zip(low, high, strict=True)
    ]
    return torch.stack(columns, dim=1)


def draw_batch(video: Video, config: Config, generator: torch.Generator) -> Batch:
    """The batch of one iteration: `samples_batch` pixels (rounded to whole tiles), uniform over the clip."""
    frames, height, width = video.size
    if config.sampling == "published":
        pixels = random_pixels(config.samples_batch, (0, 0, 0), (width, height, frames), generator)
        return published_batch(video, pixels, config)
    side = config.tile_size
    count = max(1, round(config.samples_batch / side**2))
    corners = random_pixels(count, (1 - side, 1 - side, 0), (width, height, frames), generator)
    direction = torch.randint(0, 2, (count,), generator=generator, device=generator.device)
    return tile_batch(video, corners, direction, config)
