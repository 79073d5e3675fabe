"""Looks: atlases whose colours change over time, and paint that shows around the frame of a look."""

import numpy as np
import pytest
import torch

from editing.atlas_file import AtlasFile, LayerImage, look_weights
from editing.layer_edit import LayerEdit
from editing.render_edits import sample_layer
from grids.look_fit import NO_BOX, estimate_seconds, find_boxes, fit_looks
from grids.looks import CHANGE_STEP, Look, blend_looks, space_looks, weigh_looks
from grids.model import GridModel
from grids.shape import Shape, Spacing
from rendering.atlas_view import AtlasView
from unwrap_utils import empty_video

FRAMES, HEIGHT, WIDTH = 9, 24, 32
LIGHT = slice(8, 16)  # rows and columns of the object


@pytest.fixture
def blinking():
    """A clip of a still object that goes from dark to bright on a still grey background, and a model without looks."""
    video = empty_video((FRAMES, HEIGHT, WIDTH))
    video.frames.fill_(100)
    video.masks[0, :, LIGHT, LIGHT] = 255
    for t in range(FRAMES):
        video.frames[t, LIGHT, LIGHT] = 40 + 20 * t
    model = GridModel(Shape(video.size, ((HEIGHT, WIDTH),) * 2, Spacing(((16, 2),), ((8, 1),), 0)))
    model.atlases[0].data.fill_(120 / 255)
    model.atlases[1].data.fill_(100 / 255)
    inside = torch.full((1, FRAMES, HEIGHT, WIDTH), -60, dtype=torch.int8)
    inside[:, :, LIGHT, LIGHT] = 60
    model.keep_masks(inside, torch.ones(1, FRAMES, dtype=torch.bool))
    return video, model.eval()


def error(model, video) -> float:
    """The largest difference of a frame that the model renders, in grey levels."""
    shown = [model.frame_sample(t, video.size, True, with_colors=True).rgb for t in range(FRAMES)]
    frames = video.frames.flatten(1, 2) / 255
    return float((torch.stack(shown) - frames).abs().max().detach() * 255)


def test_looks_are_spread_from_the_first_frame_to_the_last():
    assert space_looks(25, 12) == [0, 12, 24]
    assert space_looks(70, 12)[-1] == 69
    assert space_looks(6, 12) == []
    assert space_looks(100, 0) == []


def test_a_frame_shows_the_two_looks_beside_it():
    assert weigh_looks([0, 4, 8], 3) == [(0, 0.25), (1, 0.75)]
    assert weigh_looks([0, 4, 8], 4) == [(1, 1.0)]
    assert weigh_looks([0, 4, 8], 8) == [(2, 1.0)]


def test_looks_show_colours_that_change_over_time(blinking):
    video, model = blinking
    assert error(model, video) > 75
    with torch.no_grad():
        fit_looks(model, video, 4)
    assert len(model.looks) == 3
    assert error(model, video) < 12, "two passes leave an eighth: the colours change evenly, which looks can show"


def test_an_object_that_some_frames_do_not_show_has_looks_from_the_others(blinking):
    video, model = blinking
    model.boxes[0, :4] = 0
    model.cpu_boxes = None
    assert find_boxes(model, 0)[0] == NO_BOX
    assert find_boxes(model, 4)[0] != NO_BOX
    with torch.no_grad():
        fit_looks(model, video, 2)
        shown = [model.frame_sample(t, video.size, True, with_colors=True).rgb for t in (7, 8)]
    assert (torch.stack(shown) - video.frames[7:].flatten(1, 2) / 255).abs().max() < 8 / 255
    assert model.looks[0].boxes[0] == NO_BOX
    assert not model.looks[0].change(0).any()


def test_a_look_changes_nothing_where_the_atlas_is_right(blinking):
    video, model = blinking
    with torch.no_grad():
        fit_looks(model, video, 4)
        background = [model.atlas_at(t, 1) for t in range(FRAMES)]
    top, bottom, left, right = model.looks[0].boxes[1]
    assert (bottom - top, right - left) == (HEIGHT, WIDTH)
    assert all(torch.allclose(atlas[..., 20:, :], model.atlases[1][..., 20:, :], atol=1e-6) for atlas in background)


def test_texels_that_no_pixel_shows_keep_the_colour_of_the_atlas(blinking):
    video, model = blinking
    with torch.no_grad():
        fit_looks(model, video, 4)
    behind_the_object = model.looks[1].change(1)[:, 10:14, 10:14]
    assert not behind_the_object.any()
    assert model.looks[0].change(0).any()


def test_a_short_clip_has_one_look(blinking):
    video, model = blinking
    fit_looks(model, video, 100)
    assert len(model.looks) == 0
    assert estimate_seconds(model, video, 100) == 0
    assert estimate_seconds(model, video, 4) > 0


def test_a_checkpoint_keeps_the_looks(blinking, tmp_path):
    video, model = blinking
    with torch.no_grad():
        fit_looks(model, video, 4)
    copy = GridModel.from_checkpoint(model.checkpoint(), tmp_path)
    assert [look.boxes for look in copy.looks] == [look.boxes for look in model.looks]
    sample, again = (each.frame_sample(5, video.size, True, with_colors=True) for each in (model, copy))
    torch.testing.assert_close(sample.rgb, again.rgb)


def test_a_look_holds_differences_of_half_a_colour_and_more_are_cut_off():
    look = Look(0.0, [(1, 3, 2, 5)])
    look.add_change(0, torch.full((3, 2, 3), 0.25))
    atlas = torch.full((1, 3, 8, 8), 0.5)
    blended = blend_looks(atlas, [look, Look(4.0, [(0, 1, 0, 1)])], 0, 0)
    assert blended[0, 0, 1:3, 2:5].min() == pytest.approx(0.75, abs=CHANGE_STEP)
    assert blended[0, 0, 0].max() == 0.5
    look.add_change(0, torch.full((3, 2, 3), 9.0))
    assert look.change(0).max() == 127
    assert atlas.max() == 0.5  # The atlas itself stays.


def test_two_looks_are_added_before_colours_are_limited():
    looks = [Look(0.0, [(0, 2, 0, 2)]), Look(4.0, [(0, 2, 0, 2)])]
    looks[0].add_change(0, torch.full((3, 2, 2), 0.4))
    looks[1].add_change(0, torch.full((3, 2, 2), -0.4))
    atlas = torch.full((1, 3, 2, 2), 0.9)
    assert blend_looks(atlas, looks, 0, 2).min() == pytest.approx(0.9, abs=1e-5)
    assert blend_looks(atlas, looks, 0, 0).max() == 1


# paint on looks


def test_the_paint_of_all_looks_adds_up_to_one_in_every_frame():
    weights = look_weights([0, 12, 24, 36], 37)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert weights[1, 12] == 1
    assert weights[1, 3] == 0
    assert 0 < weights[1, 6] < 1


def make_edit(value: float, weights) -> LayerEdit:
    rgba = torch.full((4, 4, 4), value)
    rgba[..., 3] = 1
    return LayerEdit(0, rgba, AtlasView(0.0, 0.0, 1.0, 1.0), frame_weights=weights)


def test_two_looks_with_the_same_paint_blend_without_a_change():
    uv = torch.full((2, 2, 2), 0.5)
    weights = look_weights([0, 4], 5)
    edits = [make_edit(0.6, tuple(row)) for row in weights.tolist()]
    for t in range(5):
        np.testing.assert_allclose(sample_layer(edits, uv, t)[..., 0], 0.6, atol=1e-6)
        np.testing.assert_allclose(sample_layer(edits, uv, t)[..., 3], 1, atol=1e-6)
    assert not sample_layer(edits[:1], uv, 4).any()


def test_paint_on_a_look_is_opaque_once_whatever_the_order_of_the_files():
    uv = torch.full((2, 2, 2), 0.5)
    first, other = (tuple(row) for row in look_weights([0, 4], 5).tolist())
    edits = [make_edit(0.3, first), make_edit(0.5, other), make_edit(0.6, first)]
    np.testing.assert_allclose(sample_layer(edits, uv, 0), [[[0.6, 0.6, 0.6, 1]] * 2] * 2, atol=1e-6)
    np.testing.assert_allclose(sample_layer(edits, uv, 2)[..., 0], 0.55, atol=1e-6)


def test_paint_on_a_look_covers_paint_on_the_atlas():
    uv = torch.full((2, 2, 2), 0.5)
    both = [make_edit(0.2, None), make_edit(0.8, (1.0, 0.0))]
    assert sample_layer(both, uv, 0)[0, 0, 0] == pytest.approx(0.8)
    assert sample_layer(both, uv, 1)[0, 0, 0] == pytest.approx(0.2)


def test_a_picture_belongs_to_the_look_whose_name_it_begins_with(tmp_path):
    base = LayerImage("foreground.png", 0, 10, 10, 0.0, 0.0, 0.1)
    looks = [LayerImage(f"foreground_look_{t:03d}.png", 0, 10, 10, 0.0, 0.0, 0.1, look=t) for t in (0, 12, 120, 1200)]
    atlas = AtlasFile("run", "0", [base], looks)
    assert atlas.find_image(tmp_path / "foreground_look_012_logo.png", 0) is looks[1]
    assert atlas.find_image(tmp_path / "foreground_look_1200.ora", 0) is looks[3]
    assert atlas.find_image(tmp_path / "foreground_look_120.ora", 0) is looks[2]
    assert atlas.find_image(tmp_path / "logo.png", 0) is base
    assert atlas.frame_weights(base, 13) is None
    assert atlas.frame_weights(looks[1], 13)[12] == 1
