"""A new shape of an object: the part that it leaves free shows what is behind the object, in all frames."""

import numpy as np
import pytest
import torch

import media
import only_edit
from command_line import UserError
from editing.attachment import attach_paint
from editing.new_shape import clear_free_part, find_free_part, render_without
from rendering.frames import Frame, render_frame
from rendering.hidden_light import continue_light
from rendering.trained_run import open_run

HEIGHT, WIDTH = 60, 90
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
COLORS = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # of objects 1 and 2, and the background


class PlainModel:
    """A model whose layers have one colour each. The mapping is the position in the frame."""

    def __init__(self, objects):
        self.objects = objects
        self.atlas_centers = torch.zeros(objects + 1, 1, 2)

    def colors(self, uv):
        chosen = COLORS[2 - self.objects :]
        return chosen[:, None].expand(-1, uv.shape[1], -1)

    def parameters(self):
        return iter([COLORS])


def make_frame(*masks, shift=0.0):
    """A frame of objects with these masks (H, W), front to back, moved to the right by `shift` pixels."""
    uv = (np.dstack((X - shift, Y)) / WIDTH - 0.5).astype(np.float32)
    alphas = np.stack([mask.astype(np.float32) for mask in masks])
    return Frame(0, np.stack([uv] * (len(masks) + 1)), alphas, np.zeros((HEIGHT, WIDTH, 3), np.float32))


def box(left, right):
    return (left <= X) & (right > X) & (Y >= 20) & (Y < 40)


def test_the_part_left_free_moves_with_the_object_and_shows_the_background():
    model, drawn, later = PlainModel(1), make_frame(box(20, 50)), make_frame(box(28, 58), shift=8)
    shape = box(20, 36).astype(np.float32)  # the left half remains
    part = find_free_part(model, attach_paint(drawn, {0}), shape, 0)
    _, color, shown = clear_free_part(model, later, attach_paint(later, {0}), part, WIDTH)
    assert shown[22:38, 47:56].min() > 0.99
    assert shown[22:38, 30:42].max() < 0.01
    assert shown[:, 64:].max() < 0.01  # far from the object nothing changes
    np.testing.assert_allclose(color[30, 50], [0, 1, 0], atol=0.01)


def test_nothing_of_the_object_remains_where_it_is_left_free_so_its_paint_goes_and_that_behind_it_shows():
    model, drawn = PlainModel(1), make_frame(box(20, 50))
    part = find_free_part(model, attach_paint(drawn, {0}), box(20, 36).astype(np.float32), 0)
    remaining, _, _ = clear_free_part(model, drawn, attach_paint(drawn, {0}), part, WIDTH)
    assert remaining.visibility[0][22:38, 40:48].max() < 0.01
    assert remaining.visibility[1][22:38, 40:48].min() > 0.99
    np.testing.assert_array_equal(remaining.visibility[0][22:38, 22:32], drawn.visibility[0][22:38, 22:32])


def test_a_thin_rim_beyond_the_drawn_outline_is_cleared_too():
    model, drawn, later = PlainModel(1), make_frame(box(20, 50)), make_frame(box(20, 51))
    part = find_free_part(model, attach_paint(drawn, {0}), box(20, 36).astype(np.float32), 0)
    assert clear_free_part(model, later, attach_paint(later, {0}), part, WIDTH)[2][30, 50] > 0.9


def test_parts_that_the_drawn_frame_does_not_show_stay():
    model, drawn = PlainModel(1), make_frame(box(20, 50))
    wider = make_frame(box(20, 80))
    part = find_free_part(model, attach_paint(drawn, {0}), box(20, 36).astype(np.float32), 0)
    assert clear_free_part(model, wider, attach_paint(wider, {0}), part, WIDTH)[2][30, 60:78].max() < 0.01


def test_a_shape_that_covers_the_object_clears_nothing():
    drawn = make_frame(box(20, 50))
    assert find_free_part(PlainModel(1), attach_paint(drawn, {0}), np.ones((HEIGHT, WIDTH), np.float32), 0) is None


def test_an_object_behind_shows_where_the_one_in_front_is_left_free_and_objects_in_front_stay():
    model, frame = PlainModel(2), make_frame(box(20, 50), box(30, 70))
    np.testing.assert_allclose(render_without(model, frame, 0, WIDTH)[30, 40], [1, 0, 0])
    np.testing.assert_allclose(render_without(model, frame, 0, WIDTH)[30, 25], [0, 1, 0])
    part = find_free_part(model, attach_paint(frame, {1}), np.zeros((HEIGHT, WIDTH), np.float32), 1)
    shown = clear_free_part(model, frame, attach_paint(frame, {1}), part, WIDTH)[2]
    assert shown[30, 60] > 0.99
    assert shown[30, 40] < 0.01


def write_pictures(tmp_path, size, shape):
    media.write_png(tmp_path / "paint.png", np.zeros((*size, 4), np.uint8))
    media.write_png(tmp_path / "shape.png", shape)


def edit(run, out, *flags):
    only_edit.main([f"--trained_model_folder={run}", f"--output_folder={out}", "--format=png", *flags])
    return [media.read_rgb(path).astype(int) for path in sorted(next(out.glob("edited_*/")).iterdir())]


def test_an_empty_shape_shows_what_is_behind_the_object_of_a_run(finished_run, shared_clip, tmp_path):
    sources = [media.read_rgb(path).astype(int) for path in media.list_images(shared_clip)]
    size = sources[0].shape[:2]
    write_pictures(tmp_path, size, np.zeros(size, np.uint8))
    flags = [f"--edit_frame=1:{tmp_path / 'paint.png'}", "--edit_frame_attach=1"]
    edited = edit(finished_run, tmp_path / "out", *flags, f"--edit_frame_shape={tmp_path / 'shape.png'}")
    run = open_run(finished_run)
    frame = render_frame(run.model, run.clip, 1, run.full_range)
    shows_object = frame.alpha[0] > 0.5
    assert shows_object.any()
    behind = 255 * render_without(run.model, frame, 0, max(run.clip.size[1:]))
    assert np.abs(edited[1] - behind)[shows_object].max() < 3
    assert np.abs(edited[1] - sources[1])[shows_object].mean() > 3
    kept = edit(finished_run, tmp_path / "same", *flags)
    for source, picture in zip(sources, kept, strict=True):
        np.testing.assert_array_equal(source, picture)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "say of which one: --edit_frame_attach N"),
        (("--edit_frame_attach=1", "--edit_frame", "2:other.png"), "give one --edit_frame with it"),
    ],
)
def test_a_shape_that_belongs_to_nothing_is_one_line(finished_run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        edit(finished_run, tmp_path / "out", "--edit_frame", "1:paint.png", "--edit_frame_shape=shape.png", *flags)


def test_a_shape_of_another_aspect_is_one_line(finished_run, shared_clip, tmp_path):
    size = media.read_rgb(media.list_images(shared_clip)[0]).shape[:2]
    write_pictures(tmp_path, size, np.zeros((30, 90), np.uint8))
    flags = ["--edit_frame_attach=1", f"--edit_frame_shape={tmp_path / 'shape.png'}"]
    with pytest.raises(UserError, match=r"shape\.png: is 90 x 30"):
        edit(finished_run, tmp_path / "out", f"--edit_frame=1:{tmp_path / 'paint.png'}", *flags)
    assert not (tmp_path / "out").exists()


def test_a_shape_that_covers_everything_changes_nothing_and_says_so(finished_run, shared_clip, tmp_path, capsys):
    sources = [media.read_rgb(path).astype(int) for path in media.list_images(shared_clip)]
    size = sources[0].shape[:2]
    write_pictures(tmp_path, size, np.full(size, 255, np.uint8))
    flags = ["--edit_frame_attach=1", f"--edit_frame_shape={tmp_path / 'shape.png'}"]
    edited = edit(finished_run, tmp_path / "out", f"--edit_frame=1:{tmp_path / 'paint.png'}", *flags)
    assert "covers object 1 in frame 1 and leaves nothing free" in capsys.readouterr().err
    np.testing.assert_array_equal(np.stack(edited), np.stack(sources))


def test_a_shape_is_cleared_alike_at_the_frames_own_size(finished_run, shared_clip, tmp_path):
    size = media.read_rgb(media.list_images(shared_clip)[0]).shape[:2]
    write_pictures(tmp_path, size, np.zeros(size, np.uint8))
    flags = ["--edit_frame_attach=1", f"--edit_frame_shape={tmp_path / 'shape.png'}"]
    flags.append(f"--edit_frame=1:{tmp_path / 'paint.png'}")
    working, native = (
        edit(finished_run, tmp_path / space, *flags, f"--edit_space={space}") for space in ("working", "native")
    )
    assert np.abs(np.stack(working) - np.stack(native)).max() <= 2


def test_the_light_on_what_an_object_hides_goes_on_from_around_it():
    light = np.full((64, 96, 3), 0.8, np.float32)
    is_hidden = np.zeros((64, 96), bool)
    is_hidden[20:40, 10:30] = True
    light[19:41, 9:31] = 1.9  # that of the object, mixed into what is around it
    continued = continue_light(light, is_hidden, 96)
    np.testing.assert_allclose(continued[is_hidden], 0.8, atol=0.02)
    np.testing.assert_array_equal(continued[~is_hidden], light[~is_hidden])
    everywhere = np.ones((64, 96), bool)
    np.testing.assert_array_equal(continue_light(light, everywhere, 96), light)
