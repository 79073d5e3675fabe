"""Views of the shared atlas: which part of it an image shows, and which of its texels are visible in frames."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from implicit_neural_networks import CHUNK, Model, uv_to_atlas
from rendering.frames import VISIBLE, Floats, Frame

MOST_MARKED_POINTS = 4_000_000  # Most positions that are interpolated for one frame; it bounds the memory.


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

    def to_pixels(self, atlas_uv: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Convert atlas_uv (..., 2) to pixel positions (x, y) in an image of this view.

        size: (width, height) of the image in pixels, or the side of a square image.
        """
        width, height = (size, size) if isinstance(size, int) else size
        corner = atlas_uv.new_tensor([self.left, self.top])
        return (atlas_uv - corner) / atlas_uv.new_tensor(self.extent) * atlas_uv.new_tensor([width - 1, height - 1])

    def uv_grid(self, size: int | tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Return atlas_uv of every pixel of an image of this view, row by row, (width * height, 2).

        size: (width, height) of the image in pixels, or the side of a square image.
        """
        width, height = (size, size) if isinstance(size, int) else size
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
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for frame in frames:
        atlas_uv = compute_atlas_uv(model, frame)[-1].numpy()[frame.uses_background]
        if len(atlas_uv):
            low, high = np.minimum(low, atlas_uv.min(0)), np.maximum(high, atlas_uv.max(0))
    views = [AtlasView(center[0] - 0.5, center[1] - 0.5, 1.0) for center in model.atlas_centers[:, 0].tolist()]
    extent = float((high - low).max())
    if np.isfinite(extent) and extent > 0:
        views[-1] = AtlasView(float(low[0]), float(low[1]), extent)
    return views


@torch.no_grad()
def render_atlas(
    model: Model, view: AtlasView, size: int | tuple[int, int], mask: NDArray[np.bool_] | None = None
) -> Floats:
    """Render the learned atlas over a view, (height, width, 3) in [0, 1].

    size: (width, height) of the image in pixels, or the side of a square image. mask (height, width): only these
    texels are rendered and the others stay black; None renders all.
    """
    width, height = (size, size) if isinstance(size, int) else size
    device = next(model.parameters()).device
    atlas_uv = view.uv_grid(size, device)
    texels = torch.arange(width * height) if mask is None else torch.from_numpy(np.flatnonzero(mask))
    image = torch.zeros(width * height, 3)
    for part in texels.split(CHUNK.get(device.type, CHUNK["cpu"])):
        image[part] = model.atlas_color(atlas_uv[part.to(device)]).cpu()
    return image.view(height, width, 3).numpy()


def mark_visible_texels(texel_visibility: Tensor, view: AtlasView, atlas_uv: Tensor, visibility: Tensor) -> None:
    """Raise the visibility of the atlas texels that a frame shows, in place.

    texel_visibility (h, w): the largest visibility of each texel in the frames so far. atlas_uv (H, W, 2) and
    visibility (H, W): those of one layer in the frame. Both are interpolated between the pixels of the frame, finely
    enough that neighbouring positions leave no holes in the atlas.
    """
    size = (texel_visibility.shape[1], texel_visibility.shape[0])
    rows, columns = torch.where(visibility > VISIBLE)
    if len(rows) == 0:
        return
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    positions, visibility = view.to_pixels(atlas_uv[top:bottom, left:right], size), visibility[top:bottom, left:right]
    if min(positions.shape[:2]) > 1:
        steps = torch.cat((positions.diff(dim=0).norm(dim=-1).flatten(), positions.diff(dim=1).norm(dim=-1).flatten()))
        largest_factor = int((MOST_MARKED_POINTS / visibility.numel()) ** 0.5)
        factor = max(1, min(largest_factor, int(np.ceil(2 * float(steps.quantile(0.95))))))
        if factor > 1:
            shape = ((positions.shape[0] - 1) * factor + 1, (positions.shape[1] - 1) * factor + 1)
            stack = torch.cat((positions, visibility[..., None]), dim=-1).permute(2, 0, 1)[None]
            stack = functional.interpolate(stack, shape, mode="bilinear", align_corners=True)[0]
            positions, visibility = stack[:2].permute(1, 2, 0), stack[2]
    texels = positions.round().long()
    is_inside = ((texels >= 0) & (texels < texels.new_tensor(size))).all(-1)
    index = texels[is_inside] @ texels.new_tensor([1, size[0]])
    texel_visibility.view(-1).scatter_reduce_(0, index, visibility[is_inside], "amax")
