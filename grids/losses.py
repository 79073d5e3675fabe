"""Loss terms of whole frames: the paper's terms, computed together where they share neighbouring pixels.

These are pure functions of tensors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_PIXELS = 1 << 16  # Pixels of all images that are compared at once: a few tensors of them fit into the cache.


@dataclass(frozen=True)
class PhotometricWeights:
    """Weights of the sums of squared differences of an image and its target, and of the steps between pixels."""

    color: float
    x_steps: float
    y_steps: float

    @classmethod
    def of_means(cls, size: tuple[int, int, int], color: float, gradient: float) -> "PhotometricWeights":
        """Return the weights of sums that give weighted means over all pixels. size: (K, h, w) of K images."""
        images, height, width = size
        return cls(
            color / (images * height * width),
            gradient / max(images * height * (width - 1), 1),
            gradient / max(images * (height - 1) * width, 1),
        )


class Photometric(torch.autograd.Function):
    """Colour term and gradient term (Eq. 7) of images with light and without it, with derivatives that are written out.

    An elementwise graph of these terms would cost several times the memory traffic of the terms themselves. Rows are
    done in blocks, so that everything in between stays in a core's cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rendered: Tensor,
        light: Tensor | None,
        target: Tensor,
        weights: tuple[float, float],
        unlit_factor: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of all terms, and the weighted terms: colour and gradient, and both without light.

        rendered, light (K, 3, h, w). target (K, 3, h, w) uint8. weights: of the colour term and of the gradient term.
        unlit_factor: of both without light. Only the weighted sum can be differentiated, by `rendered` and `light`.
        """
        images, _, height, width = rendered.shape
        lit_weights = PhotometricWeights.of_means((images, height, width), *weights)
        parts = [(light, lit_weights)]
        if light is not None and unlit_factor:
            unlit = (unlit_factor * weight for weight in weights)
            parts.append((None, PhotometricWeights.of_means((images, height, width), *unlit)))
        terms = rendered.new_zeros(4)
        by_rendered = torch.empty_like(rendered, memory_format=torch.contiguous_format)
        by_light = None if light is None else torch.empty_like(by_rendered)
        carried: list[Tensor | None] = [None] * len(parts)
        for first, end in row_blocks(rendered):
            last = min(end + 1, height)  # The steps from the last row to the next one belong to this block.
            own = slice(0, end - first)
            expected = target[:, :, first:last].float().div_(255)
            image = rendered[:, :, first:last]
            for number, (factor, part_weights) in enumerate(parts):
                shown = image if factor is None else image * factor[:, :, first:last]
                sums, derivative = compare_rows(shown - expected, end - first, part_weights)
                terms[2 * number : 2 * number + 2] += sums
                if (steps_above := carried[number]) is not None:
                    derivative[:, :, :1] += steps_above
                carried[number] = derivative[:, :, end - first :].clone() if last > end else None
                derivative = derivative[:, :, own]
                if factor is not None and by_light is not None:
                    torch.mul(derivative, image[:, :, own], out=by_light[:, :, first:end])
                    derivative = derivative.mul_(factor[:, :, first:end])
                if number == 0:
                    by_rendered[:, :, first:end] = derivative
                else:
                    by_rendered[:, :, first:end] += derivative
        ctx.save_for_backward(by_rendered, by_light)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, total_derivative: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivatives by `rendered` and `light`."""
        by_rendered, by_light = ctx.saved_tensors
        by_light = None if by_light is None else by_light.mul_(total_derivative)
        return by_rendered.mul_(total_derivative), by_light, None, None, None


def row_blocks(pictures: Tensor) -> list[tuple[int, int]]:
    """Divide the rows of images (K, 3, h, w) into blocks that fit into a cache, as (first, end); a GPU takes all."""
    images, _, height, width = pictures.shape
    step = max(1, BLOCK_PIXELS // (images * width)) if pictures.device.type == "cpu" else height
    return [(first, min(first + step, height)) for first in range(0, height, step)]


def compare_rows(error: Tensor, rows: int, weights: PhotometricWeights) -> tuple[Tensor, Tensor]:
    """Return the weighted sums of the squared errors and of their squared steps, (2,), and their derivative.

    error (K, 3, r, w): of `rows` rows, and of the row below them if there is one. It only serves for the steps to it.
    The derivative (K, 3, r, w) by the row below holds these steps alone.
    """
    own = error[:, :, :rows]
    derivative = torch.zeros_like(error)
    torch.mul(own, 2 * weights.color, out=derivative[:, :, :rows])
    color, gradient = weights.color * sum_of_squares(own), error.new_zeros(())
    if weights.x_steps or weights.y_steps:
        x_steps, y_steps = own[..., 1:] - own[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        gradient = weights.x_steps * sum_of_squares(x_steps) + weights.y_steps * sum_of_squares(y_steps)
        inner = derivative[:, :, :rows]
        inner[..., 1:].add_(x_steps, alpha=2 * weights.x_steps)
        inner[..., :-1].sub_(x_steps, alpha=2 * weights.x_steps)
        derivative[..., 1:, :].add_(y_steps, alpha=2 * weights.y_steps)
        derivative[..., :-1, :].sub_(y_steps, alpha=2 * weights.y_steps)
    return torch.stack((color, gradient)), derivative


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
