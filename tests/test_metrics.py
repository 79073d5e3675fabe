"""Each metric on cases that are small enough to check by hand."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from evaluation.image_metrics import load_lpips, psnr, ssim
from evaluation.mapping_metrics import RigiditySums, placement_summary, singular_values, summarize_rigidity
from evaluation.mask_metrics import alpha_error, boundary_f, iou, outline
from evaluation.temporal_metrics import warp_error
from rendering.inverse import locate_uv


def square(left, size=20, side=60):
    """Return a mask (side, side) of a square of `size` pixels, from the given column and row 20."""
    mask = np.zeros((side, side), bool)
    mask[20 : 20 + size, left : left + size] = True
    return mask


def rotated_uv(scale=0.01, angle=0.3, height=40, width=50):
    """Return uv (height, width, 2) of a mapping that rotates and scales the frame."""
    y, x = np.mgrid[:height, :width]
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.stack((c * x - s * y, s * x + c * y), axis=-1)


def test_equal_masks_have_perfect_scores_and_empty_pairs_too():
    for mask in (square(20), np.zeros((9, 9), bool)):
        assert iou(mask, mask) == 1
        assert boundary_f(mask, mask) == 1


def test_one_empty_mask_scores_zero():
    empty = np.zeros((60, 60), bool)
    assert iou(square(20), empty) == 0
    assert boundary_f(square(20), empty) == 0
    assert boundary_f(empty, square(20)) == 0


def test_the_boundary_score_tolerates_small_distances_only():
    # The diagonal of 60 x 60 pixels is 85 px, and 0.8 % of it, rounded up, is 1 px.
    assert boundary_f(square(21), square(20)) == 1
    moved = boundary_f(square(25), square(20))
    assert 0.3 < moved < 0.8  # The upper and lower edges still overlap.
    assert boundary_f(square(0, 10), square(45, 10)) == 0


def test_an_outline_is_where_the_right_lower_or_diagonal_neighbour_differs():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    expected = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(outline(mask), expected)


def test_the_opacity_error_is_a_mean_of_differences():
    assert alpha_error(np.full((2, 2), 0.25), np.ones((2, 2))) == pytest.approx(0.75)


@pytest.mark.parametrize("metric", [iou, boundary_f, alpha_error])
def test_masks_of_different_sizes_are_an_error(metric):
    with pytest.raises(ValueError, match=r"sizes differ: \(2, 3\) found, \(3, 2\) in the truth"):
        metric(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_of_different_sizes_are_an_error(metric):
    with pytest.raises(ValueError, match="sizes differ"):
        metric(np.zeros((8, 9, 3)), np.zeros((9, 8, 3)))


def test_lpips_is_left_out_if_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert load_lpips.__wrapped__() is None


def test_lpips_gets_images_as_its_package_expects_them(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b):
            assert a.shape == (1, 3, 8, 9)
            assert a.min() >= -1
            return (a - b).abs().mean()

    module = ModuleType("lpips")
    module.LPIPS = Network
    monkeypatch.setitem(sys.modules, "lpips", module)
    distance = load_lpips.__wrapped__()
    assert distance(np.zeros((8, 9, 3)), np.full((8, 9, 3), 0.25)) == pytest.approx(0.5)


def test_a_mark_is_located_to_a_hundredth_of_a_pixel_by_its_uv():
    uv = rotated_uv()
    x, y = 12.3, 20.7
    c, s = 0.01 * np.cos(0.3), 0.01 * np.sin(0.3)
    target = np.array([[c * x - s * y, s * x + c * y]])
    np.testing.assert_allclose(locate_uv(target, uv, 1.0)[0], [[x, y]], atol=0.01)


def test_a_collapsed_mapping_gives_a_pixel_and_no_error():
    positions, _ = locate_uv(np.array([[0.5, 0.5]]), np.zeros((5, 6, 2)))
    assert np.isfinite(positions).all()


def test_placement_counts_the_errors_below_each_threshold():
    summary = placement_summary(np.array([0.5, 1.5, 3.0, 9.0]))
    assert summary["placement_px"] == pytest.approx(3.5)
    fractions = [summary[f"placement_within_{limit}"] for limit in (1, 2, 4, 8, 16)]
    assert fractions == [0.25, 0.5, 0.75, 0.75, 1.0]


def test_a_rotated_and_scaled_mapping_is_perfectly_rigid():
    larger, smaller = singular_values(rotated_uv(), 100.0)
    np.testing.assert_allclose(larger, 1, rtol=1e-6)
    np.testing.assert_allclose(smaller, 1, rtol=1e-6)
    summary = summarize_rigidity([RigiditySums.of_mapping(rotated_uv(), np.ones((40, 50), bool), 100.0)] * 2)
    assert summary["scale_spread"] == pytest.approx(0, abs=1e-5)
    assert summary["shear"] == pytest.approx(0, abs=1e-5)


def test_changes_of_scale_and_stretching_show_in_the_rigidity_metrics():
    everywhere = np.ones((40, 50), bool)
    changing = summarize_rigidity(
        [RigiditySums.of_mapping(rotated_uv(scale), everywhere, 100.0) for scale in (0.01, 0.02)]
    )
    assert changing["scale_spread"] == pytest.approx(np.log(2) / 2, rel=1e-3)
    stretched = summarize_rigidity([RigiditySums.of_mapping(rotated_uv() * [3.0, 1.0], everywhere, 100.0)])
    assert stretched["shear"] > 0.5


def test_rigidity_of_a_layer_that_is_never_visible_is_not_a_number():
    nowhere = RigiditySums.of_mapping(rotated_uv(), np.zeros((40, 50), bool), 100.0)
    assert np.isnan(summarize_rigidity([nowhere])["shear"])


def test_warp_error_is_zero_for_a_frame_that_moves_with_the_flow():
    frame = np.random.default_rng(0).random((12, 16, 3)).astype(np.float32)
    other = np.roll(frame, 3, axis=1)
    flow = np.zeros((12, 16, 2), np.float32)
    flow[..., 0] = 3
    visible = np.zeros((12, 16), bool)
    visible[:, :12] = True
    assert warp_error(frame, other, flow, visible) == pytest.approx(0, abs=1e-10)
    assert warp_error(frame, other, 0 * flow, visible) > 0.05
    assert warp_error(frame, other, flow, np.zeros_like(visible)) is None
