"""Where the rays of a frame's pixels meet the surface on which a layer's atlas lies: a plane or a cylinder.

A transform leads from a pixel to a homogeneous position, or ray, (x, y, z). On a plane its place in the atlas is
(x / z, y / z), in texels already. On a cylinder it is the angle around the axis and the height, which a matrix then
converts to texels."""

import torch
from torch import Tensor


def meet_surface(rays: Tensor, unrolled_to_texels: Tensor | None) -> Tensor:
    """Return the texels (..., 2, N) of rays (..., 3, N).

    unrolled_to_texels (3, 3): from the unrolled cylinder to texels; None for a plane.
    """
    x, y, z = rays.unbind(-2)
    if unrolled_to_texels is None:
        return rays[..., :2, :] / rays[..., 2:, :]
    unrolled = torch.stack((torch.atan2(x, z), y / torch.hypot(x, z)), dim=-2)
    return unrolled_to_texels[:2, :2] @ unrolled + unrolled_to_texels[:2, 2:]


def leave_surface(texels: Tensor, unrolled_to_texels: Tensor | None) -> Tensor:
    """Return rays (..., 3, N) through texels (..., 2, N); the inverse of `meet_surface`."""
    if unrolled_to_texels is None:
        return torch.cat((texels, torch.ones_like(texels[..., :1, :])), dim=-2)
    angle, height = (torch.linalg.inv(unrolled_to_texels[:2, :2]) @ (texels - unrolled_to_texels[:2, 2:])).unbind(-2)
    return torch.stack((torch.sin(angle), height, torch.cos(angle)), dim=-2)


def surface_jacobians(transforms: Tensor, points: Tensor, unrolled_to_texels: Tensor | None) -> Tensor:
    """Return the derivatives (T, N, 2, 2) of texels by pixels at points (2, N) of all frames. transforms: (T, 3, 3)."""
    homogeneous = torch.cat((points, torch.ones_like(points[:1])))
    x, y, z = (transforms @ homogeneous).unbind(1)  # (T, N) each
    dx, dy, dz = (transforms[:, row, None, :2] for row in range(3))  # (T, 1, 2) each, by x and y of the pixel
    x, y, z = x[..., None], y[..., None], z[..., None]
    if unrolled_to_texels is None:
        return torch.stack(((dx - x / z * dz) / z, (dy - y / z * dz) / z), dim=2)
    square = x * x + z * z
    radius = square.sqrt()
    angle = (z * dx - x * dz) / square
    height = dy / radius - y * (x * dx + z * dz) / (square * radius)
    return unrolled_to_texels[:2, :2] @ torch.stack((angle, height), dim=2)


def invert_2x2(matrices: Tensor) -> Tensor:
    """Return the inverses of matrices (..., 2, 2), which is many times faster for many small ones than a solver."""
    (a, b), (c, d) = (row.unbind(-1) for row in matrices.unbind(-2))
    adjoint = torch.stack((torch.stack((d, -b), dim=-1), torch.stack((-c, a), dim=-1)), dim=-2)
    return adjoint / (a * d - b * c)[..., None, None]


def middle_jacobians(transforms: Tensor, size: tuple[int, int], unrolled_to_texels: Tensor | None = None) -> Tensor:
    """Return the derivatives of transforms (T, 3, 3) at the middle of frames of (H, W), (T, 2, 2).

    unrolled_to_texels: the surface that they lead to, see the top of this file.
    """
    middle = transforms.new_tensor([[(size[1] - 1) / 2], [(size[0] - 1) / 2]])
    return surface_jacobians(transforms, middle, unrolled_to_texels)[:, 0]
