"""Views of the shared atlas: which part of it an image shows, and which of its texels are visible in frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import cv2
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
UNSEEN_CHANGE = 1 / 256  # Changes of visibility below a grey level are left out.
FAR = 2.0  # Steps between pixels that are longer than this multiple of what few exceed count as torn.
MOST_REACH = 15  # Texels around a position up to which it is worth to look whether all of them are marked.
MOST_POSITIONS = 100_000  # Positions that are worked on at once.


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
    center = model.atlas_centers[layer].cpu()

    def mark_frames(numbers: range) -> Tensor:
        """Return the largest visibility in some of the frames."""
        texel_visibility = torch.zeros(height, width)
        for frame in map(store.frame, numbers):
            atlas_uv = uv_to_atlas(torch.from_numpy(frame.uv[layer]), center)
            mark_visible_texels(texel_visibility, view, atlas_uv, torch.from_numpy(frame.visibility[layer]))
        return texel_visibility

    # Each part holds an image of its own.
    parts = max(1, min(count_cores(), MOST_STREAM_WORKERS, store.count))
    images = map_side_by_side(mark_frames, [range(first, store.count, parts) for first in range(parts)])
    return reduce(torch.maximum, images)


def mark_visible_texels(texel_visibility: Tensor, view: AtlasView, atlas_uv: Tensor, visibility: Tensor) -> None:
    """Raise the visibility of the atlas texels that a frame shows, in place.

    texel_visibility (h, w): the largest visibility of each texel in the frames so far. atlas_uv (H, W, 2) and
    visibility (H, W): those of one layer in the frame. Both are interpolated between the pixels of the frame, finely
    enough that neighbouring positions leave no holes in the atlas. Pixels that change nothing are left out:
    most of what a frame shows, the frames before it have shown, too.
    """
    height, width = texel_visibility.shape
    rows, columns = torch.where(visibility > VISIBLE)
    if len(rows) == 0:
        return
    box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
    positions = view.to_pixels(atlas_uv[box], (width, height))
    values = torch.stack((*positions.unbind(-1), visibility[box]))  # planes of x, y and visibility
    steps = torch.cat([values[:2].diff(dim=axis).square().sum(0).sqrt().flatten() for axis in (1, 2)])
    # Few steps are larger than this one.
    large_step = float(steps.kthvalue(max(1, int(0.95 * len(steps)))).values) if len(steps) else 0.0
    may_change = find_changes(values, texel_visibility, FAR * large_step)
    for x, y, values_at in refine_cells(values, may_change, refinement_factor(large_step, values[0].numel())):
        x, y = x.round_(), y.round_()
        # Positions outside the image get visibility 0 at the nearest border texel, which changes nothing.
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = y.clamp_(0, height - 1).long().mul_(width).add_(x.clamp_(0, width - 1).long())
        texel_visibility.view(-1).scatter_reduce_(0, index.view(-1), (values_at * is_inside).view(-1), "amax")


def find_changes(values: Tensor, texel_visibility: Tensor, longest: float) -> NDArray[np.bool_]:
    """Return the pixels (h, w) of a frame around which it may raise the visibility of a texel.

    values: planes (3, h, w) of x, y and visibility. longest: in texels. Up to the neighbours of a pixel, positions lie
    within two steps of at most this length, or the pixel counts. If all texels there have the visibility that the pixel
    and its neighbours have, up to UNSEEN_CHANGE, nothing changes.
    """
    height, width = texel_visibility.shape
    planes: Floats = values.numpy()
    reach = int(np.ceil(2 * longest)) + 1
    if reach > MOST_REACH:
        return np.ones(planes.shape[1:], bool)
    columns, rows = (
        np.rint(plane).clip(0, last - 1).astype(np.intp)
        for plane, last in zip(planes[:2], (width, height), strict=True)
    )
    top, left = max(0, int(rows.min()) - reach), max(0, int(columns.min()) - reach)
    shown = texel_visibility[top : int(rows.max()) + reach + 1, left : int(columns.max()) + reach + 1].numpy()
    least = np.asarray(cv2.erode(shown, np.ones((2 * reach + 1,) * 2, np.uint8)))
    most = np.asarray(cv2.dilate(planes[2], np.ones((3, 3), np.uint8)))
    may_change = most > least[rows - top, columns - left] + UNSEEN_CHANGE
    for axis in (0, 1):
        first = [slice(None)] * 2
        first[axis] = slice(None, -1)
        may_change[tuple(first)] |= np.square(np.diff(planes[:2], axis=axis + 1)).sum(0) > longest**2
    return may_change


def refine_cells(values: Tensor, is_chosen: NDArray[np.bool_], factor: int) -> Iterator[Tensor]:
    """Interpolate planes (3, h, w) of x, y and visibility by a factor between pixels of which any is chosen, (h, w).

    Yields the planes of some positions at a time, (3, n), which are few enough for the cache.
    """
    columns = is_chosen.shape[1]
    # A last row and column again, so that each pixel is the first corner of a cell.
    corners = functional.pad(values[None], (0, 1, 0, 1), mode="replicate")[0].flatten(1)
    is_needed = np.asarray(cv2.dilate(is_chosen.astype(np.uint8), np.ones((2, 2), np.uint8), anchor=(0, 0)))
    row, column = torch.from_numpy(np.argwhere(is_needed)).unbind(1)
    first = row * (columns + 1) + column
    shares = torch.arange(factor) / factor
    down, across = (each.flatten() for each in torch.meshgrid(shares, shares, indexing="ij"))
    weights = torch.stack(((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across))
    for part in first.split(max(1, MOST_POSITIONS // factor**2)):
        around = torch.stack([part, part + 1, part + columns + 1, part + columns + 2], dim=-1)
        yield (corners[:, around] @ weights).flatten(1)


def refinement_factor(large_step: float, pixels: int) -> int:
    """Return by which factor positions have to be refined so that they leave no holes between texels.

    large_step: distance in texels of the positions of neighbouring pixels that few exceed. pixels: their number.
    """
    largest = int((MOST_MARKED_POINTS / pixels) ** 0.5)
    return max(1, min(largest, int(np.ceil(2 * large_step))))
