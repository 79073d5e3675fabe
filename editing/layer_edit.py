"""An edit: a premultiplied RGBA picture over a part of a layer's atlas."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from editing.mipmap import MipMap
from implicit_neural_networks import visibility
from rendering.atlas_view import AtlasView
from rendering.frames import Floats, Frame

CLEAR, SOLID = 0.08, 0.85  # opacity up to the first carries no paint of an object, from the second on all of it


class LayerEdit:
    """A picture over a part of one layer's atlas; reading it at a frame's places is all that rendering asks of it."""

    def __init__(self, layer: int, rgba: Tensor, view: AtlasView, sharp_texels: float = 2.0):
        """rgba (h, w, 4) in [0, 1], colour premultiplied by opacity.

        sharp_texels: so many texels a pixel may cover before it takes their average.
        """
        self.layer, self.rgba, self.view, self.sharp_texels = layer, rgba, view, sharp_texels

    @cached_property
    def pyramid(self) -> MipMap:
        return MipMap(self.rgba, self.sharp_texels)

    def sample(self, places: Tensor) -> Floats:
        """The edit (H, W, 4) at a frame's places (H, W, 2) in the shared atlas."""
        size = (self.rgba.shape[1], self.rgba.shape[0])
        return self.pyramid.sample(self.view.to_pixels(places, size)).numpy()

    def scale_opacity(self, opacity: float) -> "LayerEdit":
        """The same at a share of its opacity."""
        return LayerEdit(self.layer, self.rgba * opacity, self.view, self.sharp_texels)


def paint_visibility(frame: Frame) -> Floats:
    """(L, H, W): share with which each layer carries paint in each pixel.

    As `visibility`, but learned opacity seldom is quite 0 or 1 inside or outside an object: what is close counts as
    that, so that opaque paint hides what is below it and leaves no flecks on the other layer. Not where the published
    range of opacity is asked for, to compare.
    """
    if not frame.full_range:
        return frame.visibility
    levelled = np.clip((frame.alpha - CLEAR) / (SOLID - CLEAR), 0, 1)
    return visibility(torch.from_numpy(levelled)).numpy()
