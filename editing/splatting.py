"""Paint on a frame, moved into the layers' atlases: splatted through the mapping and divided out."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from editing.layer_edit import LayerEdit, paint_visibility
from implicit_neural_networks import Model
from rendering.atlas_view import AtlasView, atlas_uv
from rendering.frames import Floats, Frame

FINER = 4  # a frame edit is spread this many times finer than its pixels, so that no hole opens between them
TEXELS_PER_PIXEL = 2  # resolution of the atlas square that a frame edit is spread into
STRIP_ROWS = 64  # rows of a frame that are spread at once, which bounds the memory
LARGEST_SQUARE_PX = 4096
DENSEST = 0.1  # the square resolves all but this share of the steps between neighbouring pixels
LEAST_VISIBILITY = 0.1  # a layer that a painted pixel shows less than this takes a fading part of the paint, then none


def splat_frame(model: Model, frame: Frame, rgba: Floats, layers: list[int]) -> list[LayerEdit]:
    """Paint (H, W, 4), premultiplied, on one rendered frame of that size as edits of the given layers."""
    places, shares = atlas_uv(model, frame), torch.from_numpy(paint_visibility(frame))
    edits = (splat_frame_edit(rgba, layer, places[layer], shares[layer]) for layer in layers)
    return [edit for edit in edits if edit is not None]


@dataclass
class Paint:
    """Paint as one frame shows it."""

    rgba: Tensor  # (H, W, 4), premultiplied
    atlas_uv: Tensor  # (H, W, 2) of the layer, in the shared atlas
    share: Tensor  # (H, W) with which each pixel shows the layer

    def crop(self) -> "Paint | None":
        """The part around what is painted and shows the layer; None if nothing does."""
        rows, columns = torch.where((self.rgba[..., 3] > 0) & (self.share > LEAST_VISIBILITY / 2))
        if len(rows) == 0:
            return None
        box = slice(max(rows.min() - 2, 0), rows.max() + 3), slice(max(columns.min() - 2, 0), columns.max() + 3)
        return Paint(self.rgba[box], self.atlas_uv[box], self.share[box])


def splat_frame_edit(rgba: Floats, layer: int, places: Tensor, share: Tensor) -> LayerEdit | None:
    """Move paint from a frame (H, W, 4), premultiplied, into one layer's atlas; None if the layer shows none of it.

    places (H, W, 2) in the shared atlas; share (H, W) with which each pixel shows the layer.
    """
    return splat_paint(layer, [Paint(torch.from_numpy(rgba), places, share)])


def splat_paint(layer: int, paints: list[Paint]) -> LayerEdit | None:
    """Move paint that several frames show into one layer's atlas; None if they show none of it.

    Where several pixels land on a texel their paint is averaged by share, and divided out once: opacity is not applied
    here, only when the edit is rendered. Texels known only from pixels that hardly show the layer fade out.
    """
    parts = [part for paint in paints if (part := paint.crop()) is not None]
    if not parts:
        return None
    view, size = fit_square([part.atlas_uv for part in parts])
    sums = torch.zeros(size, size, 6)
    for part in parts:
        stack = torch.cat((part.atlas_uv, part.share[..., None], part.rgba), dim=-1)
        for top in range(0, max(len(stack) - 1, 1), STRIP_ROWS):
            pixels, share, rgba = upsample_strip(stack[top : top + STRIP_ROWS + 1], top + STRIP_ROWS + 1 >= len(stack))
            values = torch.cat((rgba * share, share, torch.ones_like(share)), dim=1)
            splat(sums, values, view.to_pixels(pixels, size))
    sums = close_holes(sums)
    total, count = sums[..., 4:5], sums[..., 5:]
    known = total / count.clamp(min=1e-6)
    fade = (known / LEAST_VISIBILITY - 0.5).clamp(0, 1)
    return LayerEdit(layer, sums[..., :4] / total.clamp(min=1e-6) * fade, view, 2 * TEXELS_PER_PIXEL)


def fit_square(places: list[Tensor]) -> tuple[AtlasView, int]:
    """The smallest square of the atlas around places, each (H, W, 2), and its size in texels at their resolution."""
    ends = [(each.flatten(0, 1).amin(0), each.flatten(0, 1).amax(0)) for each in places]
    low, high = torch.stack([end[0] for end in ends]).amin(0), torch.stack([end[1] for end in ends]).amax(0)
    edge = max(float((high - low).max()), 1e-6)
    steps = (each.diff(dim=axis).norm(dim=-1) for each in places for axis in (0, 1))
    gap = min((float(step.flatten().quantile(DENSEST)) for step in steps if step.numel()), default=edge)
    texels = edge / max(gap, 1e-9) * TEXELS_PER_PIXEL
    return AtlasView(float(low[0]), float(low[1]), edge), int(min(max(texels, 2), LARGEST_SQUARE_PX)) + 1


def upsample_strip(strip: Tensor, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (h, W, 7) of places, share and paint, FINER times finer: places (N, 2), shares (N, 1), paint (N, 4).

    The last row belongs to the next strip, but for the last one.
    """
    finer = [(side - 1) * FINER + 1 for side in strip.shape[:2]]
    fine = functional.interpolate(strip.permute(2, 0, 1)[None], finer, mode="bilinear", align_corners=True)[0]
    fine = fine if is_last else fine[:, :-1]
    return fine.flatten(1).T.split((2, 1, 4), dim=1)


def splat(sums: Tensor, values: Tensor, pixels: Tensor) -> None:
    """Add values (N, C) to the four texels of sums (S, S, C) around each position (N, 2), by nearness."""
    size, sums = len(sums), sums.view(-1, sums.shape[-1])
    corner = pixels.floor().clamp(0, size - 2)
    right, lower = (pixels - corner).clamp(0, 1).unbind(1)
    x, y = corner.long().unbind(1)
    for dx, across in ((0, 1 - right), (1, right)):
        for dy, down in ((0, 1 - lower), (1, lower)):
            sums.index_add_(0, (y + dy) * size + x + dx, values * (across * down)[:, None])


def close_holes(sums: Tensor) -> Tensor:
    """Texels that nothing reached take the sum of their reached neighbours, twice; sums (S, S, C), count last."""
    for _ in range(2):
        around = functional.avg_pool2d(sums.permute(2, 0, 1)[None], 3, stride=1, padding=1)[0].permute(1, 2, 0)
        sums = torch.where(sums[..., -1:] > 1e-3, sums, around)
    return sums
