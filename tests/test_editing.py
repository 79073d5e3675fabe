"""Editing: paint on an atlas or on a frame appears in the whole video."""

import json

import numpy as np
import pytest
import torch
from conftest import last_line, run_script, video_metadata
from PIL import Image

import media
import only_edit
from editing.layer_edit import LayerEdit, paint_visibility
from editing.render_edits import edit_frame
from editing.requests import EditRequest
from editing.splatting import splat, splat_frame, splat_frame_edit
from evaluation.image_metrics import psnr
from media.contact_sheet import contact_sheet
from rendering.atlas_view import compute_atlas_uv, fit_atlas_views
from rendering.blending import apply_edits
from rendering.frames import Frame, render_frames
from rendering.resampling import WHOLE_FRAME, split_rows
from rendering.trained_run import open_run


@pytest.fixture(scope="module")
def run(finished_run):
    return open_run(finished_run)


def write_picture(path, size, color, box=None):
    """Write an RGBA picture of `size` (width, height), filled inside a box (left, top, right, bottom)."""
    image = np.zeros((size[1], size[0], 4), np.uint8)
    left, top, right, bottom = box or (0, 0, *size)
    image[top:bottom, left:right] = color
    Image.fromarray(image).save(path)
    return path


def run_edit(finished_run, out, *arguments):
    """Run only_edit.py; return the edited frames if they were written."""
    done = run_script("only_edit.py", f"--trained_model_folder={finished_run}", f"--output_folder={out}", *arguments)
    assert done.returncode == 0, done.stderr
    assert last_line(done.stdout) == f"wrote {out}"
    frames = out / "edited_frames"
    return [media.read_rgb(path) for path in media.list_images(frames)] if frames.is_dir() else []


def source_frames(shared_clip):
    return [media.read_rgb(path) for path in media.list_images(shared_clip)]


@pytest.mark.slow
def test_a_transparent_edit_leaves_the_video_as_it_is_bit_for_bit(finished_run, shared_clip, tmp_path):
    path = write_picture(tmp_path / "clear.png", (64, 64), (255, 0, 0, 0))
    frames = run_edit(finished_run, tmp_path / "out", f"--edit_background_path={path}", "--save_frames")
    for edited, source in zip(frames, source_frames(shared_clip), strict=True):
        np.testing.assert_array_equal(edited, source)


@pytest.mark.slow
def test_an_edit_that_is_visible_nowhere_is_warned_about(finished_run, tmp_path):
    path = write_picture(tmp_path / "clear.png", (64, 64), (255, 0, 0, 0))
    done = run_script(
        "only_edit.py",
        f"--trained_model_folder={finished_run}",
        f"--output_folder={tmp_path / 'out'}",
        f"--edit_foreground_path={path}",
    )
    assert done.returncode == 0
    assert "the edit shows in no frame" in done.stderr


@pytest.mark.slow
def test_opaque_edits_of_both_layers_of_any_size_cover_the_video(finished_run, tmp_path):
    red = write_picture(tmp_path / "red.png", (123, 123), (255, 0, 0, 255))
    arguments = (f"--edit_foreground_path={red}", f"--edit_background_path={red}", "--save_frames")
    frames = np.stack(run_edit(finished_run, tmp_path / "out", *arguments)).astype(int)
    red_share = (np.abs(frames - [255, 0, 0]).max(-1) <= 1).mean()
    assert red_share > 0.99  # background hidden by the foreground may lie outside the crop
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"edited_demo.mp4", "edited.png", "edited_frames"}


@pytest.mark.slow
def test_the_picture_of_an_edit_shows_the_painted_frame_among_others(finished_run, tmp_path, monkeypatch):
    path = write_picture(tmp_path / "paint.png", (48, 32), (255, 0, 0, 255), (10, 8, 30, 24))
    captions: list[str] = []

    def note_captions(pictures):
        captions.extend(pictures)
        return contact_sheet(pictures)

    monkeypatch.setattr("editing.render_edits.contact_sheet", note_captions)
    arguments = ["--use_edit_frame", "--edit_frame_index=1", f"--edit_frame_path={path}"]
    only_edit.main([f"--trained_model_folder={finished_run}", f"--output_folder={tmp_path / 'out'}", *arguments])
    assert "frame 1, painted" in captions
    assert len(captions) >= 3
    assert captions == sorted(captions)


@pytest.mark.slow
def test_the_edited_video_keeps_the_clips_speed(finished_run, tmp_path):
    path = write_picture(tmp_path / "red.png", (50, 50), (255, 0, 0, 255))
    run_edit(finished_run, tmp_path / "out", f"--edit_foreground_path={path}")
    assert video_metadata(tmp_path / "out" / "edited_demo.mp4")["fps"] == 12


@pytest.mark.slow
def test_a_frame_edit_shows_on_its_frame_where_it_was_painted(finished_run, shared_clip, tmp_path):
    box = (10, 8, 30, 24)
    path = write_picture(tmp_path / "paint.png", (48, 32), (255, 255, 255, 255), box)
    arguments = ("--use_edit_frame", "--edit_frame_index=1", f"--edit_frame_path={path}", "--save_frames")
    frames = run_edit(finished_run, tmp_path / "out", *arguments)
    left, top, right, bottom = box
    inner = frames[1][top + 2 : bottom - 2, left + 2 : right - 2]
    assert np.median(inner) >= 250  # the mapping of a run of four iterations is crude
    assert inner.mean() > 235
    outside = np.ones((32, 48), bool)
    outside[top - 2 : bottom + 2, left - 2 : right + 2] = False
    assert np.abs(frames[1][outside].astype(int) - source_frames(shared_clip)[1][outside]).mean() < 2


@torch.no_grad()
def test_a_frame_edit_of_one_layer_leaves_the_other_alone(run):
    frame = list(render_frames(run.model, run.clip, True, with_colors=False))[2]
    frame.alpha[:] = 0
    frame.alpha[:, :, :24] = 1
    paint = np.ones((32, 48, 4), np.float32)
    (edit,) = splat_frame(run.model, frame, paint, [0])
    atlas_uv = compute_atlas_uv(run.model, frame)
    edited = apply_edits(np.zeros((32, 48, 3), np.float32), [(edit.sample(atlas_uv[0]), frame.visibility[0])])
    assert edited[:, 2:20].min() > 0.98
    assert edited[:, 24:].max() == 0


def test_opacity_is_divided_out_so_that_half_opaque_paint_stays_half_opaque(run):
    frame = next(render_frames(run.model, run.clip, True, with_colors=False))
    paint = np.full((32, 48, 4), 0.5, np.float32)  # white, half opaque, premultiplied
    atlas_uv = compute_atlas_uv(run.model, frame)[1]
    for visibility in (0.3, 1.0):
        edit = splat_frame_edit(paint, 1, atlas_uv, torch.full((32, 48), visibility))
        inner = edit.sample(atlas_uv)[3:-3, 3:-3]
        np.testing.assert_allclose(inner, 0.5, atol=0.01)


def test_a_layer_that_hardly_shows_takes_no_paint(run):
    frame = next(render_frames(run.model, run.clip, True, with_colors=False))
    paint = np.ones((32, 48, 4), np.float32)
    assert splat_frame_edit(paint, 0, compute_atlas_uv(run.model, frame)[0], torch.full((32, 48), 0.01)) is None


def rotated_frame(width=80, height=60):
    """Return a frame with a soft disk in front, whose two layers are rotated and scaled in their atlases."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / width - 0.4
    rotations = ((0.9, 0.5), (0.7, -0.3))  # scale times cosine, scale times sine
    uv = np.stack([np.stack((c * x - s * y, s * x + c * y), axis=-1) for c, s in rotations])
    alpha = np.clip(10 * (0.25 - np.hypot(x, y)) + 0.5, 0, 1)
    return Frame(0, uv, alpha[None], np.zeros((height, width, 3), np.float32))


def test_a_painted_frame_is_reproduced_at_over_40_db_even_across_a_soft_edge(run):
    frame, grey = rotated_frame(), np.full((60, 80, 3), 0.3, np.float32)
    y, x = np.mgrid[:60, :80]
    paint = np.zeros((60, 80, 4), np.float32)
    inside = (slice(8, 52), slice(8, 72))
    wave = np.stack([0.5 + 0.4 * np.sin(x / 6), 0.5 + 0.4 * np.cos(y / 7), np.full((60, 80), 0.8)], axis=-1)
    paint[inside] = np.dstack((wave, np.ones((60, 80))))[inside]
    edits = splat_frame(run.model, frame, paint, [0, 1])
    atlas_uv = compute_atlas_uv(run.model, frame)
    layers = [(edit.sample(atlas_uv[edit.layer]), paint_visibility(frame)[edit.layer]) for edit in edits]
    edited = apply_edits(grey, layers)
    inner = (slice(10, 50), slice(10, 70))
    assert psnr(edited[inner], wave[inner]) > 40
    outside = np.ones((60, 80), bool)
    outside[6:54, 6:74] = False
    np.testing.assert_array_equal(edited[outside], grey[outside])


def test_paint_on_an_object_is_opaque_and_leaves_no_specks_behind_where_opacity_is_not_quite_1(run):
    frame = rotated_frame()
    frame.alpha[:] = 0.9
    paint = np.ones((60, 80, 4), np.float32)
    (edit,) = splat_frame(run.model, frame, paint, [0, 1])
    assert edit.layer == 0
    atlas_uv = compute_atlas_uv(run.model, frame)
    edited = apply_edits(np.zeros((60, 80, 3), np.float32), [(edit.sample(atlas_uv[0]), paint_visibility(frame)[0])])
    assert edited[4:-4, 4:-4].min() > 0.99
    frame.alpha[:] = 0.05
    (edit,) = splat_frame(run.model, frame, paint, [0, 1])
    assert edit.layer == 1


def test_splatting_keeps_the_sum_and_hits_a_texel_exactly():
    values, positions = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.25, 2.0], [3.0, 3.0]])
    sums = torch.zeros(4, 4, 1)
    splat(sums, values, positions)
    sums = sums[..., 0]
    assert sums.sum().item() == pytest.approx(3)
    assert (sums[2, 1].item(), sums[2, 2].item(), sums[3, 3].item()) == pytest.approx((0.75, 0.25, 2.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to paint: give --edit_foreground_path"),
        (["--edit_foreground_path={rgb}"], "without opacity, expected RGBA; save it as a PNG with transparency"),
        (["--edit_foreground_path={wide}"], "is 60 x 40, an edit of texture_orig1.png or texture_orig2.png must be"),
        (["--edit_background_path={text}"], "not an image that can be read"),
        (["--edit_background_path=missing.png"], "missing.png: no such file"),
        (["--use_edit_frame"], "--use_edit_frame needs --edit_frame_path and --edit_frame_index"),
        (["--edit_frame_path={wide}"], "--edit_frame_path was given without --use_edit_frame"),
        (["--edit_foreground_path={wide}", "--edit_frame_foreground"], "was given without --use_edit_frame"),
        (["--edit_background_path={folder}"], "is a folder; expected a picture"),
        (["--use_edit_frame", "--edit_frame_path={wide}", "--edit_frame_index=4"], "the clip has frames 0 to 3"),
        (["--use_edit_frame", "--edit_frame_path={tall}", "--edit_frame_index=1"], "keep its aspect"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(finished_run, tmp_path, arguments, message):
    names = {name: tmp_path / f"{name}.png" for name in ("rgb", "wide", "tall", "text")}
    Image.new("RGB", (50, 50)).save(names["rgb"])
    write_picture(names["wide"], (60, 40), (1, 2, 3, 255))
    write_picture(names["tall"], (40, 60), (1, 2, 3, 255))
    names["text"].write_text("hello")
    names["folder"] = tmp_path
    done = run_script(
        "only_edit.py",
        f"--trained_model_folder={finished_run}",
        f"--output_folder={tmp_path / 'out'}",
        *(argument.format(**names) for argument in arguments),
    )
    assert done.returncode == 2, done.stderr
    assert message in last_line(done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_of_another_config_is_named(finished_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint").write_bytes((finished_run / "checkpoint").read_bytes())
    config = json.loads((finished_run / "config.json").read_text()) | {"number_of_channels_atlas": 20}
    (folder / "config.json").write_text(json.dumps(config))
    red = write_picture(tmp_path / "red.png", (50, 50), (255, 0, 0, 255))
    done = run_script(
        "only_edit.py",
        f"--trained_model_folder={folder}",
        f"--output_folder={tmp_path / 'out'}",
        f"--edit_foreground_path={red}",
    )
    assert done.returncode == 2
    assert "use the config.json that lies beside the checkpoint" in last_line(done.stderr)


def test_a_large_frame_is_edited_in_strips_that_cover_it_once():
    strips = split_rows((slice(3, 10), slice(2, 8)), 20, 12, most_pixels=13)
    covered = np.zeros((12, 20), int)
    for strip in strips:
        covered[strip] += 1
        assert covered[strip].size <= 18
        assert covered[strip].shape[0] >= 2
    expected = np.zeros((12, 20), int)
    expected[3:10, 2:8] = 1
    np.testing.assert_array_equal(covered, expected)
    assert split_rows(WHOLE_FRAME, 20, 12, most_pixels=240) == [WHOLE_FRAME]


def test_an_edit_in_strips_equals_one_of_the_whole_frame(run, monkeypatch):
    frame = next(render_frames(run.model, run.clip, True, with_colors=False))
    paint = torch.rand(40, 40, 4, generator=torch.Generator().manual_seed(0))
    paint[..., :3] *= paint[..., 3:]
    edits = [LayerEdit(1, paint, fit_atlas_views(run.model, [frame])[1])]
    request = EditRequest(is_native=True)
    _, whole = edit_frame(run, frame, edits, request)
    monkeypatch.setattr("editing.render_edits.STRIP_PIXELS", 500)
    source, in_strips = edit_frame(run, frame, edits, request)
    assert np.abs(whole.astype(int) - source).max() > 20
    # Only the level of detail differs where a strip ends, because it depends on the neighbouring rows.
    assert (np.abs(whole.astype(int) - in_strips) > 2).mean() < 0.01


def test_edits_with_blend_modes_of_their_own_are_blended_over_those_below_them(run):
    """Red paint is multiplied with what the half-transparent white paint below it has left of the frame."""
    frame = next(render_frames(run.model, run.clip, True, with_colors=False))
    view = fit_atlas_views(run.model, [frame])[1]
    half_white = torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(40, 40, 4)
    red = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(40, 40, 4)
    request = EditRequest()
    source, lightened = edit_frame(run, frame, [LayerEdit(1, half_white, view)], request)
    both = [LayerEdit(1, half_white, view), LayerEdit(1, red, view, blend="multiply")]
    _, edited = edit_frame(run, frame, both, request)
    visibility = paint_visibility(frame)[1][..., None]
    expected = lightened * (1 - visibility) + lightened * visibility * [1, 0, 0]
    np.testing.assert_allclose(edited, expected, atol=1.5)
    assert visibility.max() > 0.3
    assert np.abs(lightened.astype(int) - source).max() > 20
