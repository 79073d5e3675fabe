"""The extent of an object, by which the size of its atlas is chosen."""

import numpy as np
import torch

from grids import atlas_size
from grids.atlas_size import surface_extent, texel_extent
from grids.corrections import enlarge_boxes
from grids.model import GridModel
from grids.shape import Shape, Spacing
from grids.start import ATLAS_MARGIN, fit_object_atlas

FRAMES, HEIGHT, WIDTH = 6, 108, 192
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def turn(angle):
    """The transform (3, 3) that turns positions by an angle about the middle of the frame."""
    cos, sin = np.cos(angle), np.sin(angle)
    middle = np.array([[1, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])
    return middle @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.linalg.inv(middle)


def disks(radius=25):
    inside = np.hypot(X - WIDTH / 2, Y - HEIGHT / 2) < radius
    return np.repeat(inside[None], FRAMES, axis=0)


def test_the_extent_of_a_disk_that_turns_is_that_of_the_disk_and_not_of_boxes_around_it():
    transforms = np.stack([turn(angle) for angle in np.linspace(0, 2, FRAMES)])
    low, high = surface_extent(transforms, disks())
    np.testing.assert_allclose(high - low, 50, atol=2)
    np.testing.assert_allclose((high + low) / 2, [WIDTH / 2, HEIGHT / 2], atol=1)


def test_a_speck_in_one_frame_does_not_enlarge_the_atlas_and_a_part_in_one_frame_does():
    transforms, plain = np.repeat(np.eye(3)[None], FRAMES, axis=0), disks()
    with_speck, with_part = plain.copy(), plain.copy()
    with_speck[2, 5, 185] = True
    with_part[2, 5:13, 180:190] = True
    _, size = fit_object_atlas(transforms, plain)
    assert fit_object_atlas(transforms, with_speck)[1] == size
    to_atlas, (height, width) = fit_object_atlas(transforms, with_part)
    x, y, _ = to_atlas @ [189, 5, 1]
    assert 0 < y < height
    assert x < width
    assert width > size[1] + 40


def test_the_atlas_has_a_margin_around_every_pixel_of_the_object():
    to_atlas, (height, width) = fit_object_atlas(np.repeat(np.eye(3)[None], FRAMES, axis=0), disks())
    points = np.stack((X[disks()[0]], Y[disks()[0]]), axis=1) @ to_atlas[:2, :2].T + to_atlas[:2, 2]
    margin = ATLAS_MARGIN * 49
    assert (points >= margin - 1).all()
    assert (points <= [width - margin, height - margin]).all()


def test_an_object_that_no_frame_shows_gets_a_small_atlas():
    _, (height, width) = fit_object_atlas(np.repeat(np.eye(3)[None], FRAMES, axis=0), disks() & False)
    assert max(height, width) < 10


def test_a_thin_object_in_large_frames_is_seen_to_its_ends():
    inside = np.zeros((2, 432, 768), bool)
    inside[:, 200:203, 21:750] = True
    low, high = surface_extent(np.repeat(np.eye(3)[None], 2, axis=0), inside)
    np.testing.assert_allclose([low, high], [[21, 200], [749, 202]], atol=0.5)


def test_strokes_enlarge_an_atlas_for_a_part_that_one_frame_alone_shows(monkeypatch):
    spacing = Spacing(((64, 4), (24, 2), (12, 1)), ((8, 1),), 0)
    model = GridModel(Shape((FRAMES, HEIGHT, WIDTH), ((60, 60), (HEIGHT, WIDTH)), spacing, False))
    shift = torch.eye(3)
    shift[0, 2], shift[1, 2] = 30 - WIDTH / 2, 30 - HEIGHT / 2
    model.transforms[0], model.transforms[1] = shift, torch.eye(3)
    opacity = disks().astype(np.uint8)[None] * 255
    enlarge_boxes(model, opacity)
    assert model.shape.atlas_sizes[0] == (60, 60)
    monkeypatch.setattr(atlas_size, "MOST_EXTENT_PIXELS", 100)  # as if the object had many more pixels
    opacity[0, 3, 50:52, 140:142] = 255  # found by a stroke
    enlarge_boxes(model, opacity)
    assert texel_extent(model, 0, opacity[0] > 127, speck_share=0)[1][0] < model.shape.atlas_sizes[0][1]
    assert model.shape.atlas_sizes[0][1] > 70
