"""Whether the camera stands still: then the background does not move, whatever its flow says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import media
from alignment.camera import choose_surface
from alignment.layers import align_background, match_layers, refine_layer_long_range
from alignment.still_camera import are_still, is_camera_still
from config import Config
from grids.shape import Spacing
from grids.start import start_model
from media.flows import BACKWARD, FORWARD
from preprocessing.small_video import open_small_clip, read_small_video
from unwrap_utils import store_flow

SIZE = (96, 144)  # height, width
FRAMES = 12
STILL = np.tile(np.eye(3), (FRAMES, 1, 1))


def draw_clip(folder, camera_px: float, flicker: float = 0.0, noise: float = 0.0):
    """Return a clip of a textured wall, seen by a camera that pans by camera_px per frame; a square moves before it.

    flicker: share by which the light changes. noise: its standard deviation in grey levels.
    """
    rng = np.random.default_rng(0)
    wall = media.resize(rng.integers(0, 255, (24, 60, 3)).astype(np.uint8), 360, 144).astype(float)
    for t in range(FRAMES):
        left = round(camera_px * t)
        frame = wall[: SIZE[0], left : left + SIZE[1]] * (1 + flicker * np.sin(t)) + rng.normal(0, noise, (*SIZE, 3))
        frame[30:60, 10 + 7 * t : 40 + 7 * t] = (200, 40, 60)
        media.write_png(media.make_folder(folder) / f"{t:05d}.png", frame.clip(0, 255).astype(np.uint8))
    return read_small_video(open_small_clip(folder))


def wrong_transforms():
    """Return transforms of a background that follows the square."""
    transforms = STILL.copy()
    transforms[:, 0, 2] = -7.0 * np.arange(FRAMES)
    return transforms


@pytest.mark.parametrize(("flicker", "noise"), [(0.0, 0.0), (0.1, 0.0), (0.0, 3.0)])
def test_a_camera_that_stands_still_is_noticed_in_spite_of_wrong_transforms(tmp_path, flicker, noise):
    video = draw_clip(tmp_path / "wall", 0, flicker, noise)
    background = np.ones(video.size, bool)
    assert is_camera_still(video, background, wrong_transforms())
    transforms = align_background(video, background)
    np.testing.assert_array_equal(transforms, STILL)
    matches = match_layers(video, np.stack([transforms] * 2))[-1]
    assert not len(matches.source)
    refined = refine_layer_long_range(video, transforms, background, "homography", matches)
    np.testing.assert_array_equal(refined, STILL)
    assert not choose_surface(video, background, transforms)[0].is_cylinder


@pytest.mark.parametrize("camera_px", [0.5, 4])
def test_a_camera_that_pans_is_not_still(tmp_path, camera_px):
    video = draw_clip(tmp_path / "wall", camera_px)
    transforms = align_background(video, np.ones(video.size, bool))
    assert not are_still(transforms)
    moved_px = transforms[-1, 0, 2] - transforms[0, 0, 2]
    assert moved_px == pytest.approx(camera_px * (FRAMES - 1), abs=1)


def test_a_clip_that_shows_no_background_is_not_called_still(tmp_path):
    video = draw_clip(tmp_path / "wall", 0)
    assert not is_camera_still(video, np.zeros(video.size, bool), STILL)


def test_wrong_flow_does_not_bend_the_background_of_a_camera_that_stands_still(tmp_path):
    """The flow says that the wall sways, as it does beside an arm that moves before a wall without texture."""
    video = draw_clip(tmp_path / "wall", 0)
    video = replace(video, masks=torch.zeros((1, *video.size), dtype=torch.uint8), mask_sources=("brought",))
    for t in range(FRAMES):
        video.masks[0, t, 30:60, 10 + 7 * t : 40 + 7 * t] = 255
    sway = np.zeros((*SIZE, 2), np.float32)
    sway[..., 0] = 2 * np.linspace(0, 1, SIZE[0])[:, None]
    for t in range(FRAMES - 1):
        store_flow(video, FORWARD, t, sway, np.ones(SIZE, bool))
        store_flow(video, BACKWARD, t + 1, -sway, np.ones(SIZE, bool))
    spacing = Spacing.from_config(Config(data_folder="unused"))
    model, _ = start_model(video, spacing, "exact", 1, lambda model: None)
    assert 1 in model.rigid_layers
    assert not any(grid.values.any() for grid in model.fields_by_name()["mappings.1"])
    assert (model.transforms[1] == model.transforms[1, :1]).all()
