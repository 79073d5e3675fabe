"""Pictures sampled without aliasing: a pyramid of ever smaller ones, as finely as the pixels of the frame ask for."""

import torch
from torch import Tensor
from torch.nn import functional

from rendering.resizing import sample_image

SMALLEST_TEXELS = 2


class MipMap:
    """A picture (h, w, C), premultiplied where it has opacity, and its halvings."""

    def __init__(self, picture: Tensor, sharp_texels: float = 2.0):
        """sharp_texels: so many a pixel may cover unfiltered; linear sampling reads two of them."""
        self.levels, self.sharp_texels = [picture], sharp_texels
        while min(self.levels[-1].shape[:2]) >= 2 * SMALLEST_TEXELS:
            planes = self.levels[-1].permute(2, 0, 1)[None]
            self.levels.append(functional.avg_pool2d(planes, 2)[0].permute(1, 2, 0).contiguous())

    def sample(self, pixels: Tensor) -> Tensor:
        """(H, W, C): the values at positions (H, W, 2) of the picture; zero outside.

        A pixel that covers several texels gets their average: two levels are blended by how far apart neighbouring
        positions lie.
        """
        finest = (texels_per_pixel(pixels) / self.sharp_texels).clamp(min=1).log2().clamp(0, len(self.levels) - 1)
        height, width = self.levels[0].shape[:2]
        inside = ((pixels > -1) & (pixels < pixels.new_tensor([width, height]))).all(-1)
        if not bool(inside.any()):
            return pixels.new_zeros(*pixels.shape[:2], self.levels[0].shape[2])
        low, high = int(finest[inside].min()), int(finest[inside].max().ceil())
        result = 0
        for level in range(low, high + 1):
            weight = (1 - (finest - level).abs()).clamp(min=0)
            places = (pixels + 0.5) / 2**level - 0.5  # pixel centers
            result = result + weight[..., None] * sample_image(self.levels[level], places)
        return result * inside[..., None]


def texels_per_pixel(pixels: Tensor) -> Tensor:
    """(H, W): how many texels a pixel of a frame covers along its shorter side; positions (H, W, 2).

    The shorter side: where a mapping squeezes one direction only, sharpness is kept rather than aliasing removed.
    """
    if min(pixels.shape[:2]) < 2:
        return torch.ones(pixels.shape[:2])
    down, across = (torch.gradient(pixels, dim=axis)[0].norm(dim=-1) for axis in (0, 1))
    return torch.minimum(down, across)
