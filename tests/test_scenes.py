"""The ground truth of the scenes is exact."""

import numpy as np
import pytest
from conftest import run_script

from evaluation.mask_metrics import iou
from scenes.catalogue import SCENES, demo
from scenes.rough import rough_mask
from unwrap_utils import warp_by_flow


@pytest.fixture(scope="module")
def scene():
    return demo(width=96, height=54, frames=8)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_the_two_conversions_of_a_layer_invert_each_other(name):
    scene = SCENES[name]()
    points = np.random.default_rng(0).uniform(0, 100, (50, 2))
    for layer in scene.layers:
        for t in range(scene.frames):
            np.testing.assert_allclose(layer.to_frame(layer.to_photograph(points, t), t), points, atol=1e-9)


def test_a_pixel_has_the_colour_of_its_position_in_the_photograph(scene):
    frame, positions = scene.frame(5), scene.photograph_positions(5)
    for index, layer in enumerate(scene.layers):
        is_pure = (frame.front_layer == index) & (np.abs(frame.alpha[0] - (index == 0)) < 1e-3)
        error = np.abs(layer.color_at(positions[index])[is_pure] - frame.rgb[is_pure])
        assert np.median(error) < 8  # a pixel averages an area, the photograph is sampled at a point


def test_flow_leads_visible_pixels_to_their_own_colour():
    scene = demo()
    flow, is_visible = scene.flow(2, 3)
    warped = warp_by_flow(scene.frame(3).rgb, flow)
    error = np.abs(warped.astype(int) - scene.frame(2).rgb).mean(-1)
    assert error[is_visible].mean() < 6
    assert error[is_visible].mean() < 0.35 * error[~is_visible].mean()


def test_forward_then_backward_flow_returns_where_the_target_is_visible(scene):
    flow, is_visible = scene.flow(2, 5)
    starts, layers = scene.grid()[is_visible], scene.front_layer(scene.grid(), 2)[is_visible]
    returned = scene.move_points(starts + flow[is_visible], layers, 5, 2)
    np.testing.assert_allclose(returned, starts, atol=1e-4)


def test_the_legs_of_the_walker_cross_below_its_body():
    scene = SCENES["walk"](width=192, height=108, frames=30)
    middles = np.array(
        [[layer.pose(t).x - scene.layers[0].pose(t).x for layer in scene.layers[1:3]] for t in range(30)]
    )
    in_front = middles[:, 0] > middles[:, 1]
    assert (np.diff(in_front.astype(int)) != 0).sum() >= 2, "one leg swings past the other"
    distance = np.abs(middles[:, 0] - middles[:, 1])
    apart, together = int(distance.argmax()), int(distance.argmin())
    shown = [np.bincount(scene.front_layer(scene.grid(), t).ravel(), minlength=4) for t in (apart, together)]
    assert shown[0][2] > 0.5 * shown[0][1], "both legs are seen where they are apart"
    assert shown[1][2] < 0.5 * shown[1][1], "the front leg hides the other one where they cross"


def test_opacity_is_soft_only_at_the_edge(scene):
    alpha = scene.frame(0).alpha[0]
    is_soft = (alpha > 0.01) & (alpha < 0.99)
    assert 0 < is_soft.mean() < 0.08
    assert 0.1 < alpha.mean() < 0.3


def test_rough_masks_depend_on_the_seed_and_differ_from_the_exact_mask(scene):
    alpha = scene.frame(0).alpha[0]
    masks = [rough_mask(alpha, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    for seed in range(5):
        assert 0.55 < iou(rough_mask(alpha, seed) > 0, alpha >= 0.5) < 0.99


@pytest.mark.slow
def test_an_unknown_scene_lists_the_known_ones(tmp_path):
    done = run_script("-m", "scenes", "dragon", "--data_folder", tmp_path)
    assert done.returncode == 2
    assert "no scene 'dragon'; there are: bend, cross, demo" in done.stderr
