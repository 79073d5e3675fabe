"""How much displacements bend, stretch and shift a layer: a quadratic form of their values at the nodes of a grid."""

from typing import Any

import torch
from torch import Tensor


class Smoothness:
    """The energy of fields (..., ny, nx): their squared differences between neighbouring nodes, with weights.

    bending: of second differences, of which the mixed one counts once; stretch: of first differences; anchor: of the
    values themselves. The energy is x'Kx of a field x. K is a sum of products of two small matrices, of which one
    combines the rows of the field and the other one its columns. So the gradient takes four products of matrices,
    instead of many passes over differences and their squares.
    """

    def __init__(self, nodes: tuple[int, int], bending: float, stretch: float = 0.0, anchor: float = 0.0):
        """nodes: (ny, nx) of the fields."""
        (first_down, second_down), (first_across, second_across) = (
            (square_differences(count, 1), square_differences(count, 2)) for count in nodes
        )
        self.down = bending * second_down + stretch * first_down + anchor * torch.eye(nodes[0])
        self.across = bending * second_across + stretch * first_across
        self.mixed_down, self.mixed_across = bending * first_down, first_across

    def energy(self, field: Tensor) -> Tensor:
        """Return the energy of a field, a number that can be differentiated once."""
        energy: Tensor = QuadraticForm.apply(field, self)  # type: ignore[no-untyped-call]
        return energy

    def multiply(self, field: Tensor) -> Tensor:
        """Return K times a field: half the gradient of the energy."""
        return self.down @ field + field @ self.across + self.mixed_down @ field @ self.mixed_across


class QuadraticForm(torch.autograd.Function):
    """The energy x'Kx of `Smoothness`, with its gradient 2Kx, for which the forward pass keeps the product."""

    @staticmethod
    def forward(ctx: Any, field: Tensor, smoothness: Smoothness) -> Tensor:
        """Return the energy."""
        product = smoothness.multiply(field)
        ctx.save_for_backward(product)
        return (field * product).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the field."""
        (product,) = ctx.saved_tensors
        return 2 * gradients[0] * product, None


def square_differences(count: int, order: int) -> Tensor:
    """Return the matrix M (count, count) for which v'Mv is the sum of the squared differences of that order of v."""
    differences = torch.eye(count).diff(n=order, dim=0)
    return differences.T @ differences
