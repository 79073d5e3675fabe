"""Loss terms on whole pictures: the paper's, computed where neighbours are shared. Pure functions of tensors."""

import torch
from torch import Tensor
from torch.nn import functional


class Photometric(torch.autograd.Function):
    """Colour and gradient terms (Eq. 7) of pictures (K, 3, h, w) at once, with the gradient written out.

    Returns both means; their weights are needed here, because only the gradient of their weighted sum is kept.
    A picture's elementwise graph would cost several times as much memory traffic as the terms themselves.
    """

    @staticmethod
    def forward(ctx, rendered: Tensor, target: Tensor, color_weight: float, gradient_weight: float):
        """(K, 3, h, w) twice -> the weighted total, the mean of the colour term, the mean of the gradient term."""
        error = rendered - target
        pixels = error.numel() / error.shape[1]
        color = error.square().sum() / pixels
        slope = error * (2 * color_weight / pixels)
        gradient = error.new_zeros(())
        if gradient_weight:
            across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
            for steps, ahead, behind in (
                (across, (..., slice(1, None)), (..., slice(None, -1))),
                (down, (..., slice(1, None), slice(None)), (..., slice(None, -1), slice(None))),
            ):
                count = max(steps.numel() / steps.shape[1], 1)
                gradient = gradient + steps.square().sum() / count
                steps *= 2 * gradient_weight / count
                slope[ahead] += steps
                slope[behind] -= steps
        ctx.save_for_backward(slope)
        total = color_weight * color + gradient_weight * gradient
        ctx.mark_non_differentiable(color, gradient)
        return total, color, gradient

    @staticmethod
    def backward(ctx, grad_total: Tensor, *_: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * grad_total, None, None, None


def relative_jacobians(texels: Tensor, start_inverse: Tensor, step_px: tuple[float, float]) -> Tensor:
    """(K, h - 1, w - 1, 2, 2): how places (K, 2, h, w) change along x and y against the closed-form start.

    start_inverse (K, 2, 2): inverse derivative of the start, so that a mapping that kept its start gives rotations'
    cost: rigidity (Eq. 9) then does not fight against an object that grows because it comes nearer.
    """
    along_x = (texels[:, :, 1:, 1:] - texels[:, :, 1:, :-1]) / step_px[0]
    along_y = (texels[:, :, 1:, 1:] - texels[:, :, :-1, 1:]) / step_px[1]
    change = torch.stack((along_x, along_y), dim=-1).permute(0, 2, 3, 1, 4)
    return change @ start_inverse[:, None, None]


def prior_loss(logit: Tensor, probability: Tensor) -> Tensor:
    """Cross-entropy of opacity, given raw, with the evidence's probability, per pixel."""
    return functional.binary_cross_entropy_with_logits(logit, probability, reduction="none")
