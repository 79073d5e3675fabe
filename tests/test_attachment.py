"""Paint that leaves the silhouette of its object: the mapping is continued by the object's motion."""

import numpy as np
import pytest

import media
import only_edit
from command_line import UserError
from editing import attachment
from editing.attachment import NOWHERE, attach_paint, continue_mapping, shows_object
from editing.layer_edit import front_transmittance
from rendering.blending import composite_edits
from rendering.frames import Frame

HEIGHT, WIDTH = 60, 90
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


def make_frame(inside, uv, front=None):
    """A frame of one object, or of two if `front` (H, W) hides a part of it, on a background."""
    alphas = [mask.astype(np.float32) for mask in ([] if front is None else [front]) + [inside]]
    plain = np.dstack((X, Y)) / WIDTH
    uvs = [plain] * (len(alphas) - 1) + [uv.astype(np.float32), plain]
    return Frame(0, np.stack(uvs), np.stack(alphas), np.zeros((HEIGHT, WIDTH, 3), np.float32))


def disk(x=45, y=35, radius=12):
    return (X - x) ** 2 + (Y - y) ** 2 < radius**2


def rotate(angle, center):
    """The mapping of a part that is rotated by an angle around a center (x, y)."""
    x, y = X - center[0], Y - center[1]
    c, s = np.cos(angle), np.sin(angle)
    return np.dstack((c * x - s * y, s * x + c * y)) / WIDTH


def test_a_rotated_and_scaled_object_is_continued_exactly_over_the_whole_frame():
    uv = 1.3 * rotate(0.4, (20, 30))
    garbage = np.where(disk()[..., None], uv, 7)  # what lies beyond the outline is never looked at
    np.testing.assert_allclose(continue_mapping(make_frame(disk(), garbage), 0), uv, atol=1e-3)


def test_inside_the_outline_the_mapping_stays_as_it_is():
    uv = rotate(0.2, (45, 35)) + 0.003 * np.sin(X / 3)[..., None]
    result = continue_mapping(make_frame(disk(), uv), 0)
    np.testing.assert_array_equal(result[disk()], uv.astype(np.float32)[disk()])


def test_above_a_body_whose_leg_swings_the_mapping_goes_with_the_body(monkeypatch):
    body, leg = (abs(X - 45) < 14) & (abs(Y - 26) < 10), (abs(X - 45) < 8) & (abs(Y - 47) < 11)
    body_uv, leg_uv = rotate(0.0, (45, 36)), rotate(0.6, (45, 36))
    frame = make_frame(body | leg, np.where(leg[..., None], leg_uv, body_uv))
    hat = (abs(X - 45) < 8) & (Y > 4) & (Y < 14)

    def mean_error_px():
        return (np.linalg.norm(continue_mapping(frame, 0) - body_uv, axis=-1)[hat] * WIDTH).mean()

    error_px = mean_error_px()
    assert error_px < 0.5
    monkeypatch.setattr(attachment, "FIT_ROUNDS", 1)  # All pixels have the same weight then.
    assert error_px < 0.4 * mean_error_px()


def test_beyond_a_head_that_turns_the_mapping_turns_with_the_head_and_not_with_the_body():
    head, body = disk(25, 20, 9), disk(65, 40, 16)
    head_uv, body_uv = rotate(0.5, (25, 20)), rotate(0.0, (25, 20))
    frame = make_frame(head | body, np.where(head[..., None], head_uv, body_uv))
    hat = (abs(X - 25) < 5) & (Y > 4) & (Y < 11)
    error_px = np.linalg.norm(continue_mapping(frame, 0) - head_uv, axis=-1)[hat] * WIDTH
    body_px = np.linalg.norm(body_uv - head_uv, axis=-1)[hat] * WIDTH  # if it moved like the body
    assert error_px.mean() < 0.25 * body_px.mean()
    beside_the_body = (abs(X - 65) < 5) & (Y > 57)
    error_px = np.linalg.norm(continue_mapping(frame, 0) - body_uv, axis=-1)[beside_the_body] * WIDTH
    assert error_px.mean() < 0.5


def test_paint_is_gone_where_the_frame_does_not_show_the_object():
    frame = make_frame(np.zeros((HEIGHT, WIDTH), bool), rotate(0, (0, 0)))
    assert not shows_object(frame, 0)
    assert (attach_paint(frame, {0}).uv[0] == NOWHERE).all()
    np.testing.assert_array_equal(attach_paint(frame, {0}).uv[1], frame.uv[1])


def test_what_is_in_front_of_the_object_hides_its_hat():
    front = X < 40
    frame = make_frame(disk(), rotate(0, (0, 0)), front)
    np.testing.assert_array_equal(front_transmittance(frame, 1), 1 - front)
    np.testing.assert_array_equal(front_transmittance(frame, 0), np.ones((HEIGHT, WIDTH)))


def test_attached_paint_covers_the_frame_and_the_edits_below_it():
    source = np.full((1, 1, 3), 0.2, np.float32)
    red, blue = (np.array([[[*color, 1.0]]], np.float32) for color in ((1, 0, 0), (0, 0, 0.5)))
    one, half = np.ones((1, 1), np.float32), np.full((1, 1), 0.5, np.float32)
    color, opacity = composite_edits(source, [(red, one)], attached=[(blue, half)])
    np.testing.assert_allclose(source * (1 - opacity) + color, [[[0.5, 0, 0.25]]])
    color, opacity = composite_edits(source, [], attached=[(blue, half)])
    np.testing.assert_allclose(source * (1 - opacity) + color, [[[0.1, 0.1, 0.35]]])


def source_frames(clip):
    return [media.read_rgb(path) for path in media.list_images(clip)]


def write_hat(path, shared_clip):
    """Paint a red square over the upper left corner of a frame, far from the object."""
    size = source_frames(shared_clip)[0].shape[:2]
    picture = np.zeros((*size, 4), np.uint8)
    picture[2:8, 2:10] = (255, 0, 0, 255)
    media.write_png(path, picture)


def edit(finished_run, out, *flags):
    only_edit.main([f"--trained_model_folder={finished_run}", f"--output_folder={out}", "--format=png", *flags])
    return [media.read_rgb(path).astype(int) for path in sorted(next(out.glob("edited_*/")).iterdir())]


def test_a_hat_beside_the_object_shows_when_it_is_attached_and_is_clipped_otherwise(
    finished_run, shared_clip, tmp_path
):
    write_hat(tmp_path / "hat.png", shared_clip)
    source = source_frames(shared_clip)[1].astype(int)
    painted = f"1:{tmp_path / 'hat.png'}"
    attached = edit(finished_run, tmp_path / "a", "--edit_frame", painted, "--edit_frame_attach=1")
    clipped = edit(finished_run, tmp_path / "b", "--edit_frame", painted, "--edit_frame_object=1")
    assert attached[1][4:6, 4:8, 0].min() > 200
    assert np.abs(clipped[1] - source)[4:6, 4:8].max() < np.abs(attached[1] - source)[4:6, 4:8].max()
    far = np.abs(attached[1] - source)[20:, 25:]
    assert far.mean() < 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--edit_frame_attach=3",), "object 3: the run .* has 1 object"),
        (("--edit_frame_attach=0",), "object 0: objects are counted from 1"),
        (("--edit_frame_attach=1", "--edit_frame_background"), "leave --edit_frame_background out"),
        (("--edit_object_attach", "1"), "--edit_object_attach 1 belongs to an atlas edit"),
    ],
)
def test_an_attachment_that_makes_no_sense_is_one_line(finished_run, shared_clip, tmp_path, flags, message):
    write_hat(tmp_path / "hat.png", shared_clip)
    with pytest.raises(UserError, match=message):
        edit(finished_run, tmp_path / "a", "--edit_frame", f"1:{tmp_path / 'hat.png'}", *flags)
    assert not (tmp_path / "a").exists()


def test_attaching_needs_a_painted_frame(finished_run, tmp_path):
    with pytest.raises(UserError, match="--edit_frame_attach was given without --use_edit_frame"):
        edit(finished_run, tmp_path / "a", "--edit_frame_attach=1")


def test_paint_on_the_atlas_keeps_its_place_when_a_hat_is_attached_to_the_same_object(
    finished_run, shared_clip, tmp_path
):
    write_hat(tmp_path / "hat.png", shared_clip)
    dots = np.zeros((64, 64, 4), np.uint8)
    dots[::4, ::4] = (0, 255, 0, 255)
    media.write_png(tmp_path / "dots.png", dots)
    on_atlas = f"--edit_foreground_path={tmp_path / 'dots.png'}"
    alone = edit(finished_run, tmp_path / "a", on_atlas)
    both = edit(
        finished_run, tmp_path / "b", on_atlas, "--edit_frame", f"1:{tmp_path / 'hat.png'}", "--edit_frame_attach=1"
    )
    far = (slice(22, None), slice(26, None))
    for first, second in zip(alone, both, strict=True):
        np.testing.assert_array_equal(first[far], second[far])
