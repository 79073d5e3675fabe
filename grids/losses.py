"""Loss terms of whole frames: the paper's terms, computed together where they share neighbouring pixels.

These are pure functions of tensors.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Photometric(torch.autograd.Function):
    """Colour term and gradient term (Eq. 7) of images (K, 3, h, w), with a derivative that is written out.

    An elementwise graph of these terms would cost several times the memory traffic of the terms themselves. The
    weights of both terms are arguments, because only the derivative of the weighted sum is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, rendered: Tensor, target: Tensor, color_weight: float, gradient_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted sum, the mean of the colour term and the mean of the gradient term.

        rendered, target: (K, 3, h, w). Only the weighted sum can be differentiated, and only by `rendered`.
        """
        error = rendered - target
        pixels = error.numel() / error.shape[1]
        color = sum_of_squares(error) / pixels
        derivative = error * (2 * color_weight / pixels)
        gradient = error.new_zeros(())
        if gradient_weight:
            x_steps, y_steps = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
            for steps, second, first in (
                (x_steps, (..., slice(1, None)), (..., slice(None, -1))),
                (y_steps, (..., slice(1, None), slice(None)), (..., slice(None, -1), slice(None))),
            ):
                count = max(steps.numel() / steps.shape[1], 1)
                gradient = gradient + sum_of_squares(steps) / count
                derivative[second].add_(steps, alpha=2 * gradient_weight / count)
                derivative[first].sub_(steps, alpha=2 * gradient_weight / count)
        ctx.save_for_backward(derivative)
        total = color_weight * color + gradient_weight * gradient
        ctx.mark_non_differentiable(color, gradient)
        return total, color, gradient

    @staticmethod
    def backward(ctx: Any, total_derivative: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the derivative by `rendered`."""
        (derivative,) = ctx.saved_tensors
        return derivative.mul_(total_derivative), None, None, None


def sum_of_squares(values: Tensor) -> Tensor:
    """Return the sum of the squares of a tensor, without a tensor of the squares."""
    return torch.linalg.vector_norm(values).square()


def relative_jacobians(texels: Tensor, start_inverse: Tensor, step_px: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the derivatives of mappings by x and by y, relative to the closed-form start, (K, 2, h - 1, w - 1) each.

    texels (K, 2, h, w): atlas positions of lattice points that are step_px (x, y) apart. start_inverse: inverse
    derivative of the start, (K, h - 1, w - 1, 2, 2), or (K, 1, 1, 2, 2) where it is the same everywhere. A mapping that
    kept its start has the identity as its relative derivative, which has the least rigidity loss (Eq. 9). So the loss
    does not oppose an object that grows because it comes nearer.
    """
    along_x = (texels[:, :, 1:, 1:] - texels[:, :, 1:, :-1]) / step_px[0]
    along_y = (texels[:, :, 1:, 1:] - texels[:, :, :-1, 1:]) / step_px[1]
    (a, b), (c, d) = (row.unbind(-1) for row in start_inverse[:, None].unbind(-2))
    return along_x * a + along_y * c, along_x * b + along_y * d


def prior_loss(logit: Tensor, probability: Tensor) -> Tensor:
    """Return the cross-entropy of opacity with the probability of the refined masks, per pixel.

    Opacity is given as logits, which keeps the loss finite.
    """
    return functional.binary_cross_entropy_with_logits(logit, probability, reduction="none")
