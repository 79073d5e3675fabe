"""Scenes with exact truth: the truth must be exact."""

import numpy as np
import pytest
from conftest import run_script

from evaluation.mask_metrics import iou
from scenes.catalogue import SCENES, demo
from scenes.rough import rough_mask


@pytest.fixture(scope="module")
def scene():
    return demo(width=96, height=54, frames=8)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_a_layers_two_maps_undo_each_other(name):
    scene = SCENES[name]()
    points = np.random.default_rng(0).uniform(0, 100, (50, 2))
    for layer in scene.layers:
        for t in range(scene.frames):
            np.testing.assert_allclose(layer.to_frame(layer.to_photograph(points, t), t), points, atol=1e-9)


def test_a_point_has_the_colour_of_its_place_in_the_photograph(scene):
    frame, places = scene.frame(5), scene.photograph_positions(5)
    for index, layer in enumerate(scene.layers):
        clear = (frame.front_layer == index) & (np.abs(frame.alpha[0] - (index == 0)) < 1e-3)
        error = np.abs(layer.color_at(places[index])[clear] - frame.rgb[clear])
        assert np.median(error) < 8  # a pixel is an average, a place a point


def test_flow_carries_visible_pixels_to_their_own_colour():
    import cv2

    scene = demo()
    flow, visible = scene.flow(2, 3)
    x, y = np.float32(scene.grid() + flow).transpose(2, 0, 1)
    carried = cv2.remap(scene.frame(3).rgb, x, y, cv2.INTER_LINEAR)
    error = np.abs(carried.astype(int) - scene.frame(2).rgb).mean(-1)
    assert error[visible].mean() < 6
    assert error[visible].mean() < 0.35 * error[~visible].mean()


def test_flow_there_and_back_returns_where_visible(scene):
    there, visible = scene.flow(2, 5)
    ends = scene.grid()[visible] + there[visible]
    layer = scene.front_layer(scene.grid(), 2)[visible]
    for index in range(len(scene.layers)):
        chosen = ends[layer == index]
        back = scene.layers[index].to_frame(scene.layers[index].to_photograph(chosen, 5), 2)
        np.testing.assert_allclose(back, scene.grid()[visible][layer == index], atol=1e-4)


def test_opacity_is_soft_only_at_the_edge(scene):
    alpha = scene.frame(0).alpha[0]
    soft = (alpha > 0.01) & (alpha < 0.99)
    assert 0 < soft.mean() < 0.08
    assert 0.1 < alpha.mean() < 0.3


def test_rough_masks_are_seeded_and_rough(scene):
    alpha = scene.frame(0).alpha[0]
    masks = [rough_mask(alpha, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    for seed in range(5):
        assert 0.55 < iou(rough_mask(alpha, seed) > 0, alpha >= 0.5) < 0.99


def test_an_unknown_scene_lists_the_known_ones(tmp_path):
    done = run_script("-m", "scenes", "dragon", "--data_folder", tmp_path)
    assert done.returncode == 2
    assert "no scene 'dragon'; there are: bend, cross, demo" in done.stderr
