"""Views of the shared atlas: which part of it an image shows, and which of its texels are visible in frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from implicit_neural_networks import CHUNK, Model, uv_to_atlas
from parallel.side_by_side import MOST_STREAM_WORKERS, count_cores, map_side_by_side
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame

MOST_MARKED_POINTS = 4_000_000  # Most positions that are interpolated for one frame; it bounds the memory.
STRIP_POINTS = 100_000  # Positions that are worked on at once.


Size = int | tuple[int, int]  # (width, height) of an image in pixels, or the side of a square image


def as_width_and_height(size: Size) -> tuple[int, int]:
    """Return (width, height) of an image."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class AtlasView:
    """The part of the shared atlas that an image shows.

    The centers of the outermost pixels of the image lie on the border of this part.
    """

    left: float
    top: float
    edge: float  # width of the part, in units of atlas_uv
    height: float | None = None  # None: as high as it is wide

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the part, in units of atlas_uv."""
        return self.edge, self.edge if self.height is None else self.height

    def to_pixels(self, atlas_uv: Tensor, size: Size) -> Tensor:
        """Convert atlas_uv (..., 2) to pixel positions (x, y) in an image of this view.

        size: (width, height) of the image in pixels, or the side of a square image.
        """
        width, height = as_width_and_height(size)
        corner = atlas_uv.new_tensor([self.left, self.top])
        return (atlas_uv - corner) / atlas_uv.new_tensor(self.extent) * atlas_uv.new_tensor([width - 1, height - 1])

    def uv_grid(self, size: Size, device: torch.device | str = "cpu") -> Tensor:
        """Return atlas_uv of every pixel of an image of this view, row by row, (width * height, 2).

        size: (width, height) of the image in pixels, or the side of a square image.
        """
        width, height = as_width_and_height(size)
        u = self.left + self.extent[0] * torch.linspace(0, 1, width, device=device)
        v = self.top + self.extent[1] * torch.linspace(0, 1, height, device=device)
        return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).view(-1, 2)


def compute_atlas_uv(model: Model, frame: Frame) -> Tensor:
    """Return the positions of all pixels in the shared atlas, for each layer: (L, H, W, 2) on the CPU."""
    return uv_to_atlas(torch.from_numpy(frame.uv), model.atlas_centers[:, None].cpu())


def fit_atlas_views(model: Model, frames: Iterable[Frame]) -> list[AtlasView]:
    """Return the view that each layer's atlas image shows, as published.

    An object's image shows its whole square. The background's image shows a square crop: its corner is the smallest
    (u, v) and its side the larger extent over the pixels that use the background. If no pixel uses the background, its
    image shows the whole square.
    """
    low, high = np.full(2, np.inf, np.float32), np.full(2, -np.inf, np.float32)
    for frame in frames:
        if (uses_background := frame.uses_background).any():
            u, v = (frame.uv[-1, ..., axis][uses_background] for axis in (0, 1))
            low, high = np.minimum(low, (u.min(), v.min())), np.maximum(high, (u.max(), v.max()))
    centers = model.atlas_centers[:, 0].cpu()
    views = [AtlasView(center[0] - 0.5, center[1] - 0.5, 1.0) for center in centers.tolist()]
    low, high = (uv_to_atlas(corner, centers[-1].numpy()) for corner in (low, high))
    extent = float((high - low).max())
    if np.isfinite(extent) and extent > 0:
        views[-1] = AtlasView(float(low[0]), float(low[1]), extent)
    return views


@torch.no_grad()
def render_atlas(model: Model, view: AtlasView, size: Size, mask: NDArray[np.bool_] | None = None) -> Floats:
    """Render the learned atlas over a view, (height, width, 3) in [0, 1].

    size: (width, height) of the image in pixels, or the side of a square image. mask (height, width): only these
    texels are rendered and the others stay black; None renders all.
    """
    width, height = as_width_and_height(size)
    device = next(model.parameters()).device
    atlas_uv = view.uv_grid(size, device)
    texels = torch.arange(width * height) if mask is None else torch.from_numpy(np.flatnonzero(mask))
    image = torch.zeros(width * height, 3)
    for part in texels.split(CHUNK.get(device.type, CHUNK["cpu"])):
        image[part] = model.atlas_color(atlas_uv[part.to(device)]).cpu()
    return image.view(height, width, 3).numpy()


def measure_texel_visibility(model: Model, store: FrameStore, layer: int, view: AtlasView, size: Size) -> Tensor:
    """Return the largest visibility of each texel of a layer's atlas image in any frame, (height, width).

    view and size: the part of the shared atlas that the image shows, and its size in pixels.
    """
    width, height = as_width_and_height(size)

    def mark_frames(numbers: range) -> Tensor:
        """Return the largest visibility in some of the frames."""
        texel_visibility = torch.zeros(height, width)
        for frame in map(store.frame, numbers):
            visibility = torch.from_numpy(frame.visibility[layer])
            mark_visible_texels(texel_visibility, view, compute_atlas_uv(model, frame)[layer], visibility)
        return texel_visibility

    # Each part holds an image of its own.
    parts = max(1, min(count_cores(), MOST_STREAM_WORKERS, store.count))
    images = map_side_by_side(mark_frames, [range(first, store.count, parts) for first in range(parts)])
    return reduce(torch.maximum, images)


def mark_visible_texels(texel_visibility: Tensor, view: AtlasView, atlas_uv: Tensor, visibility: Tensor) -> None:
    """Raise the visibility of the atlas texels that a frame shows, in place.

    texel_visibility (h, w): the largest visibility of each texel in the frames so far. atlas_uv (H, W, 2) and
    visibility (H, W): those of one layer in the frame. Both are interpolated between the pixels of the frame, finely
    enough that neighbouring positions leave no holes in the atlas.
    """
    height, width = texel_visibility.shape
    rows, columns = torch.where(visibility > VISIBLE)
    if len(rows) == 0:
        return
    box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
    positions = view.to_pixels(atlas_uv[box], (width, height))
    values = torch.stack((*positions.unbind(-1), visibility[box]))  # planes of x, y and visibility
    for x, y, values_at in refine_strips(values):
        x, y = x.round_(), y.round_()
        # Positions outside the image get visibility 0 at the nearest border texel, which changes nothing.
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = y.clamp_(0, height - 1).long().mul_(width).add_(x.clamp_(0, width - 1).long())
        texel_visibility.view(-1).scatter_reduce_(0, index.view(-1), (values_at * is_inside).view(-1), "amax")


def refine_strips(values: Tensor) -> Iterator[Tensor]:
    """Interpolate planes (3, h, w) of x, y and visibility so finely that positions leave no holes between texels.

    Yields them in strips of rows, (3, r, c), which are small enough for the cache.
    """
    rows, columns = values.shape[1:]
    factor = refinement_factor(values[:2]) if min(rows, columns) > 1 else 1
    if factor == 1:
        yield values
        return
    step = max(1, STRIP_POINTS // (columns * factor**2))
    for top in range(0, rows - 1, step):
        strip = values[:, top : top + step + 1]  # The last row of a strip is the first one of the next.
        shape = [(side - 1) * factor + 1 for side in strip.shape[1:]]
        yield functional.interpolate(strip[None], shape, mode="bilinear", align_corners=True)[0]


def refinement_factor(positions: Tensor) -> int:
    """Return by which factor positions (2, h, w) have to be refined so that they leave no holes between texels."""
    steps = torch.cat([positions.diff(dim=axis).square().sum(0).sqrt().flatten() for axis in (1, 2)])
    large_step = float(steps.kthvalue(max(1, int(0.95 * len(steps)))).values)  # few steps are larger
    largest = int((MOST_MARKED_POINTS / positions[0].numel()) ** 0.5)
    return max(1, min(largest, int(np.ceil(2 * large_step))))
