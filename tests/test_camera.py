"""Wide pans: the surface on which the background's atlas lies, and the model that uses it."""

import numpy as np
import pytest
import torch

from alignment.camera import (
    angle_range,
    choose_surface,
    density_spread,
    fit_cylinder,
    fit_rotations,
    search_focal_length,
    straighten,
    turn_angle,
)
from alignment.layers import align_layer
from alignment.tracks import pad_pairs, sample_point_pairs
from alignment.transforms import chain_transforms
from grids.fields import Lattice
from grids.model import GridModel
from grids.shape import Shape, Spacing
from grids.surfaces import invert_2x2, leave_surface, meet_surface, middle_jacobians, surface_jacobians
from grids.unwrap import invert_mapping
from scenes.catalogue import SCENES
from scenes.scene import Panorama, View, camera_matrix
from unwrap_utils import empty_video, store_flow

SIZE = (160, 90, 24)  # width, height and frames
FRAME = (SIZE[1], SIZE[0])
NO_MATCHES = pad_pairs([])


def exact_video(name):
    """The frames, the masks and the exact flow of a drawn scene, and the scene."""
    scene = SCENES[name](*SIZE)
    video = empty_video((SIZE[2], SIZE[1], SIZE[0]))
    for t in range(SIZE[2]):
        drawn = scene.frame(t)
        video.frames[t] = torch.from_numpy(drawn.rgb)
        video.masks[0, t] = torch.from_numpy((drawn.alpha[0] * 255).astype(np.uint8))
        for direction, other in ((0, t + 1), (1, t - 1)):
            if 0 <= other < SIZE[2]:
                flow, visible = scene.flow(t, other)
                store_flow(video, direction, t, flow, visible)
    return video, scene


@pytest.fixture(scope="module")
def wide():
    """The scene with a wide pan: video, scene, pixels of the background and pairs of points on it."""
    video, scene = exact_video("wide")
    mask = ~np.asarray((video.masks.numpy() > 127).any(0))
    return video, scene, mask, sample_point_pairs(video, mask)


def test_the_two_conversions_of_a_panorama_invert_each_other():
    view = View(0.7, -0.1, 150.0)
    panorama = Panorama(np.zeros((50, 200, 3), np.uint8), lambda t: view, 300.0, (160, 90))
    points = np.random.default_rng(0).uniform([0, 0], [159, 89], (50, 2))
    np.testing.assert_allclose(panorama.to_frame(panorama.to_photograph(points, 0), 0), points, atol=1e-9)
    behind = panorama.pivot + [300 * (0.7 + np.pi), 0]
    assert np.abs(panorama.to_frame(behind, 0)).max() > 1e5
    np.testing.assert_allclose(camera_matrix(view) @ camera_matrix(view).T, np.eye(3), atol=1e-12)


def test_a_small_pan_stays_on_a_plane(capsys):
    video, _ = exact_video("pan")
    mask = ~np.asarray((video.masks.numpy() > 127).any(0))
    homographies = align_layer(video, mask, "homography")
    surface, matches = choose_surface(video, mask, homographies)
    assert not surface.is_cylinder
    assert matches is None
    np.testing.assert_array_equal(surface.transforms, homographies)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_wide_pan_lies_on_a_cylinder_with_even_texels(wide, capsys, monkeypatch):
    video, _, mask, _ = wide
    fitted = []

    def fit_and_note(*arguments):
        fitted.append(fit_cylinder(*arguments))
        return fitted[-1]

    monkeypatch.setattr("alignment.camera.fit_cylinder", fit_and_note)
    homographies = align_layer(video, mask, "homography")
    surface, matches = choose_surface(video, mask, homographies)
    assert surface.is_cylinder
    assert surface is fitted[0][0]
    assert matches is fitted[0][1], "its camera finds matches of its own"
    assert density_spread(surface, FRAME) < 1.7
    assert np.degrees(turn_angle(surface, FRAME)) == pytest.approx(120, abs=6)
    assert "its atlas is a cylinder, because the camera turns by 1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_focal_length_is_found(wide):
    _, scene, _, pairs = wide
    reference = SIZE[2] // 2
    homographies = chain_transforms(pairs, SIZE[2], reference, "homography")
    focal = search_focal_length(homographies, pairs, reference, FRAME)
    true_focal = scene.layers[-1].view(reference).focal_px / (SIZE[0] / 2)
    assert focal == pytest.approx(true_focal, rel=0.06)


@pytest.mark.slow
def test_points_of_the_background_keep_their_place_on_the_cylinder(wide):
    video, scene, mask, pairs = wide
    cylinder, _ = fit_cylinder(video, mask, pairs)
    points = np.array([[20.0, 20], [80, 45], [140, 70]])
    layer, start = scene.layers[-1], SIZE[2] // 2
    places = cylinder.unroll(points)[start]
    px_per_unit = np.linalg.norm(np.diff(cylinder.unroll(np.array([[80.0, 45], [81, 45]]))[start], axis=0))
    for t in (start - 5, start + 5):
        moved = layer.to_frame(layer.to_photograph(points, start), t)
        error = np.linalg.norm(cylinder.unroll(moved)[t] - places, axis=-1) / px_per_unit
        assert error.max() < 1


@pytest.mark.slow
def test_the_reference_frame_stands_upright_on_its_cylinder(wide):
    video, _, mask, pairs = wide
    cylinder, _ = fit_cylinder(video, mask, pairs)
    reference = SIZE[2] // 2
    left, right = cylinder.unroll(np.array([[79.0, 44.5], [81.0, 44.5]]))[reference]
    assert right[0] > left[0]
    assert right[1] == pytest.approx(left[1], abs=1e-5)


def camera_rays(pans):
    """The rays of a camera that looks at angles in degrees, for frames of FRAME, with a field of view of 64 degrees."""
    focal = 0.8 * SIZE[0]
    to_camera = np.array([[1 / focal, 0, -79.5 / focal], [0, 1 / focal, -44.5 / focal], [0, 0, 1]])
    return np.stack([camera_matrix(View(np.radians(pan), 0.02, focal)) @ to_camera for pan in pans])


def test_a_pan_that_waits_at_one_end_has_its_seam_opposite_of_what_is_seen():
    cylinder = straighten(camera_rays([0.0] * 90 + list(np.linspace(0, 170, 10))), 5, FRAME)
    low, high = angle_range(cylinder, FRAME)
    assert np.degrees(high - low) == pytest.approx(170 + 64, abs=4)
    assert low == pytest.approx(-high, abs=1e-6)
    outline = np.array([[0.0, 0], [159, 89]])
    assert np.abs(cylinder.unroll(outline)[..., 0]).max() < np.pi  # No frame crosses the seam.
    assert np.degrees(turn_angle(cylinder, FRAME)) == pytest.approx(170, abs=1)


@pytest.mark.slow
def test_a_plane_that_fits_much_better_is_kept(wide, monkeypatch):
    video, _, mask, _ = wide
    plane = align_layer(video, mask, "homography")
    plane[:, 2, 0] += 1e-9  # homographies, though almost without perspective
    spreads = iter([5.0, 1.0, 1.0])
    monkeypatch.setattr("alignment.camera.density_spread", lambda *_: next(spreads))
    monkeypatch.setattr("alignment.camera.fit_cylinder", lambda *_: (None, NO_MATCHES))
    monkeypatch.setattr(
        "alignment.camera.median_residual_px", lambda transforms, _: 0.1 if transforms is plane else 1.2
    )
    assert choose_surface(video, mask, plane)[0].transforms is plane


@pytest.mark.slow
def test_a_camera_that_does_not_move_has_no_rotation(wide):
    video, _, mask, _ = wide
    pairs = sample_point_pairs(video, mask)
    pairs.end_px[:] = pairs.start_px
    still = np.tile(np.eye(3), (SIZE[2], 1, 1))
    rays, cost = fit_rotations(still, pairs, 0, FRAME, 1.5, 5)
    assert cost == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(rays, np.tile(rays[0], (SIZE[2], 1, 1)), atol=1e-9)


UNROLL = torch.tensor([[150.0, 4.0, 90.0], [-4.0, 150.0, 40.0], [0, 0, 1]])


@pytest.mark.parametrize("unroll", [None, UNROLL])
def test_a_surface_is_left_where_it_was_met(unroll):
    rays = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.2, -0.1], [1.0, 0.9, 1.2]])
    again = leave_surface(meet_surface(rays, unroll), unroll)
    torch.testing.assert_close(again / again[2], rays / rays[2])


@pytest.mark.parametrize("unroll", [None, UNROLL])
def test_the_derivatives_of_a_surface_are_those_of_its_texels(unroll):
    transforms = torch.tensor([[[0.01, 0.001, -0.4], [-0.002, 0.01, -0.2], [0.001, 0.0005, 1.1]]], dtype=torch.float64)
    points = torch.tensor([[10.0, 40.0], [20.0, 5.0]], dtype=torch.float64)
    unroll = None if unroll is None else unroll.double()

    def texels(x, y):
        return meet_surface(transforms[0] @ torch.stack((x, y, torch.ones_like(x))), unroll)

    jacobians = surface_jacobians(transforms, points, unroll)[0]
    for n, (x, y) in enumerate(points.T):
        expected = torch.autograd.functional.jacobian(lambda p: texels(p[:1], p[1:])[:, 0], torch.stack((x, y)))
        torch.testing.assert_close(jacobians[n], expected)
    middle = middle_jacobians(transforms, (31, 51), unroll)
    torch.testing.assert_close(
        middle, surface_jacobians(transforms, torch.tensor([[25.0], [15.0]]).double(), unroll)[:, 0]
    )


def test_small_matrices_are_inverted():
    matrices = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(invert_2x2(matrices), torch.linalg.inv(matrices))


def cylinder_model():
    """A model of two frames whose background is a cylinder, with small displacements."""
    spacing = Spacing(((16, 1),), ((8, 1),), 0)
    model = GridModel(Shape((2, 40, 60), ((30, 30), (90, 200)), spacing, has_cylinder=True))
    focal = 70.0
    for t, angle in enumerate((-0.2, 0.3)):
        to_camera = np.array([[1 / focal, 0, -29.5 / focal], [0, 1 / focal, -19.5 / focal], [0, 0, 1]])
        model.transforms[1, t] = torch.from_numpy(camera_matrix(View(angle, 0.05, focal)) @ to_camera)
    model.unrolled_to_texels.copy_(torch.tensor([[70.0, 0, 100], [0, 70, 45], [0, 0, 1]]))
    torch.manual_seed(0)
    for grid in model.mappings[1]:
        grid.values.data.normal_(0, 0.2)
    return model


def test_the_mapping_of_a_cylinder_is_inverted_in_every_pixel():
    model = cylinder_model()
    height, width = model.shape.atlas_sizes[1]
    lattice = Lattice(torch.arange(height).float(), torch.arange(width).float(), (height, width))
    for t in range(2):
        positions = invert_mapping(model, 1, t, lattice)
        inside = (positions[0] >= 0) & (positions[0] <= 59) & (positions[1] >= 0) & (positions[1] <= 39)
        assert inside.sum() > 1500
        points = positions.flatten(1)[None, :, inside.flatten()]
        texels = model.at_frames(t).map_points(1, torch.zeros(1, dtype=torch.long), points)[0]
        expected = lattice.points(torch.device("cpu"))[:2][:, inside.flatten()]
        assert (texels - expected).abs().max() < 0.25


def test_a_cylinder_is_stored_in_the_checkpoint(tmp_path):
    model = cylinder_model()
    again = GridModel.from_checkpoint(model.checkpoint(), tmp_path)
    assert again.shape.has_cylinder
    assert [again.projection(layer) for layer in (0, 1)] == ["plane", "cylinder"]
    torch.testing.assert_close(again.unrolled_to_texels, model.unrolled_to_texels)
    before, after = (each.frame_sample(1, (2, 40, 60), True, False).uv for each in (model, again))
    torch.testing.assert_close(before, after)


def test_a_checkpoint_from_before_cylinders_has_a_plane(tmp_path):
    checkpoint = GridModel(Shape((2, 40, 60), ((30, 30), (90, 200)), Spacing(((16, 1),), ((8, 1),), 0))).checkpoint()
    del checkpoint["grid_shape"]["has_cylinder"], checkpoint["grid_state_dict"]["unrolled_to_texels"]
    assert GridModel.from_checkpoint(checkpoint, tmp_path).surface(1) is None
