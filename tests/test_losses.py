"""The paper's losses on cases small enough to check by hand."""

import math

import pytest
import torch

import loss_utils


def rotation(angle: float, scale: float = 1.0) -> torch.Tensor:
    """Return the Jacobian (2, 2) of a rotation by an angle in radians with a scale."""
    matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return scale * torch.tensor(matrix, dtype=torch.float64)


def test_a_rotation_has_the_least_rigidity_loss():
    least = loss_utils.rigidity_loss(rotation(0.7))
    assert least.item() == pytest.approx(2 * math.sqrt(2), rel=1e-3)
    for other in (rotation(0.7, 1.1), rotation(0.7, 0.9), rotation(0.0) + torch.tensor([[0, 0.2], [0, 0]])):
        assert loss_utils.rigidity_loss(other) > least


def test_rigidity_is_the_formula_of_equation_9():
    jacobians = torch.randn(50, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = jacobians.mT @ jacobians
    inverse = torch.linalg.inv(gram + 1e-3 * torch.eye(2, dtype=torch.float64))
    expected = torch.linalg.matrix_norm(gram) + torch.linalg.matrix_norm(inverse)
    torch.testing.assert_close(loss_utils.rigidity_loss(jacobians), expected)


def test_a_collapsed_mapping_has_a_finite_loss_and_gradient():
    jacobian = torch.zeros(3, 2, 2, requires_grad=True)
    loss = loss_utils.rigidity_loss(jacobian).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(jacobian.grad).all()


def test_a_nearly_flat_mapping_keeps_the_loss_finite():
    """For large Jacobians of rank one the determinant of the Gram matrix would cancel to zero."""
    generator = torch.Generator().manual_seed(0)
    column, row = (torch.randn(200_000, *shape, generator=generator) * 10 for shape in ((2, 1), (1, 2)))
    jacobian = (column @ row).requires_grad_()
    loss = loss_utils.rigidity_loss(jacobian)
    loss.mean().backward()
    assert torch.isfinite(loss).all()
    assert (loss > 0).all()
    assert torch.isfinite(jacobian.grad).all()


def test_the_jacobian_is_in_pixels_and_its_columns_are_x_and_y():
    def uv(x, y):
        return torch.tensor([[2.0 * x + 3.0 * y, 5.0 * x + 7.0 * y]])

    jacobian = loss_utils.jacobian(uv(4, 4), uv(2, 4), uv(4, 2), px_per_uv=10.0, step_px=2.0)
    torch.testing.assert_close(jacobian[0], torch.tensor([[20.0, 30.0], [50.0, 70.0]]))


def test_colour_loss_sums_over_channels():
    assert loss_utils.color_loss(torch.tensor([[0.1, 0.2, 0.3]]), torch.zeros(1, 3)).item() == pytest.approx(0.14)


def test_gradient_loss_sums_over_both_directions():
    steps = torch.full((2, 1, 3), 0.1)
    assert loss_utils.gradient_loss(steps, torch.zeros_like(steps)).item() == pytest.approx(0.06)


def test_flow_loss_is_a_distance_in_pixels_with_a_finite_gradient_at_zero():
    uv = torch.zeros(1, 2, requires_grad=True)
    assert loss_utils.flow_loss(uv, torch.tensor([[0.03, 0.04]]), 100.0).item() == pytest.approx(5.0)
    loss_utils.flow_loss(uv, torch.zeros(1, 2), 100.0).sum().backward()
    assert torch.isfinite(uv.grad).all()


def test_sparsity_vanishes_where_the_foreground_is_opaque():
    color = torch.ones(2, 3)
    loss = loss_utils.sparsity_loss(torch.tensor([[1.0], [0.5]]), color)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.75]))


def test_bootstrapping_is_least_when_opacity_follows_the_mask():
    alpha = torch.tensor([[0.9], [0.1]])
    right = loss_utils.bootstrapping_loss(alpha, torch.tensor([1.0, 0.0]))
    wrong = loss_utils.bootstrapping_loss(alpha, torch.tensor([0.0, 1.0]))
    assert (right < wrong).all()
    torch.testing.assert_close(right, torch.full((2,), -math.log(0.9)))


def test_a_masked_mean_counts_values_by_their_weights():
    values = torch.tensor([1.0, 2.0, 30.0])
    assert loss_utils.masked_mean(values, torch.tensor([1, 1, 0])).item() == 1.5
    means = loss_utils.masked_mean(values, torch.tensor([[1, 0, 0], [0, 0, 1]]))
    assert means.tolist() == [1.0, 30.0]
