"""Soft opacity: the matting equation at outlines, its metrics, and the colours of the foreground."""

import cv2
import numpy as np
import pytest

from evaluation.matting_metrics import connectivity, matting_errors
from export.layers import find_unseen_border, foreground_color
from export.shadows import find_shadow
from grids.matting import has_soft_outline, solve_matte
from media import blur, to_8_bit
from scenes.catalogue import SCENES

HEIGHT, WIDTH = 240, 360


def blurred_disk():
    """Return a frame (H, W, 3), its background, the true opacity and the object's colour; the edge is 12 px wide."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    alpha = np.clip((80 - np.hypot(x - 180, y - 120)) / 12 + 0.5, 0, 1).astype(np.float32)
    background = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    background[..., 1] = 0.3 + 0.3 * ((x // 9 + y // 9) % 2)
    color = np.array([0.8, 0.3, 0.2], np.float32)
    return alpha[..., None] * color + (1 - alpha[..., None]) * background, background, alpha, color


def test_the_matte_of_a_blurred_edge_is_the_true_one():
    frame, background, alpha, color = blurred_disk()
    binary = (alpha > 0.5).astype(np.float32)
    object_color = np.broadcast_to(color, frame.shape)
    matte = solve_matte(frame, object_color, background, binary, blur_width_px=12.0, long_edge=WIDTH)
    assert np.abs(matte - alpha).mean() < 0.3 * np.abs(binary - alpha).mean()


def test_noise_leaves_no_halo_around_an_object_and_no_holes_in_it():
    frame, background, alpha, color = blurred_disk()
    binary = (alpha > 0.5).astype(np.float32)
    noisy = frame + np.random.default_rng(0).normal(0, 0.08, frame.shape).astype(np.float32)
    matte = solve_matte(noisy, np.broadcast_to(color, frame.shape), background, binary, 12.0, WIDTH)
    around, inside = (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == 0 for mask in (alpha > 0, alpha < 1))
    assert matte[around].mean() < 1e-5 and (1 - matte[inside]).mean() < 5e-5
    assert np.abs(matte - alpha).mean() < 0.5 * np.abs(binary - alpha).mean()  # The edge is still soft.


def test_another_object_in_front_is_no_noise_of_the_background():
    frame, background, alpha, color = blurred_disk()
    binary = (alpha > 0.5).astype(np.float32)
    is_free = np.ones(alpha.shape, bool)
    is_free[:, :180] = False
    frame[:, :180] = (0.1, 0.9, 0.9)  # the other object, to the left
    is_soft = (alpha > 0.05) & (alpha < 0.95) & is_free
    errors = {
        name: np.abs(solve_matte(frame, color * np.ones_like(frame), background, binary, 12.0, WIDTH, free) - alpha)
        for name, free in (("told", is_free), ("not told", None))
    }
    assert errors["told"][is_soft].mean() < 0.06 < errors["not told"][is_soft].mean()


def test_where_both_layers_have_one_colour_the_learned_opacity_stays():
    frame = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    learned = np.zeros((HEIGHT, WIDTH), np.float32)
    learned[80:160, 120:240] = 1
    matte = solve_matte(frame, frame, frame, learned, 0.0, WIDTH)
    assert np.abs(matte - learned).mean() < 0.01


def test_a_matte_is_told_from_a_hard_mask_and_from_one_that_was_only_resized():
    y, x = np.mgrid[:90, :120]
    radius = np.hypot(x - 60, y - 45)
    hard, resized, matte = (to_8_bit(np.clip((25 - radius) / width + 0.5, 0, 1)) for width in (0.01, 1.0, 8.0))
    assert not has_soft_outline(hard) and not has_soft_outline(resized)
    assert has_soft_outline(matte)
    assert not has_soft_outline(np.zeros_like(hard))


def test_frames_that_show_no_object_or_nothing_else_stay():
    frame = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    for value in (0.0, 1.0):
        learned = np.full((HEIGHT, WIDTH), value, np.float32)
        assert (solve_matte(frame, 1 - frame, frame, learned, 0.0, WIDTH) == value).all()


def test_the_colour_of_the_foreground_has_no_fringe_of_the_background():
    frame, background, alpha, color = blurred_disk()
    found = foreground_color(frame, background, alpha)
    np.testing.assert_allclose(found[alpha > 0.05], np.broadcast_to(color, found[alpha > 0.05].shape), atol=0.02)


def test_an_exact_matte_has_no_error_and_worse_ones_have_more():
    _, _, alpha, _ = blurred_disk()
    band = (alpha > 0) & (alpha < 1)
    assert all(error == 0 for error in matting_errors(alpha, alpha, band).values())
    some, more = (matting_errors(alpha + delta * band, alpha, band) for delta in (0.02, 0.05))
    assert some["sad"] == pytest.approx(0.02 * band.sum() / 1000)
    assert some["mse"] == pytest.approx(0.02**2, rel=1e-4)
    assert some["sad"] < more["sad"] and some["mse"] < more["mse"]


def test_a_separate_spot_is_not_connected():
    alpha = np.zeros((20, 20))
    alpha[5:15, 5:15] = 1
    spot = alpha.copy()
    spot[1, 1] = 0.8
    assert connectivity(spot, alpha)[1, 1] == pytest.approx(0.2)
    assert connectivity(alpha, spot)[1, 1] == 1


def test_a_shadow_beside_the_object_is_found_and_a_dark_patch_of_another_colour_is_not():
    rng = np.random.default_rng(0)
    background = np.repeat(0.4 + 0.3 * rng.random((320, 480, 1)), 3, axis=2).astype(np.float32)
    is_object = np.zeros((320, 480), bool)
    is_object[80:200, 160:280] = True
    source = background.copy()
    source[200:240, 160:300] *= 0.6  # the shadow, below the object
    source[20:48, 400:460] *= 0.6  # dark, but far from the object
    source[is_object] = (0.9, 0.2, 0.1)
    is_shadow, ambient = find_shadow(source, background, is_object)
    assert is_shadow[206:234, 176:280].all()
    assert not is_shadow[:60, 380:].any()
    assert ambient[220, 220] == pytest.approx(1, abs=0.07)
    source[200:240, 160:300] = (0.1, 0.1, 0.5)  # another thing, not a shadow
    assert find_shadow(source, background, is_object)[0].mean() < 0.01


def test_a_thin_deep_shadow_under_a_small_object_is_found_whole():
    background = np.repeat(0.4 + 0.3 * np.random.default_rng(0).random((320, 480, 1)), 3, axis=2).astype(np.float32)
    is_object = np.zeros((320, 480), bool)
    is_object[160:200, 160:220] = True
    source = background.copy()
    source[is_object] = (0.9, 0.2, 0.1)
    assert not find_shadow(source, background, is_object)[0].any()
    source[200:206, 165:215] *= 0.1
    source[20:26, 400:450] *= 0.1  # as dark, but far from the object
    is_shadow, ambient = find_shadow(source, background, is_object)
    assert is_shadow[200:206, 165:215].all()
    assert not is_shadow[:60].any() and is_shadow.sum() < 2500
    assert ambient[203, 190] == pytest.approx(1, abs=0.07)


def test_one_dark_spot_beside_a_small_object_is_no_shadow():
    background = np.repeat(0.4 + 0.3 * np.random.default_rng(0).random((120, 160, 1)), 3, axis=2).astype(np.float32)
    is_object = np.zeros((120, 160), bool)
    is_object[50:60, 60:72] = True
    source = background.copy()
    source[60:62, 64:66] *= 0.1
    assert not find_shadow(source, background, is_object)[0].any()


def test_the_rim_of_a_wide_part_that_no_frame_shows_is_inpainted_too():
    is_unseen = np.zeros((60, 80), bool)
    is_unseen[10:30, 10:40] = True
    is_unseen[45, 5:70] = True  # thinner than the rim
    border = find_unseen_border(is_unseen, 4)
    assert border[6:34, 20].all() and not border[5, 20] and not border[34, 20]
    assert not border[40:].any()


def test_the_scene_shadow_has_a_shadow_that_the_background_alone_lacks():
    scene = SCENES["shadow"](96, 54, 5)
    frame, clean = scene.frame(2), scene.background_frame(2)
    ratio = frame.rgb[frame.alpha[0] == 0].astype(float).sum() / clean[frame.alpha[0] == 0].sum()
    assert ratio < 0.97
    assert frame.light.min() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("sigma_px", [3.0, 20.0])
def test_a_wide_blur_on_a_smaller_image_looks_like_the_exact_one(sigma_px):
    edge = np.zeros((120, 160, 3), np.float32)
    edge[:, 80:] = 1
    np.testing.assert_allclose(blur(edge, sigma_px), cv2.GaussianBlur(edge, (0, 0), sigma_px), atol=0.01)
