"""Options of editing: blend modes, native size, several painted frames, output formats, sound."""

import json
import re
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import draw, run_script, tiny_config, video_metadata

import media
import only_edit
from command_line import UserError
from editing.layer_edit import MipMap
from editing.render_edits import Preview
from media.decoding import read_video, read_video_metadata
from media.sound import Audio
from media.videos import VideoWriter
from rendering.blending import BLEND_MODES, alpha_over, composite_edits
from rendering.resampling import resize_field

SIZE = (48, 32)
GREY = np.full((1, 1, 3), 0.4, np.float32)


def blend_over(color, alpha: float, blend: str, source=GREY):
    """Composite one pixel of a colour and an opacity over a source pixel, (3,)."""
    rgba = np.array([[[*np.multiply(color, alpha), alpha]]], np.float32)
    result, opacity = composite_edits(source, [(rgba, np.ones((1, 1), np.float32))], blend=blend)
    return (source * (1 - opacity) + result)[0, 0]


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        ("normal", [1, 0.5, 0]),
        ("multiply", [0.4, 0.2, 0]),
        ("screen", [1, 0.7, 0.4]),
        ("overlay", [0.8, 0.4, 0]),
    ],
)
def test_blend_modes_are_the_usual_ones(blend, expected):
    np.testing.assert_allclose(blend_over([1, 0.5, 0], 1, blend), expected, atol=1e-6)


def test_recolouring_keeps_the_luminance():
    result = blend_over([0.9, 0.3, 0.2], 1, "color")
    assert result @ [0.299, 0.587, 0.114] == pytest.approx(0.4, abs=1e-6)
    assert result[0] > result[1] > result[2]


@pytest.mark.parametrize("blend", sorted(BLEND_MODES))
def test_half_opacity_lies_half_way_and_no_opacity_changes_nothing(blend):
    full, half, none = (blend_over([0.9, 0.3, 0.2], alpha, blend) for alpha in (1, 0.5, 0))
    np.testing.assert_allclose(half, (full + 0.4) / 2, atol=0.02)
    np.testing.assert_array_equal(none, GREY[0, 0])


def test_later_paint_hides_earlier_paint():
    red = np.array([[[1, 0, 0, 1]]], np.float32)
    half_blue = np.array([[[0, 0, 0.5, 0.5]]], np.float32)
    np.testing.assert_allclose(alpha_over([red, half_blue])[0, 0], [0.5, 0, 0.5, 1])
    np.testing.assert_allclose(alpha_over([half_blue, red])[0, 0], [1, 0, 0, 1])


def test_a_picture_that_is_much_finer_than_the_frame_does_not_alias():
    rows, columns = np.mgrid[:512, :512]
    checkers = torch.from_numpy(((rows // 2 + columns // 2) % 2).astype(np.float32))[..., None]
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    positions = torch.stack((x, y), dim=-1) * 15.3 + 7  # neighbours lie many squares apart
    coarse = MipMap(checkers).sample(positions)
    assert (coarse - 0.5).abs().max() < 0.1
    fine = MipMap(checkers).sample(torch.stack((x, y), dim=-1))  # one texel per pixel shows every square
    torch.testing.assert_close(fine[..., 0], checkers[:32, :32, 0], atol=1e-4, rtol=0)


def test_fields_are_resized_linearly_up_to_the_border():
    ramp = np.arange(8, dtype=np.float32)[None].repeat(4, 0)
    resized = resize_field(ramp, 32, 16)
    expected = (np.arange(32) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(resized, np.tile(expected, (16, 1)), atol=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a quick run with grids, whose frames are twice as large as the working size, and its clip."""
    from training.runs import start_run

    folder = tmp_path_factory.mktemp("edit")
    clip = draw(folder / "data", width=96, height=64)
    settings = {"iters_num": 30, "evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 100}
    config = tiny_config(clip, folder / "results", representation="grid", resx=48, resy=None, **settings)
    trainer = start_run(config)
    trainer.run()
    return trainer.folder, clip


def write_paint(path, size, box, color=(255, 255, 255, 255)):
    """Write an RGBA picture of `size` (width, height), filled inside a box (left, top, right, bottom)."""
    picture = np.zeros((size[1], size[0], 4), np.uint8)
    left, top, right, bottom = box
    picture[top:bottom, left:right] = color
    media.write_png(path, picture)
    return path


def run_edit(run, out, *flags) -> None:
    only_edit.main([f"--trained_model_folder={run[0]}", f"--output_folder={out}", *map(str, flags)])


def read_pictures(folder):
    return np.stack([media.read_rgb(path) for path in media.list_images(folder)]).astype(int)


def test_a_native_edit_keeps_the_frames_own_pixels_and_is_as_sharp_as_they_are(run, tmp_path):
    path = write_paint(tmp_path / "a.png", (96, 64), (30, 20, 60, 44))
    run_edit(run, tmp_path / "out", "--edit_frame", f"1:{path}", "--edit_space", "native", "--save_frames")
    frames, source = read_pictures(tmp_path / "out" / "edited_frames"), read_pictures(run[1])
    assert frames.shape == source.shape == (4, 64, 96, 3)
    assert frames[1, 23:41, 33:57].mean() > 250
    untouched = np.ones((64, 96), bool)
    untouched[17:47, 27:63] = False
    np.testing.assert_array_equal(frames[1][untouched], source[1][untouched])
    changed = np.abs(frames[1] - source[1]).max(-1) > 128
    assert changed[32, 28:62].sum() == pytest.approx(30, abs=3)


@pytest.mark.parametrize(("space", "is_said"), [("working", True), ("native", False)])
def test_a_video_that_is_smaller_than_the_frames_is_said_to_be(run, tmp_path, capsys, space, is_said):
    path = write_paint(tmp_path / "a.png", (96, 64), (30, 20, 60, 44))
    run_edit(run, tmp_path / "out", "--edit_frame", f"1:{path}", "--edit_space", space)
    assert ("--edit_space native keeps the 96 x 64 of the frames" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize(
    ("box", "flags", "is_divided"),
    [
        ((0, 0, 48, 32), [], True),  # everything
        ((0, 0, 48, 32), ["--edit_frame_attach", "1"], False),  # all of it follows the object
        ((0, 0, 4, 3), [], False),  # a corner that shows the background alone
    ],
)
def test_paint_that_an_object_and_the_background_share_is_said_to_be_divided(
    run, tmp_path, capsys, box, flags, is_divided
):
    path = write_paint(tmp_path / "a.png", SIZE, box)
    run_edit(run, tmp_path / "out", "--edit_frame", f"1:{path}", *flags)
    found = re.search(
        r"frame 1: the paint is (\d+)% on the foreground and (\d+)% on the background", capsys.readouterr().out
    )
    assert (found is not None) == is_divided
    if found is not None:
        assert 98 <= int(found[1]) + int(found[2]) <= 102


@pytest.mark.parametrize("is_copy", [True, False])
def test_paint_on_a_copy_of_the_frame_is_told_from_paint_alone(run, tmp_path, capsys, is_copy):
    frame = media.read_rgb(media.list_images(run[1])[1])
    paint = (
        np.dstack((frame, np.full_like(frame[..., :1], 255))) if is_copy else np.zeros((*frame.shape[:2], 4), np.uint8)
    )
    paint[20:40, 30:60] = (255, 0, 200, 255)
    media.write_png(tmp_path / "paint.png", paint)
    run_edit(run, tmp_path / "out", "--edit_frame", f"1:{tmp_path / 'paint.png'}")
    assert ("of it is frame 1 itself, which covers other frames like paint" in capsys.readouterr().err) == is_copy


def test_later_frame_edits_cover_earlier_ones(run, tmp_path):
    red = write_paint(tmp_path / "red.png", SIZE, (14, 10, 34, 22), (255, 0, 0, 255))
    blue = write_paint(tmp_path / "blue.png", SIZE, (14, 10, 24, 22), (0, 0, 255, 255))
    run_edit(run, tmp_path / "out", "--edit_frame", f"2:{red}", f"2:{blue}", "--save_frames")
    frame = read_pictures(tmp_path / "out" / "edited_frames")[2]
    assert frame[12:20, 16:22].mean((0, 1))[2] > 240
    assert frame[12:20, 27:32].mean((0, 1))[0] > 240


def test_the_edit_alone_over_the_video_is_the_edited_video(run, tmp_path):
    path = write_paint(tmp_path / "a.png", SIZE, (14, 10, 34, 22), (250, 120, 30, 180))
    flags = ("--edit_frame", f"1:{path}")
    run_edit(run, tmp_path / "whole", *flags, "--save_frames")
    run_edit(run, tmp_path / "alone", *flags, "--only_edit_layer")
    whole = read_pictures(tmp_path / "whole" / "edited_frames")
    files = media.list_images(tmp_path / "alone" / "edited_demo")
    alone = np.stack([np.asarray(media.open_image(path)) for path in files]).astype(float)
    source = np.stack([media.resize(media.read_rgb(path), *SIZE) for path in media.list_images(run[1])])
    opacity = alone[..., 3:] / 255
    assert alone.shape[-1] == 4
    assert np.abs(source * (1 - opacity) + alone[..., :3] * opacity - whole).max() <= 2
    assert (alone[..., 3] == 0).mean() > 0.5


def test_prores_carries_opacity(run, tmp_path):
    path = write_paint(tmp_path / "a.png", SIZE, (14, 10, 34, 22))
    run_edit(run, tmp_path / "out", "--edit_frame", f"1:{path}", "--only_edit_layer", "--format", "prores")
    movie = tmp_path / "out" / "edited_demo.mov"
    assert read_video_metadata(movie).codec == "prores"
    assert read_video_metadata(movie).has_alpha
    opacity = list(read_video(movie, alpha=True))
    assert len(opacity) == 4
    assert opacity[1][12:20, 18:30].min() > 225  # the mapping of thirty steps is crude
    assert np.median(opacity[1][12:20, 18:30]) > 250
    assert opacity[1][:5].max() < 5


def test_a_preview_is_of_the_frame_that_changes_most():
    preview = Preview()
    for t, changed in ((0, 0), (1, 50), (2, 80), (3, 20)):
        preview.offer(t, np.full((4, 6, 3), t, np.uint8), changed)
    assert (preview.t, preview.changed) == (2, 80)
    assert (preview.picture == 2).all()


def test_an_existing_folder_is_written_into_only_when_asked(run, tmp_path):
    path = write_paint(tmp_path / "a.png", SIZE, (14, 10, 34, 22))
    out = media.make_folder(tmp_path / "out")
    (out / "mine.txt").write_text("keep")
    run_edit(run, out, "--edit_frame", f"1:{path}")
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt"]
    run_edit(run, out, "--edit_frame", f"1:{path}", "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["edited.png", "edited_demo.mp4", "mine.txt"]


def test_a_picture_without_opacity_can_have_a_mask(run, tmp_path):
    media.write_png(tmp_path / "color.png", np.full((32, 48, 3), (255, 0, 0), np.uint8))
    mask = np.zeros((32, 48), np.uint8)
    mask[10:22, 14:34] = 255
    media.write_png(tmp_path / "mask.png", mask)
    flags = ["--edit_frame", f"1:{tmp_path / 'color.png'}", "--save_frames"]
    with pytest.raises(UserError, match="picture without opacity, expected RGBA"):
        run_edit(run, tmp_path / "out", *flags)
    run_edit(run, tmp_path / "out", *flags, "--edit_frame_mask", tmp_path / "mask.png")
    frame = read_pictures(tmp_path / "out" / "edited_frames")[1]
    assert frame[12:20, 18:30].mean((0, 1))[0] > 245
    assert frame[:6].mean((0, 1))[0] < 220


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edit_frame", "9:a.png"], "edit of frame 9: the clip has frames 0 to 3"),
        (["--opacity", "2", "--edit_frame", "1:a.png"], "--opacity is 2.0, expected 0 to 1"),
        (["--crf", "99", "--edit_frame", "1:a.png"], "--crf is 99"),
        (["--only_edit_layer", "--format", "mp4", "--edit_frame", "1:a.png"], "needs opacity, which mp4 does not have"),
        (["--edit_foreground_at", "3,4"], "nothing to paint"),
        (["--transfer_from", "x", "--edit_frame", "1:a.png"], "--transfer_from is for atlas edits"),
        (["--atlas", "x", "--edit_frame", "1:a.png"], "--atlas belongs to an atlas edit"),
    ],
)
def test_useless_or_contradictory_flags_are_refused(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    write_paint(tmp_path / "a.png", SIZE, (14, 10, 34, 22))
    with pytest.raises(UserError, match=message):
        run_edit(run, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("start_s", "end_s"), [(0.5, 1.5), (0.5, 0.7), (0.0, None)])
def test_sound_is_added_and_cuts_no_picture(tmp_path, start_s, end_s):
    """The sound is as long as the pictures (1 s), shorter, or longer."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=440", "-t", "2"]
    subprocess.run([*ffmpeg, str(tmp_path / "tone.m4a")], check=True)
    with VideoWriter(tmp_path / "a.mp4", 30, audio=Audio(tmp_path / "tone.m4a", start_s, end_s)) as video:
        for t in range(30):
            video.write(np.full((132, 148, 3), 8 * t, np.uint8))
    metadata = read_video_metadata(tmp_path / "a.mp4")
    assert metadata.has_audio
    assert metadata.duration_s == pytest.approx(1.0, abs=0.15)
    frames = list(read_video(tmp_path / "a.mp4"))
    assert len(frames) == 30
    assert frames[0].max() < 5
    assert frames[-1].min() > 225


def test_a_file_system_that_takes_no_more_is_an_error_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="this system has no limits for files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.mp4"), VideoWriter(tmp_path / "a.mp4", 10, crf=0) as video:
            for _ in range(500):
                video.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_colours_survive_the_video_file(tmp_path):
    bars = np.zeros((64, 96, 3), np.uint8)
    for number, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]):
        bars[:, 24 * number : 24 * number + 24] = color
    with VideoWriter(tmp_path / "a.mp4", 10, crf=4) as video:
        video.write(bars)
    decoded = next(read_video(tmp_path / "a.mp4")).astype(int)
    for x in (12, 36, 60, 84):
        assert np.abs(decoded[32, x] - bars[32, x]).max() <= 6


@pytest.mark.slow
def test_the_edited_video_keeps_the_sound_of_the_video_it_came_from(run, tmp_path):
    folder, clip = run
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=440", "-t", "2"]
    subprocess.run([*ffmpeg, str(tmp_path / "tone.m4a")], check=True)
    note = clip.with_name("demo.json")
    before = note.read_text()
    values = {"fps": 12, "source": str(tmp_path / "tone.m4a"), "has_audio": True}
    values |= {"source_bytes": 0, "source_changed": 0, "start_s": 0, "end_s": None, "every": 1}
    note.write_text(json.dumps(values | {"frames": 4, "width": 96, "height": 64}))
    path = write_paint(tmp_path / "a.png", SIZE, (14, 10, 34, 22))
    try:
        run_edit(run, tmp_path / "out", "--edit_frame", f"1:{path}")
        assert read_video_metadata(tmp_path / "out" / "edited_demo.mp4").has_audio
        (tmp_path / "tone.m4a").unlink()
        done = run_script(
            "only_edit.py",
            f"--trained_model_folder={folder}",
            f"--output_folder={tmp_path / 'silent'}",
            "--edit_frame",
            f"1:{path}",
        )
        assert done.returncode == 0
        assert "does not exist any more, so the edited video is silent" in done.stderr
    finally:
        note.write_text(before)
    assert video_metadata(tmp_path / "silent" / "edited_demo.mp4")["fps"] == 12


def test_pictures_of_any_kind_are_accepted_or_refused_with_a_reason(run, tmp_path):
    from PIL import Image

    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (14, 10, 34, 22))
    image.save(tmp_path / "palette.png", transparency=0)
    run_edit(run, tmp_path / "palette", "--edit_frame", f"1:{tmp_path / 'palette.png'}", "--save_frames")
    assert read_pictures(tmp_path / "palette" / "edited_frames")[1][12:20, 18:30].mean((0, 1))[0] > 240
    deep = np.zeros((32, 48, 4), np.uint16)
    deep[10:22, 14:34] = (0, 0, 65535, 65535)  # blue, green, red, opacity, as OpenCV orders them
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    run_edit(run, tmp_path / "deep", "--edit_frame", f"1:{tmp_path / 'deep.png'}", "--save_frames")
    assert read_pictures(tmp_path / "deep" / "edited_frames")[1][12:20, 18:30].mean((0, 1))[0] > 240
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    with pytest.raises(UserError, match=r"print\.jpg: CMYK picture without opacity, expected RGBA"):
        run_edit(run, tmp_path / "print", "--edit_frame", f"1:{tmp_path / 'print.jpg'}")
