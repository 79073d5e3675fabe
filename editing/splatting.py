"""Frame edits: paint on frames is moved into the atlases, by splatting it through the mapping of each layer."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from editing.layer_edit import LayerEdit, paint_visibility
from implicit_neural_networks import Model
from rendering.atlas_view import AtlasView, compute_atlas_uv
from rendering.frames import Floats, Frame

UPSAMPLING = 4  # Factor by which a frame edit is upsampled before splatting, so that no holes open between its pixels.
TEXELS_PER_PIXEL = 2  # Texels of the atlas square per pixel of the frame, along each axis.
STRIP_ROWS = 64  # Rows of a frame that are splatted at once; it bounds the memory.
LARGEST_SQUARE_PX = 4096  # Largest side of the atlas square in texels.
STEP_QUANTILE = 0.1  # The square resolves all but this share of the steps between neighbouring pixels.
LEAST_VISIBILITY = 0.1  # Paint on a layer fades out where the visibility of the layer is below this.


def splat_frame(model: Model, frame: Frame, rgba: Floats, layers: list[int]) -> list[LayerEdit]:
    """Turn paint on a rendered frame into edits of the given layers.

    rgba (H, W, 4): the paint, premultiplied, of the same size as the frame. Layers that show no paint get no edit.
    """
    atlas_uv, visibility = compute_atlas_uv(model, frame), torch.from_numpy(paint_visibility(frame))
    edits = (splat_frame_edit(rgba, layer, atlas_uv[layer], visibility[layer]) for layer in layers)
    return [edit for edit in edits if edit is not None]


@dataclass
class Paint:
    """Paint on one frame, and the layer that takes it."""

    rgba: Tensor  # (H, W, 4), premultiplied
    atlas_uv: Tensor  # (H, W, 2) of the layer
    visibility: Tensor  # (H, W) of the layer

    def crop(self) -> "Paint | None":
        """Return the part around the painted pixels that show the layer; None if there are none."""
        rows, columns = torch.where((self.rgba[..., 3] > 0) & (self.visibility > LEAST_VISIBILITY / 2))
        if len(rows) == 0:
            return None
        box = slice(max(rows.min() - 2, 0), rows.max() + 3), slice(max(columns.min() - 2, 0), columns.max() + 3)
        return Paint(self.rgba[box], self.atlas_uv[box], self.visibility[box])


def splat_frame_edit(rgba: Floats, layer: int, atlas_uv: Tensor, visibility: Tensor) -> LayerEdit | None:
    """Turn paint on one frame into an edit of one layer; None if the layer shows none of it.

    rgba (H, W, 4): the paint, premultiplied. atlas_uv (H, W, 2) and visibility (H, W): those of the layer.
    """
    return splat_paint(layer, [Paint(torch.from_numpy(rgba), atlas_uv, visibility)])


def splat_attached(model: Model, frame: Frame, rgba: Floats, layer: int) -> LayerEdit | None:
    """Turn paint on a frame into an edit of one object that follows it beyond its outline; None without paint.

    frame: as `editing.attachment.attach_paint` returns it. rgba (H, W, 4): the paint, premultiplied.
    """
    everywhere = torch.ones(rgba.shape[:2])
    edit = splat_paint(layer, [Paint(torch.from_numpy(rgba), compute_atlas_uv(model, frame)[layer], everywhere)])
    return None if edit is None else replace(edit, is_attached=True)


def splat_paint(layer: int, paints: list[Paint]) -> LayerEdit | None:
    """Turn paint on several frames into one edit of a layer; None if the layer shows none of it.

    A texel takes the average of the paint of all pixels that land on it, weighted by the layer's visibility. The
    weights are divided out, because the visibility is applied when the edit is rendered. Texels fade out if only
    pixels that hardly show the layer land on them.
    """
    parts = [part for paint in paints if (part := paint.crop()) is not None]
    if not parts:
        return None
    view, size = fit_atlas_square([part.atlas_uv for part in parts])
    sums = torch.zeros(size, size, 6)
    for part in parts:
        stack = torch.cat((part.atlas_uv, part.visibility[..., None], part.rgba), dim=-1)
        for top in range(0, max(len(stack) - 1, 1), STRIP_ROWS):
            is_last = top + STRIP_ROWS + 1 >= len(stack)
            atlas_uv, visibility, rgba = upsample_strip(stack[top : top + STRIP_ROWS + 1], is_last)
            values = torch.cat((rgba * visibility, visibility, torch.ones_like(visibility)), dim=1)
            splat(sums, values, view.to_pixels(atlas_uv, size))
    sums = fill_holes(sums)
    weight, count = sums[..., 4:5], sums[..., 5:]
    mean_visibility = weight / count.clamp(min=1e-6)
    fade = (mean_visibility / LEAST_VISIBILITY - 0.5).clamp(0, 1)
    return LayerEdit(layer, sums[..., :4] / weight.clamp(min=1e-6) * fade, view, 2 * TEXELS_PER_PIXEL)


def fit_atlas_square(fields: list[Tensor]) -> tuple[AtlasView, int]:
    """Return the smallest square of the atlas around all atlas_uv, and its side in texels.

    fields: atlas_uv of each frame, (H, W, 2). The side resolves the steps between neighbouring pixels.
    """
    low = torch.stack([atlas_uv.flatten(0, 1).amin(0) for atlas_uv in fields]).amin(0)
    high = torch.stack([atlas_uv.flatten(0, 1).amax(0) for atlas_uv in fields]).amax(0)
    edge = max(float((high - low).max()), 1e-6)
    steps = (atlas_uv.diff(dim=axis).norm(dim=-1) for atlas_uv in fields for axis in (0, 1))
    quantiles = (float(step.flatten().quantile(STEP_QUANTILE)) for step in steps if step.numel())
    smallest_step = min(quantiles, default=edge)
    texels = edge / max(smallest_step, 1e-9) * TEXELS_PER_PIXEL
    return AtlasView(float(low[0]), float(low[1]), edge), int(min(max(texels, 2), LARGEST_SQUARE_PX)) + 1


def upsample_strip(strip: Tensor, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Upsample rows (h, w, 7) of atlas_uv, visibility and paint, and split them: (N, 2), (N, 1) and (N, 4).

    The last row is left out unless the strip is the last one, because it is the first row of the next strip.
    """
    shape = [(side - 1) * UPSAMPLING + 1 for side in strip.shape[:2]]
    fine = functional.interpolate(strip.permute(2, 0, 1)[None], shape, mode="bilinear", align_corners=True)[0]
    fine = fine if is_last else fine[:, :-1]
    return fine.flatten(1).T.split((2, 1, 4), dim=1)


def splat(sums: Tensor, values: Tensor, positions: Tensor) -> None:
    """Add values (N, C) to the texels of sums (S, S, C), in place.

    A value is divided among the four texels around its position (N, 2), with bilinear weights.
    """
    size, sums = len(sums), sums.view(-1, sums.shape[-1])
    corner = positions.floor().clamp(0, size - 2)
    right, lower = (positions - corner).clamp(0, 1).unbind(1)
    x, y = corner.long().unbind(1)
    for dx, across in ((0, 1 - right), (1, right)):
        for dy, down in ((0, 1 - lower), (1, lower)):
            sums.index_add_(0, (y + dy) * size + x + dx, values * (across * down)[:, None])


def fill_holes(sums: Tensor) -> Tensor:
    """Fill the texels that no pixel reached with the mean of the 3 x 3 texels around them, twice.

    sums (S, S, C): the last channel counts the pixels that reached a texel.
    """
    for _ in range(2):
        mean = functional.avg_pool2d(sums.permute(2, 0, 1)[None], 3, stride=1, padding=1)[0].permute(1, 2, 0)
        sums = torch.where(sums[..., -1:] > 1e-3, sums, mean)
    return sums
