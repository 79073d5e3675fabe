"""Views of the shared atlas: which part of it an image shows, and which of its texels frames see."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from implicit_neural_networks import CHUNK, Model
from rendering.frames import VISIBLE, Floats, Frame

MOST_MARKED_POINTS = 4_000_000  # at most so many interpolated places mark what an atlas shows of one frame


@dataclass(frozen=True)
class AtlasView:
    """The part of the shared atlas that an image shows. Its first and last pixels lie on the part's border."""

    left: float
    top: float
    edge: float  # its width, and its height where that is no other
    height: float | None = None

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height)."""
        return self.edge, self.edge if self.height is None else self.height

    def to_pixels(self, places: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Places (..., 2) in the shared atlas to image pixels (x, y) of an image of `size` (width, height)."""
        width, height = (size, size) if isinstance(size, int) else size
        corner = places.new_tensor([self.left, self.top])
        return (places - corner) / places.new_tensor(self.extent) * places.new_tensor([width - 1, height - 1])

    def uv_grid(self, size: int | tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """(width * height, 2): the place of every pixel of an image of `size` (width, height), row by row."""
        width, height = (size, size) if isinstance(size, int) else size
        u = self.left + self.extent[0] * torch.linspace(0, 1, width, device=device)
        v = self.top + self.extent[1] * torch.linspace(0, 1, height, device=device)
        return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).view(-1, 2)


def atlas_uv(model: Model, frame: Frame) -> Tensor:
    """(L, H, W, 2) on the CPU: the frame's places in the shared atlas."""
    return 0.5 * torch.from_numpy(frame.uv) + model.atlas_centers[:, None].cpu()


def fit_atlas_views(model: Model, frames: Iterable[Frame]) -> list[AtlasView]:
    """What each layer's atlas image shows: a foreground's own square; of the background the square in use.

    The latter's corner is the smallest (u, v), its side the larger extent, over the pixels that use the background.
    A background that is never seen keeps its whole square.
    """
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for frame in frames:
        places = atlas_uv(model, frame)[-1].numpy()[frame.uses_background]
        if len(places):
            low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    squares = [AtlasView(center[0] - 0.5, center[1] - 0.5, 1.0) for center in model.atlas_centers[:, 0].tolist()]
    extent = float((high - low).max())
    if np.isfinite(extent) and extent > 0:
        squares[-1] = AtlasView(float(low[0]), float(low[1]), extent)
    return squares


@torch.no_grad()
def render_atlas(
    model: Model, view: AtlasView, size: int | tuple[int, int], wanted: NDArray[np.bool_] | None = None
) -> Floats:
    """(height, width, 3) in [0, 1]: the learned atlas at `size` (width, height), or square; only where `wanted`."""
    width, height = (size, size) if isinstance(size, int) else size
    device = next(model.parameters()).device
    places = view.uv_grid(size, device)
    chosen = torch.arange(width * height) if wanted is None else torch.from_numpy(np.flatnonzero(wanted))
    image = torch.zeros(width * height, 3)
    for part in chosen.split(CHUNK.get(device.type, CHUNK["cpu"])):
        image[part] = model.atlas_color(places[part.to(device)]).cpu()
    return image.view(height, width, 3).numpy()


def mark_visible_texels(seen: Tensor, view: AtlasView, places: Tensor, share: Tensor) -> None:
    """Raise `seen` (h, w) to the share (H, W) with which the frame's places (H, W, 2) are visible.

    Places are interpolated between pixels as finely as the atlas is finer than the frame, so that no holes are left.
    """
    size = (seen.shape[1], seen.shape[0])
    rows, columns = torch.where(share > VISIBLE)
    if len(rows) == 0:
        return
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    places, share = view.to_pixels(places[top:bottom, left:right], size), share[top:bottom, left:right]
    if min(places.shape[:2]) > 1:
        gaps = torch.cat((places.diff(dim=0).norm(dim=-1).flatten(), places.diff(dim=1).norm(dim=-1).flatten()))
        affordable = int((MOST_MARKED_POINTS / share.numel()) ** 0.5)
        finer = max(1, min(affordable, int(np.ceil(2 * float(gaps.quantile(0.95))))))
        if finer > 1:
            shape = ((places.shape[0] - 1) * finer + 1, (places.shape[1] - 1) * finer + 1)
            stack = torch.cat((places, share[..., None]), dim=-1).permute(2, 0, 1)[None]
            stack = functional.interpolate(stack, shape, mode="bilinear", align_corners=True)[0]
            places, share = stack[:2].permute(1, 2, 0), stack[2]
    pixels = places.round().long()
    inside = ((pixels >= 0) & (pixels < pixels.new_tensor(size))).all(-1)
    index = pixels[inside] @ pixels.new_tensor([1, size[0]])
    seen.view(-1).scatter_reduce_(0, index, share[inside], "amax")
