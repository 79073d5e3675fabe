"""Motion blur: how long the shutter was open is measured, and frames are matched as if they were blurred equally."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_exact_flow

from alignment import motion_blur
from alignment.layers import align_layers, layer_pixels
from alignment.long_range import match_distant_frames
from alignment.shutter import measure_shutter
from config import Config
from media.clip import open_clip
from scenes.catalogue import SHUTTER, fast
from scenes.files import write_scene
from scenes.scene import Scene
from unwrap_utils import Video, load_video

SIZE = (256, 144, 30)  # width, height and frames


def read_scene(scene: Scene, folder: Path) -> Video:
    """Write a scene with exact flow and read it at its own size."""
    written = write_exact_flow(write_scene(scene, folder))
    return load_video(open_clip(written, Config(data_folder=str(written), resx=None, resy=None)), torch.device("cpu"))


@pytest.fixture(scope="module")
def blurred(tmp_path_factory) -> tuple[Scene, Video]:
    """The scene whose object swings fast before an open shutter."""
    scene = fast(*SIZE)
    return scene, read_scene(scene, tmp_path_factory.mktemp("blurred"))


def test_the_exposure_time_of_blurred_frames_is_measured(blurred):
    _, video = blurred
    assert measure_shutter(video, align_layers(video)).shutter == pytest.approx(SHUTTER, abs=0.21)


def test_sharp_frames_have_no_exposure_time(tmp_path):
    video = read_scene(replace(fast(*SIZE), shutter=0.0), tmp_path)
    assert measure_shutter(video, align_layers(video)).shutter == 0


def test_matches_of_equally_blurred_frames_are_closer_to_the_truth(blurred):
    scene, video = blurred
    transforms = align_layers(video)
    mask, _ = layer_pixels(video)[0]

    def median_error_px(video: Video) -> float:
        """Return how far the matches of the object are from their true places."""
        pairs, errors = match_distant_frames(video, mask, transforms[0]), []
        for number, (source, target) in enumerate(zip(pairs.source, pairs.target, strict=True)):
            start, end = pairs.points_between(source, target)
            assert len(start) == (pairs.weight[number] > 0).sum()
            true_end = scene.move_points(start, np.zeros(len(start), int), source, target)
            errors += np.linalg.norm(true_end - end, axis=1).tolist()
        return float(np.median(errors))

    assert median_error_px(replace(video, shutter=SHUTTER)) < 0.7 * median_error_px(replace(video, shutter=0.0))


@pytest.mark.parametrize("motion", [(0.0, 0.0), (5.0, 0.0), (-2.4, 3.1), (0.3, 0.0)])
def test_blur_along_a_motion_keeps_brightness_and_middle(motion):
    kernel = motion_blur.make_kernel(np.array(motion))
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_blur_along_a_motion_is_as_long_as_the_motion():
    image = np.zeros((9, 41), np.uint8)
    image[4, 20] = 255
    blurred = motion_blur.blur_along(image, np.array([10.0, 0.0]))
    assert not blurred[[0, 1, 2, 3, 5, 6, 7, 8]].any()
    assert np.flatnonzero(blurred[4]).tolist() == list(range(15, 26))


def test_each_frame_is_measured_by_its_neighbours_motion():
    transforms = np.tile(np.eye(3), (4, 1, 1))
    transforms[:, 0, 2] = [0, -1, -4, -9]  # The frames lie ever farther to the left of the layer.
    motions = [motion_blur.measure_motion(transforms, t, np.array([5.0, 5.0])) for t in range(4)]
    np.testing.assert_allclose(motions, [(1, 0), (2, 0), (4, 0), (5, 0)])


def test_slopes_are_equal_at_the_exposure_time_that_made_them_unequal():
    rng = np.random.default_rng(1)
    sharp = cv2.GaussianBlur(rng.integers(0, 256, (120, 160)).astype(np.uint8), (0, 0), 1.5)
    motion, second_motion = np.array([2.0, 1.0]), np.array([12.0, 6.0])
    shutter = motion_blur.SHUTTERS[6]
    first, second = (motion_blur.blur_along(sharp, shutter * each) for each in (motion, second_motion))
    mask = np.zeros(sharp.shape, bool)
    mask[20:-20, 20:-20] = True
    log_ratios = motion_blur.compare_slopes(first, second, mask, motion, second_motion)
    assert log_ratios[0] > 0.5  # The first one is steeper along the motion.
    assert abs(log_ratios[6]) < 0.1
    assert np.abs(log_ratios).argmin() in (5, 6, 7)


@pytest.mark.parametrize("change", ["fade", "defocus"])
def test_light_and_focus_are_no_motion_blur(change):
    rng = np.random.default_rng(1)
    sharp = cv2.GaussianBlur(rng.integers(0, 256, (120, 160)).astype(np.uint8), (0, 0), 1)
    other = sharp // 2 if change == "fade" else cv2.GaussianBlur(sharp, (0, 0), 1.5)
    motions = np.array([1.0, 0.0]), np.array([10.0, 0.0])
    log_ratios = motion_blur.compare_slopes(sharp, other, np.ones(sharp.shape, bool), *motions)
    assert abs(log_ratios[0]) < 0.15
    pairs = np.tile(log_ratios, (motion_blur.LEAST_PAIRS, 1))
    assert motion_blur.choose_shutter(pairs, np.full(len(pairs), 9.0)) == 0


@pytest.mark.parametrize("motion", [(np.nan, 0.0), (np.inf, 1.0), (500.0, 0.0)])
def test_motions_that_cannot_be_true_are_no_motion(motion):
    assert motion_blur.limit_motion(np.array(motion)).tolist() == [0, 0]
    assert motion_blur.limit_motion(np.array((30.0, -40.0))).tolist() == [30, -40]


@pytest.mark.parametrize(
    ("log_ratios", "differences_px", "expected"),
    [
        ([0.6, 0.0], 10.0, 1.0),
        ([0.6, 0.5], 10.0, 0.0),  # Blur explains little of the difference.
        ([0.1, 0.0], 10.0, 0.0),  # The frames are nearly equal.
        ([0.6, 0.0], 1.0, 0.0),  # Both frames move alike, so their blur is the same.
    ],
)
def test_an_exposure_time_is_believed_only_if_it_explains_clear_differences(log_ratios, differences_px, expected):
    ratios = np.interp(motion_blur.SHUTTERS, [0, 1], log_ratios)
    pairs = np.tile(ratios, (motion_blur.LEAST_PAIRS, 1))
    assert motion_blur.choose_shutter(pairs, np.full(len(pairs), differences_px)) == expected
    assert motion_blur.choose_shutter(pairs[:-1], np.full(len(pairs) - 1, differences_px)) == 0
