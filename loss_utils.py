"""The paper's losses as pure functions of tensors: one value per point, the caller takes the mean.

The same functions train and draw the error maps. No network, device or config goes in. Equation numbers are those
of Kasten et al., "Layered Neural Atlases for Consistent Video Editing", 2021.
"""

import torch
from torch import Tensor

TINY = 1e-12  # under a square root: keeps its gradient finite at zero


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the last dimension; of an empty selection a differentiable zero, never NaN.

    values (..., N); weights (..., N), not negative; leading dimensions broadcast, one mean for each.
    """
    values, weights = torch.broadcast_tensors(values, weights.to(values.dtype))
    total = weights.sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, torch.ones_like(total))


def color_loss(color: Tensor, target: Tensor) -> Tensor:
    """Squared distance of two colours (N, 3), summed over the channels -> (N,). The paper's reconstruction loss."""
    return (color - target).square().sum(-1)


def gradient_loss(color_steps: Tensor, target_steps: Tensor) -> Tensor:
    """Eq. 7: squared distance of image gradients, (2, N, 3) x and y forward differences of one pixel -> (N,)."""
    return (color_steps - target_steps).square().sum(-1).sum(0)


def jacobian(uv: Tensor, uv_left: Tensor, uv_above: Tensor, px_per_uv: float, step_px: float) -> Tensor:
    """d(u, v) / d(x, y) by backward differences, both in pixels: (..., 2) three times -> (..., 2, 2).

    Column 0 is the derivative along x. px_per_uv turns uv units to pixels: L / (2 * uv_mapping_scale).
    """
    return torch.stack((uv - uv_left, uv - uv_above), dim=-1) * (px_per_uv / step_px)


def rigidity_loss(jacobian: Tensor, eps: float = 1e-3) -> Tensor:
    """Eq. 9: |J'J|_F + |(J'J + eps I)^-1|_F per point, (..., 2, 2) -> (...). Rotations have the least, 2 sqrt(2).

    Written out, because a 2 x 2 inverse is its adjugate, of equal norm, over its determinant: no solver, no copies.
    eps keeps a collapsed mapping finite.
    """
    determinant = jacobian[..., 0, 0] * jacobian[..., 1, 1] - jacobian[..., 0, 1] * jacobian[..., 1, 0]
    xx = jacobian[..., 0].square().sum(-1)
    yy = jacobian[..., 1].square().sum(-1)
    xy = (jacobian[..., 0] * jacobian[..., 1]).sum(-1)
    cross = 2 * xy.square()
    norm = (xx.square() + yy.square() + cross + TINY).sqrt()
    norm_eps = ((xx + eps).square() + (yy + eps).square() + cross).sqrt()
    # det(J'J + eps I) from det(J): xx * yy - xy^2 would cancel to zero or below where the mapping is nearly flat
    return norm + norm_eps / (determinant.square() + eps * (xx + yy) + eps**2)


def flow_loss(uv: Tensor, uv_match: Tensor, px_per_uv: float) -> Tensor:
    """Eq. 11 before its weight: how far apart, in pixels, a point and its flow match land: (..., 2) -> (...)."""
    return ((uv_match - uv).square().sum(-1) + TINY).sqrt() * px_per_uv


def alpha_flow_loss(alpha: Tensor, alpha_match: Tensor) -> Tensor:
    """Eq. 12: opacity should not change along the flow: (..., 1) twice -> (...)."""
    return (alpha_match - alpha).abs().squeeze(-1)


def sparsity_loss(alpha: Tensor, foreground_color: Tensor) -> Tensor:
    """Foreground atlas is dark where it is not visible: (..., 1) and (..., 3) -> (...)."""
    return ((1 - alpha) * foreground_color).square().sum(-1)


def bootstrapping_loss(alpha: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of opacity (..., 1), inside (0, 1), against the rough mask (...) -> (...)."""
    alpha = alpha.squeeze(-1)
    return -(mask * alpha.log() + (1 - mask) * (1 - alpha).log())
