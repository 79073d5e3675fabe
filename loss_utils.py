"""The losses of the paper as pure functions of tensors, with one value per point; the caller takes the mean.

Training and the error maps use the same functions. Equation numbers are those of Kasten et al., "Layered Neural Atlases
for Consistent Video Editing", 2021.
"""

import torch
from torch import Tensor

TINY = 1e-12  # added under a square root, so that its gradient stays finite at zero


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the last dimension, or a differentiable zero, never NaN, if all weights are 0.

    values: (..., N). weights: (..., N), not negative. Leading dimensions are broadcast; each gets a mean of its own.
    """
    values, weights = torch.broadcast_tensors(values, weights.to(values.dtype))
    total = weights.sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, torch.ones_like(total))


def color_loss(color: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of two colours, summed over channels: (N, 3) twice -> (N,). It is the colour loss."""
    return (color - target).square().sum(-1)


def gradient_loss(color_steps: Tensor, target_steps: Tensor) -> Tensor:
    """Return the squared distance of two image gradients (Eq. 7): (2, N, 3) twice -> (N,).

    The first dimension holds the forward differences of one pixel along x and along y.
    """
    return (color_steps - target_steps).square().sum(-1).sum(0)


def jacobian(uv: Tensor, uv_left: Tensor, uv_above: Tensor, px_per_uv: float, step_px: float) -> Tensor:
    """Return the Jacobian d(u, v) / d(x, y) from backward differences: (..., 2) three times -> (..., 2, 2).

    Column 0 is the derivative along x. Both u, v and x, y count in pixels. uv_left and uv_above: uv of the points
    step_px pixels to the left and above. px_per_uv: pixels per unit of uv, L / (2 * uv_mapping_scale).
    """
    return torch.stack((uv - uv_left, uv - uv_above), dim=-1) * (px_per_uv / step_px)


def rigidity_loss(jacobian: Tensor, eps: float = 1e-3) -> Tensor:
    """Return |J'J|_F + |(J'J + eps I)^-1|_F per point (Eq. 9): (..., 2, 2) -> (...).

    Rotations have the least loss, 2 sqrt(2). eps keeps the loss of a collapsed mapping finite.
    """
    along_x, along_y = jacobian.unbind(-1)
    return rigidity_of_columns(along_x, along_y, -1, eps)


def rigidity_of_columns(along_x: Tensor, along_y: Tensor, dim: int, eps: float = 1e-3) -> Tensor:
    """Return the rigidity loss (Eq. 9) of Jacobians whose columns are given, with u and v along dimension `dim`.

    No matrix is inverted: the inverse of a 2 x 2 matrix is its adjugate, which has the same norm, divided by its
    determinant.
    """
    (u_x, v_x), (u_y, v_y) = along_x.unbind(dim), along_y.unbind(dim)
    determinant = u_x * v_y - u_y * v_x
    xx = u_x.square() + v_x.square()
    yy = u_y.square() + v_y.square()
    xy = u_x * u_y + v_x * v_y
    cross = 2 * xy.square()
    norm = (xx.square() + yy.square() + cross + TINY).sqrt()
    norm_eps = ((xx + eps).square() + (yy + eps).square() + cross).sqrt()
    # det(J'J + eps I) is computed from det(J): xx * yy - xy^2 would cancel to zero or below where J has almost rank 1.
    return norm + norm_eps / (determinant.square() + eps * (xx + yy) + eps**2)


def flow_loss(uv: Tensor, uv_match: Tensor, px_per_uv: float) -> Tensor:
    """Return the distance in pixels between the uv of a point and of its flow match: (..., 2) twice -> (...).

    This is Eq. 11 without its weight.
    """
    return ((uv_match - uv).square().sum(-1) + TINY).sqrt() * px_per_uv


def alpha_flow_loss(alpha: Tensor, alpha_match: Tensor) -> Tensor:
    """Return the change of opacity along the flow (Eq. 12): (..., 1) twice -> (...)."""
    return (alpha_match - alpha).abs().squeeze(-1)


def sparsity_loss(alpha: Tensor, foreground_color: Tensor) -> Tensor:
    """Return the squared colour of the foreground weighted by its transparency: (..., 1) and (..., 3) -> (...).

    This makes the foreground atlas black where it is not visible.
    """
    return ((1 - alpha) * foreground_color).square().sum(-1)


def bootstrapping_loss(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy of opacity with the rough mask: (..., 1) and (...) -> (...).

    alpha must lie strictly between 0 and 1.
    """
    alpha = alpha.squeeze(-1)
    return -(mask * alpha.log() + (1 - mask) * (1 - alpha).log())
