"""An edit of one layer: a premultiplied RGBA image over a part of the atlas, sampled without aliasing."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from implicit_neural_networks import visibility
from rendering.atlas_view import AtlasView
from rendering.frames import Floats, Frame
from rendering.resampling import sample_image

TRANSPARENT, OPAQUE = 0.08, 0.85  # Learned opacity up to which paint of an object is absent, and from which it is full.
SMALLEST_SIDE_TEXELS = 2  # Least side of the smallest level of a mipmap.


class MipMap:
    """An image (h, w, C) and its halvings (a mipmap), to sample it without aliasing where pixels cover many texels.

    Colours are premultiplied where the image has opacity.
    """

    def __init__(self, image: Tensor, sharp_texels: float = 2.0):
        """sharp_texels: texels that a pixel may cover before they are averaged; bilinear sampling reads 2."""
        self.levels, self.sharp_texels = [image], sharp_texels
        while min(self.levels[-1].shape[:2]) >= 2 * SMALLEST_SIDE_TEXELS:
            channels = self.levels[-1].permute(2, 0, 1)[None]
            self.levels.append(functional.avg_pool2d(channels, 2)[0].permute(1, 2, 0).contiguous())

    def sample(self, positions: Tensor) -> Tensor:
        """Sample the image at pixel positions (H, W, 2), given for every pixel of a frame: (H, W, C), zero outside.

        The distance between the positions of neighbouring pixels chooses the level; the two nearest are blended.
        """
        level_map = (texels_per_pixel(positions) / self.sharp_texels).clamp(min=1).log2().clamp(0, len(self.levels) - 1)
        height, width = self.levels[0].shape[:2]
        is_inside = ((positions > -1) & (positions < positions.new_tensor([width, height]))).all(-1)
        result = positions.new_zeros(*positions.shape[:2], self.levels[0].shape[2])
        if not bool(is_inside.any()):
            return result
        lowest, highest = int(level_map[is_inside].min()), int(level_map[is_inside].max().ceil())
        for level in range(lowest, highest + 1):
            weight = (1 - (level_map - level).abs()).clamp(min=0)
            level_positions = (positions + 0.5) / 2**level - 0.5  # positions refer to pixel centers
            result = result + weight[..., None] * sample_image(self.levels[level], level_positions)
        return result * is_inside[..., None]


def texels_per_pixel(positions: Tensor) -> Tensor:
    """Return the number of texels that each pixel of a frame covers along its shorter side, (H, W).

    positions (H, W, 2): position of each pixel in the atlas image, in texels. The shorter side is taken because a
    mapping that compresses one direction only would otherwise blur the other direction, too.
    """
    if min(positions.shape[:2]) < 2:
        return torch.ones(positions.shape[:2])
    down, across = (torch.gradient(positions, dim=axis)[0].norm(dim=-1) for axis in (0, 1))
    return torch.minimum(down, across)


@dataclass(eq=False)
class LayerEdit:
    """A premultiplied RGBA image over a part of one layer's atlas."""

    layer: int  # index of the layer
    rgba: Tensor  # (h, w, 4) in [0, 1], colours premultiplied by opacity
    view: AtlasView  # the part of the atlas
    sharp_texels: float = 2.0  # see `MipMap`
    is_attached: bool = False  # the paint follows the object beyond its outline, too
    # The image is no paint: where it is opaque, the object gives way to what is behind it, see `editing.new_shape`.
    is_free_part: bool = False
    blend: str | None = None  # one of BLEND_MODES; None: that of the request
    # Where the image is opaque, the colours of the picture below change by this matrix (3, 3); its own colours are
    # without meaning then.
    adjustment: Floats | None = None
    # How much of the paint shows in each frame, 0 to 1; None: all of it. The weights of paint on several looks add up.
    frame_weights: tuple[float, ...] | None = None
    step: int = 0  # Edits of one step are composited together, and a later step over the result.

    @cached_property
    def mipmap(self) -> MipMap:
        """The mipmap of the image, computed when it is first needed."""
        return MipMap(self.rgba, self.sharp_texels)

    def sample(self, atlas_uv: Tensor) -> Floats:
        """Sample the edit at the atlas_uv (H, W, 2) of a frame: (H, W, 4), premultiplied."""
        size = (self.rgba.shape[1], self.rgba.shape[0])
        return self.mipmap.sample(self.view.to_pixels(atlas_uv, size)).numpy()

    def scale_opacity(self, opacity: float) -> "LayerEdit":
        """Return the same edit with its opacity multiplied by a factor in [0, 1]."""
        return replace(self, rgba=self.rgba * opacity)


def paint_visibility(frame: Frame) -> Floats:
    """Return the visibility with which the paint on each layer shows in each pixel, (L, H, W).

    Learned opacity is seldom exactly 0 outside an object or 1 inside it. Here opacity up to TRANSPARENT counts as 0 and
    opacity from OPAQUE on as 1, so that opaque paint hides what is behind it and no specks appear on other layers. If
    the published range of opacity was asked for, the plain visibility is returned, to compare with published results.
    """
    if not frame.full_range:
        return frame.visibility
    return visibility(torch.from_numpy(paint_alpha(frame))).numpy()


def paint_alpha(frame: Frame) -> Floats:
    """Return the opacity with which objects hide the paint behind them, (L - 1, H, W); see `paint_visibility`."""
    return np.clip((frame.alpha - TRANSPARENT) / (OPAQUE - TRANSPARENT), 0, 1)


def front_transmittance(frame: Frame, layer: int) -> Floats:
    """Return how much of the paint on an object's layer the objects in front of it let through, (H, W)."""
    transmittance = np.ones(frame.alpha.shape[1:], np.float32)
    for alpha in paint_alpha(frame)[:layer]:
        transmittance = transmittance * (1 - alpha)
    return transmittance
