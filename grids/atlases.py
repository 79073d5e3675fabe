"""Positions and colours in the images of atlases: uv, texels, and the coordinates in which images are sampled.

uv lies in a layer's own square. u and v share a scale, and the longer side of the atlas covers [-1, 1].
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from grids.fields import device_constant
from implicit_neural_networks import atlas_to_uv

Size = tuple[int, int]  # (height, width) in texels


def texels_per_uv(size: Size) -> float:
    """Return the texels of an atlas of this size per unit of uv."""
    return max(max(size) - 1, 1) / 2


def sampling_units(size: Size) -> tuple[float, ...]:
    """Return the 3 x 3 matrix from texels of an image of this size to the coordinates of `to_sampling_grid`."""
    (height, width) = size
    return 2 / width, 0, 1 / width - 1, 0, 2 / height, 1 / height - 1, 0, 0, 1


def to_sampling_grid(texels: Tensor, size: Size) -> Tensor:
    """Convert texels (..., 2) of an image of this size to grid_sample's coordinates with align_corners=False.

    These coordinates hold for the image at any resolution, so they stay the same from coarse to fine.
    """
    height, width = size
    return (texels + 0.5) * device_constant((2 / width, 2 / height), texels.device) - 1


def sample_atlas(atlas: Tensor, size: Size, uv: Tensor) -> Tensor:
    """Return the colour of an atlas at uv (N, 2), (N, 3) in [0, 1].

    atlas: (1, 3, h, w), at any resolution. size: of the atlas at full resolution.
    """
    center = device_constant(((size[1] - 1) / 2, (size[0] - 1) / 2), uv.device)
    grid = to_sampling_grid(uv * texels_per_uv(size) + center, size)[None, None]
    values = functional.grid_sample(atlas, grid, padding_mode="border", align_corners=False)
    return values[0, :, 0].T.clamp(0, 1)


def sample_shared_square(atlas_uv: Tensor, centers: Tensor, layer_color: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return the colour at positions (N, 2) in the square that all layers share, (N, 3) in [0, 1].

    It is black where no layer's square is. Where two squares touch, the layer in front has the border. centers: (L, 2)
    of the layers' squares. layer_color: returns the colours of a layer at its own uv.
    """
    colors = atlas_uv.new_zeros(len(atlas_uv), 3)
    for layer, center in reversed(list(enumerate(centers))):
        is_inside = ((atlas_uv - center).abs() <= 0.5 + 1e-6).all(1)
        colors[is_inside] = layer_color(atlas_to_uv(atlas_uv[is_inside], center), layer)
    return colors
