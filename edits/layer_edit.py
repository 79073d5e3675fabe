"""An edit: a premultiplied RGBA picture over a part of a layer's atlas."""

from functools import cached_property

from torch import Tensor

from edits.mipmap import MipMap
from rendering import AtlasView, Floats


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

    def seen_by(self, places: Tensor) -> Floats:
        """The edit (H, W, 4) at a frame's places (H, W, 2) in the shared atlas."""
        size = (self.rgba.shape[1], self.rgba.shape[0])
        return self.pyramid.at(self.view.pixels(places, size)).numpy()

    def faded(self, opacity: float) -> "LayerEdit":
        """The same at a share of its opacity."""
        return LayerEdit(self.layer, self.rgba * opacity, self.view, self.sharp_texels)
