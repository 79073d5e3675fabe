"""Matches of features: what two images show is found however far it moved, and nothing else."""

import cv2
import numpy as np

from alignment import feature_matches
from alignment.feature_matches import Matches, is_supported, match_features

EVERYWHERE = np.ones((160, 200), bool)


def draw_texture(seed):
    """Return a smooth random grey image (160, 200)."""
    noise = np.random.default_rng(seed).uniform(0, 255, (160, 200)).astype(np.float32)
    return np.uint8(cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX))


def test_matches_follow_a_turn_and_a_long_way():
    image = draw_texture(0)
    turn = cv2.getRotationMatrix2D((100, 80), 30, 1) + [[0, 0, 25], [0, 0, -10]]
    matches = match_features(image, cv2.warpAffine(image, turn, (200, 160)), EVERYWHERE, EVERYWHERE)
    expected = matches.source @ turn[:, :2].T + turn[:, 2]
    assert len(matches) > 50
    assert np.quantile(np.linalg.norm(matches.target - expected, axis=1), 0.95) < 1.5


def test_matches_lie_in_the_areas():
    image = draw_texture(0)
    left, lower = EVERYWHERE.copy(), EVERYWHERE.copy()
    left[:, 100:], lower[:80] = False, False
    matches = match_features(image, image, left, lower)
    assert len(matches) > 10
    assert matches.source[:, 0].max() < 100
    assert matches.target[:, 1].min() >= 79


def test_images_that_share_nothing_have_hardly_any_match():
    assert len(match_features(draw_texture(0), draw_texture(1), EVERYWHERE, EVERYWHERE)) <= 3


def test_an_empty_area_has_no_match():
    assert len(match_features(draw_texture(0), draw_texture(0), ~EVERYWHERE, EVERYWHERE)) == 0


def test_strong_features_outside_the_area_do_not_take_the_place_of_faint_ones_in_it(monkeypatch):
    """The area is two small parts at both ends, so most features of the box around it lie outside."""
    monkeypatch.setattr(feature_matches, "MAX_FEATURES", 60)
    area = np.zeros((160, 200), bool)
    area[:, :40] = area[:, -40:] = True
    image = draw_texture(0)
    image[area] = 60 + image[area] // 2
    assert len(match_features(image, image, area, area)) > 30


def test_flat_images_have_no_match():
    assert len(match_features(*np.full((2, 160, 200), 90, np.uint8), EVERYWHERE, EVERYWHERE)) == 0


def test_a_match_that_moves_unlike_those_around_it_has_no_support():
    source = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2).astype(np.float32) * 10
    target = source * np.float32(1.1) + np.float32(30)
    target[7] -= 40
    expected = np.ones(20, bool)
    expected[7] = False
    np.testing.assert_array_equal(is_supported(Matches(source, target)), expected)
    assert not is_supported(Matches(source[:2], target[:2])).any()
