"""Exports for other tools, on a clip whose ground truth is known."""

import json
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from conftest import run_script, tiny_config, write_exact_flow
from PIL import Image

import export_atlas
import export_layers
import media
import only_edit
from command_line import UserError
from editing.atlas_file import LayerImage, checkpoint_fingerprint, read_atlas_file
from editing.layered_files import read_psd
from evaluation.image_metrics import psnr
from export import atlas_sampling
from export.atlas import (
    GUIDE_COLORS,
    LayerAtlas,
    describe_atlas,
    find_outlines,
    make_layer_atlas,
    plan_layer_image,
    sharpness,
    suggest_looks,
)
from export.atlas_sampling import compare_sharpness, find_median, mean_near_median, uv_step
from export.openraster import write_openraster
from export.photoshop import write_psd
from export.st_maps import st_values
from export.track import track_point
from rendering.atlas_view import compute_atlas_uv
from rendering.frame_store import open_frame_store
from rendering.frames import render_frame
from rendering.inverse import invert_uv_field
from rendering.resampling import sample_field
from rendering.trained_run import open_run
from scenes.catalogue import SCENES
from scenes.files import write_scene

pytestmark = pytest.mark.slow

SIZE, COUNT = (96, 64), 8


@pytest.fixture(scope="module")
def scene():
    return SCENES["pan"](*SIZE, COUNT)


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    """Folder of a run with grids on an easy scene; with exact flow few iterations are enough."""
    from training.runs import start_run

    parent = tmp_path_factory.mktemp("export")
    clip = write_scene(scene, parent / "data", fps=12)
    write_exact_flow(clip)
    settings = {"iters_num": 60, "evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 100}
    config = tiny_config(clip, parent / "results", representation="grid", maximum_number_of_frames=COUNT, **settings)
    trainer = start_run(config)
    trainer.run()
    return trainer.folder


@pytest.fixture(scope="module")
def atlas(folder, tmp_path_factory):
    """Folder of the exported atlases of this run."""
    out = tmp_path_factory.mktemp("atlas") / "out"
    export_atlas.main([f"--trained_model_folder={folder}", f"--output_folder={out}"])
    return out


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


def share_of_rim_with_an_outline(atlas, name):
    """Return which part of the rim of what is visible in an atlas has an outline of the guide within 4 pixels."""
    visible, guide = (np.asarray(media.open_image(atlas / f"{name}{kind}.png")) for kind in ("", "_guide"))
    is_visible = np.pad((visible[..., 3] > 127).astype(np.uint8), 1)
    rim = cv2.morphologyEx(is_visible, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0
    is_outline = np.any([(guide == color).all(-1) for color in GUIDE_COLORS], axis=0)
    return cv2.dilate(is_outline.astype(np.uint8), np.ones((9, 9), np.uint8))[rim].mean()


def test_an_atlas_covers_what_is_visible_as_finely_as_the_video(atlas, run):
    description = json.loads((atlas / "atlas.json").read_text())
    assert {layer["projection"] for layer in description["layers"]} == {"plane"}
    for layer in description["layers"]:
        size = media.image_size(atlas / layer["image"])
        assert size == (layer["width"], layer["height"])
        frame = render_frame(run.model, run.clip, 3, True, with_colors=False)
        steps = np.linalg.norm(np.diff(frame.uv[layer["layer"]], axis=1), axis=-1) / layer["uv_per_pixel"]
        assert 0.9 < np.median(steps) < 2.5
    for name in ("foreground", "background"):
        rgba = np.asarray(media.open_image(atlas / f"{name}.png"))
        assert rgba.shape[2] == 4
        assert 0.2 < (rgba[..., 3] == 255).mean() < 1
        assert np.median(rgba[..., :3][rgba[..., 3] == 0]) > 20  # colours continue beyond the visible part
        for kind in ("learned", "sampled"):
            assert (atlas / f"{name}_{kind}.png").is_file()
        lines = np.asarray(media.open_image(atlas / f"{name}_guide.png"))[..., 3] > 0
        assert lines.all(axis=0).sum() >= 3
        assert lines.all(axis=1).sum() >= 3
    assert share_of_rim_with_an_outline(atlas, "foreground") > 0.8
    guide = np.asarray(media.open_image(atlas / "foreground_guide.png"))
    assert all((guide == color).all(-1).any() for color in GUIDE_COLORS)  # each outlined frame has its own
    assert (atlas / "atlases.png").is_file()


def test_the_guide_outlines_what_is_visible_the_longest_outline_first():
    visibility = np.zeros((20, 30), np.float32)
    visibility[2:10, 3:20], visibility[14:18, 5:9], visibility[15:17, 20:22] = 0.9, 0.6, 0.9
    (x, y), (small_x, small_y) = find_outlines(visibility)  # without the speck
    assert (x.min(), x.max(), y.min(), y.max()) == (3, 19, 2, 9)
    assert (small_x.min(), small_x.max(), small_y.min(), small_y.max()) == (5, 8, 14, 17)
    assert find_outlines(np.zeros_like(visibility)) == []


def test_a_mapping_that_compresses_one_direction_does_not_enlarge_the_atlas():
    """One pixel covers 1 x 0.01 units, so its area is that of a square with a side of 0.1."""
    x, y = np.meshgrid(np.arange(20.0), np.arange(10.0))
    np.testing.assert_allclose(uv_step(np.stack((x, 0.01 * y), axis=-1)), 0.1)
    np.testing.assert_allclose(uv_step(np.stack((0.5 * y, -0.5 * x), axis=-1)), 0.5)


def test_the_sampled_atlas_shows_the_photograph(atlas, run, scene):
    description = read_atlas_file(atlas, run.checkpoint)
    frame = render_frame(run.model, run.clip, 4, True, with_colors=False)
    image = description.layer(1)
    size = (image.width, image.height)
    texels = image.view(run.model, size, None).to_pixels(compute_atlas_uv(run.model, frame)[1], size).numpy()
    picture = media.read_rgb(atlas / "background_sampled.png")
    rendered = cv2.remap(picture, texels, None, cv2.INTER_LINEAR)
    is_background = scene.frame(4).alpha[0] < 0.01
    truth = scene.frame(4).rgb[is_background][None]
    assert psnr(rendered[is_background][None] / 255, truth / 255) > 25  # sampled twice, at 96 x 64


def test_frames_that_are_blurred_count_less_in_the_sampled_atlas(run, monkeypatch):
    native_frame = type(run.clip).native_frame

    def blur_most_frames(clip, t):
        """Return a frame, which is blurred unless its number is a multiple of three."""
        frame = native_frame(clip, t)
        return cv2.GaussianBlur(frame, (0, 0), 2) if t % 3 else frame

    monkeypatch.setattr(type(run.clip), "native_frame", blur_most_frames)

    def sharpness_of_background() -> float:
        with open_frame_store(run, run.checkpoint.parent) as store:
            image = plan_layer_image(run, store, 1, "background.png", None, 0, 4)
            atlas = make_layer_atlas(run, store, image)
        return sharpness(atlas.sampled, atlas.visibility)

    weighted = sharpness_of_background()
    monkeypatch.setattr(atlas_sampling, "SHARPNESS_POWER", 0)
    assert weighted > 1.05 * sharpness_of_background()


def test_the_sharpness_of_a_frame_is_that_of_what_it_shows_of_the_layer():
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8), (0, 0), 1)
    shown = np.zeros((40, 60), bool)
    shown[5:35, 5:55] = True
    assert compare_sharpness(picture, picture, shown) == pytest.approx(1)
    assert compare_sharpness(cv2.blur(picture, (1, 5)), picture, shown) < 0.6
    elsewhere = np.where(shown[..., None], picture, 0).astype(np.uint8)
    assert compare_sharpness(elsewhere, picture, shown) == pytest.approx(1, abs=0.01)
    flat = np.full_like(picture, 90)
    assert compare_sharpness(flat, flat, shown) == pytest.approx(1)
    assert compare_sharpness(picture, flat, shown) > 10
    assert compare_sharpness(picture, flat, np.zeros_like(shown)) == pytest.approx(1)


def test_samples_that_differ_from_the_colour_of_their_texel_do_not_agree():
    colors = np.full((4, 1, 2, 3), 100, np.uint8)
    colors[3, 0, 1] = 200
    weights = np.ones((4, 1, 2), np.float32)
    average, share = mean_near_median(colors, weights)
    np.testing.assert_allclose(average, 100 / 255, atol=1e-6)
    np.testing.assert_allclose(share, [[1, 0.75]])


def test_the_export_says_how_much_of_the_background_objects_hide_in_all_frames():
    visibility = np.zeros((30, 40), np.float32)
    visibility[4:-4, 4:-4] = 1  # with the margin that every atlas has
    picture = np.zeros((30, 40, 3), np.float32)
    image = LayerImage("wall.png", 1, 40, 30, 0.0, 0.0, 0.1, 0)
    atlas = LayerAtlas(image, visibility, picture, picture, np.zeros((30, 40, 4), np.uint8), 1.0)
    plain = "wall: 40 x 30, learned (the sharper of the two)"
    assert describe_atlas("wall", atlas, is_background=True) == plain
    visibility[10:18, 10:18] = 0
    text = describe_atlas("wall", atlas, is_background=True)
    assert text == f"{plain}; 9% of it is hidden by objects in all frames, so nothing is known there"
    assert describe_atlas("wall", atlas, is_background=False) == plain


@pytest.mark.parametrize(
    ("frames", "end"),
    [(70, "--look_frames 12 also writes how it looks around single frames"), (5000, "--look_frames 50 "), (4, "twice")],
)
def test_looks_are_suggested_as_far_apart_as_is_possible(frames, end):
    assert end in suggest_looks("swan", frames)
    assert ("--look_frames" in suggest_looks("swan", frames)) == ("--look_frames" in end)


def test_no_frame_has_more_weight_than_other_sharp_frames():
    weights = atlas_sampling.weigh_frames(np.array([1.0, 2, 2, 2, 2, 2, 2, 50], np.float32))
    np.testing.assert_allclose(weights, [0.25, 1, 1, 1, 1, 1, 1, 1])


def test_frames_that_do_not_show_a_layer_change_no_weights():
    sharpness = np.array([0, 0, 0, 0, 0, 0, 1, 2, 2, 2], np.float32)
    np.testing.assert_allclose(atlas_sampling.weigh_frames(sharpness), [0, 0, 0, 0, 0, 0, 0.25, 1, 1, 1])
    assert not atlas_sampling.weigh_frames(np.zeros(3, np.float32)).any()


def test_a_sample_with_a_tiny_weight_keeps_its_colour():
    color, share = mean_near_median(np.full((1, 1, 1, 3), 80, np.uint8), np.full((1, 1, 1), 1e-9, np.float32))
    np.testing.assert_allclose(color, 80 / 255, rtol=1e-5)
    np.testing.assert_allclose(share, 1)


def test_the_inverse_of_a_mapping_leads_back_to_the_pixel(run):
    frame = render_frame(run.model, run.clip, 2, True, with_colors=False)
    uv = frame.uv[1]
    low, step = uv.min((0, 1)), np.linalg.norm(uv[32, 49] - uv[32, 48])
    texels = ((uv - low) / step).astype(np.float32)
    size = tuple(np.ceil(texels.max((0, 1))).astype(int) + 1)
    positions, is_found = invert_uv_field(texels, size)
    assert is_found.mean() > 0.8
    targets = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1)
    error = np.abs(sample_field(texels, positions) - targets)[is_found]
    assert error.max() < 0.5
    assert error.mean() < 0.02


def run_edit(folder, out, *flags):
    """Run only_edit.py; return the edited frames (T, H, W, 3)."""
    only_edit.main([f"--trained_model_folder={folder}", f"--output_folder={out}", "--save_frames", *map(str, flags)])
    return np.stack([media.read_rgb(path) for path in media.list_images(out / "edited_frames")]).astype(int)


@pytest.fixture(scope="module")
def looks(folder, tmp_path_factory):
    """Folder of the exported atlases of this run, with looks."""
    out = tmp_path_factory.mktemp("looks") / "out"
    arguments = [f"--trained_model_folder={folder}", f"--output_folder={out}", "--look_frames=4"]
    export_atlas.main([*arguments, "--format", "ora", "psd"])
    return out


def test_a_look_has_the_size_of_its_atlas_and_files_to_paint_in(looks, run):
    description = read_atlas_file(looks, run.checkpoint)
    assert sorted({image.look for image in description.looks}) == [0, 4, 7]
    for image in description.looks:
        base = description.layer(image.layer)
        assert media.image_size(looks / image.image) == (base.width, base.height)
        assert (looks / image.image).with_suffix(".ora").is_file()
        assert (looks / image.image).with_suffix(".psd").is_file()
        opaque = np.asarray(media.open_image(looks / image.image))[..., 3] > 0
        whole = np.asarray(media.open_image(looks / base.image))[..., 3] > 0
        assert 0 < opaque.sum() <= whole.sum() * 1.05
    assert (looks / "foreground_looks.png").is_file()
    assert (looks / "background_looks.png").is_file()


def test_paint_on_a_look_shows_around_its_frame_only(looks, folder, run, tmp_path, capsys):
    image = next(each for each in read_atlas_file(looks, run.checkpoint).looks if (each.layer, each.look) == (1, 7))
    paint = np.full((image.height, image.width, 4), (0, 255, 0, 255), np.uint8)
    media.write_png(looks / "background_look_007_green.png", paint)
    edited = run_edit(folder, tmp_path / "out", f"--edit_background_path={looks / 'background_look_007_green.png'}")
    assert "shows in frames 5 to 7" in capsys.readouterr().out
    source = np.stack([run.clip.frame(t) for t in range(COUNT)]).astype(int)
    np.testing.assert_array_equal(edited[0], source[0])
    corner = edited[7][:8, :8]
    assert corner[..., 1].min() > corner[..., 0].max() + 60


def test_a_clip_that_is_too_short_for_two_looks_has_none(folder, tmp_path, capsys):
    arguments = [f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}", "--format", "png"]
    export_atlas.main([*arguments, "--look_frames=50"])
    assert "too few for two looks" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*_look*"))
    with pytest.raises(UserError, match="--look_frames is -3"):
        export_atlas.main([*arguments, "--look_frames=-3"])


def test_paint_on_a_look_is_not_transferred_to_another_run(looks, folder, tmp_path):
    arguments = [f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}", f"--transfer_from={folder}"]
    with pytest.raises(UserError, match="is paint on a look"):
        only_edit.main([*arguments, f"--edit_background_path={looks / 'background_look_004.ora'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_paint_on_an_exported_atlas_appears_in_the_right_place_at_any_size(atlas, folder, run, tmp_path, scale):
    description = read_atlas_file(atlas, run.checkpoint).layer(1)
    width, height = (round(side * scale) for side in (description.width, description.height))
    paint = np.zeros((height, width, 4), np.uint8)
    frame = render_frame(run.model, run.clip, 4, True, with_colors=False)
    size = (description.width, description.height)
    texels = description.view(run.model, size, None).to_pixels(compute_atlas_uv(run.model, frame)[1], size).numpy()
    x, y = (texels[10, 70] + 0.5) * scale - 0.5
    cv2.circle(paint, (round(x), round(y)), max(2, round(4 * scale)), (255, 0, 0, 255), -1)
    media.write_png(tmp_path / "paint.png", paint)
    frames = run_edit(folder, tmp_path / "out", f"--atlas={atlas}", f"--edit_background_path={tmp_path / 'paint.png'}")
    rows, columns = np.nonzero(np.abs(frames[4] - run.clip.frame(4)).max(-1) > 60)
    tolerance_px = 1.2 / min(scale, 1)  # the disk is drawn at whole texels
    assert abs(rows.mean() - 10) < tolerance_px
    assert abs(columns.mean() - 70) < tolerance_px


@pytest.mark.parametrize("suffix", [".ora", ".psd"])
def test_a_painted_layered_file_gives_the_same_video_as_a_picture(atlas, folder, tmp_path, suffix):
    if suffix == ".psd":
        pytest.importorskip("psd_tools", reason="Photoshop files need psd-tools, which is not installed")
    width, height = media.image_size(atlas / "background.png")
    paint = np.zeros((height, width, 4), np.uint8)
    paint[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, 0, 255)
    shown = np.asarray(media.open_image(atlas / "background.png"))
    painted = {"my paint": paint, "guide": np.full_like(paint, 128), "atlas": shown}
    folders = {kind: media.make_folder(tmp_path / kind) for kind in ("layered", "plain")}
    if suffix == ".ora":
        write_openraster(folders["layered"] / "a.ora", painted)
    else:
        write_psd(folders["layered"] / "a.psd", {name: layer / 255 for name, layer in painted.items()}, 8)
    media.write_png(folders["plain"] / "a.png", paint)
    edited = {}
    for kind, place in folders.items():
        file = next(place.glob("a.*"))
        shutil.copy(atlas / "atlas.json", place)
        flags = [f"--output_folder={place / 'out'}", f"--edit_background_path={file}", "--format=png"]
        only_edit.main([f"--trained_model_folder={folder}", *flags])
        frames = media.list_images(next((place / "out").glob("edited_*/")))
        edited[kind] = np.stack([media.read_rgb(frame) for frame in frames]).astype(int)
    assert np.abs(edited["layered"] - edited["plain"]).max() <= 1
    assert (np.abs(edited["plain"] - [255, 0, 0]).max(-1) < 20).mean() > 0.03


def test_photoshop_files_are_written_when_they_are_asked_for(folder, tmp_path):
    pytest.importorskip("psd_tools", reason="Photoshop files need psd-tools, which is not installed")
    flags = [f"--output_folder={tmp_path / 'out'}", "--format", "psd", "--bits", "16"]
    export_atlas.main([f"--trained_model_folder={folder}", *flags])
    assert not list((tmp_path / "out").glob("*.ora"))
    layers = read_psd(tmp_path / "out" / "foreground.psd")
    assert [layer.name for layer in layers] == ["atlas", "guide", "paint here"]
    rgba = media.read_edit(tmp_path / "out" / "foreground.png")
    np.testing.assert_allclose(layers[0].rgba, rgba, atol=1 / 255)


def test_a_part_of_an_exported_atlas_is_placed_where_it_was_cut_out(atlas, folder, run, tmp_path):
    description = read_atlas_file(atlas, run.checkpoint).layer(1)
    whole = np.zeros((description.height, description.width, 4), np.uint8)
    whole[20:30, 40:60] = (0, 255, 0, 255)
    media.write_png(tmp_path / "whole.png", whole)
    media.write_png(tmp_path / "part.png", whole[12:40, 33:70])
    first = run_edit(folder, tmp_path / "a", f"--atlas={atlas}", f"--edit_background_path={tmp_path / 'whole.png'}")
    part = ("--edit_background_at", "33,12", f"--edit_background_path={tmp_path / 'part.png'}")
    second = run_edit(folder, tmp_path / "b", f"--atlas={atlas}", *part)
    assert np.abs(first - second).max() <= 1
    with pytest.raises(UserError, match=r"part\.png: is 37 x 28, background\.png is"):
        run_edit(folder, tmp_path / "c", f"--atlas={atlas}", f"--edit_background_path={tmp_path / 'part.png'}")


@pytest.mark.parametrize("is_copy", [True, False])
def test_paint_on_the_exported_image_itself_is_told_from_paint_alone(folder, atlas, tmp_path, capsys, is_copy):
    exported = np.asarray(Image.open(atlas / "background.png").convert("RGBA"))
    paint = exported.copy() if is_copy else np.zeros_like(exported)
    paint[20:30, 40:60] = (0, 255, 0, 255)
    media.write_png(tmp_path / "mine.png", paint)
    run_edit(folder, tmp_path / "out", f"--atlas={atlas}", f"--edit_background_path={tmp_path / 'mine.png'}")
    assert ("of it is background.png as it was exported" in capsys.readouterr().err) == is_copy


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_paint_needs_atlas_json_alone_of_what_was_exported(folder, atlas, tmp_path, content):
    shutil.copy(atlas / "atlas.json", tmp_path / "atlas.json")
    if content is not None:
        (tmp_path / "background.png").write_bytes(content)
    paint = np.zeros_like(np.asarray(Image.open(atlas / "background.png").convert("RGBA")))
    paint[20:30, 40:60] = (0, 255, 0, 255)
    media.write_png(tmp_path / "mine.png", paint)
    edited = run_edit(folder, tmp_path / "out", f"--edit_background_path={tmp_path / 'mine.png'}")
    assert (edited.astype(int) @ [-1, 2, -1] > 300).any()  # The green paint is seen.


def test_an_atlas_of_another_run_is_named(atlas, finished_run, tmp_path):
    media.write_png(tmp_path / "paint.png", np.zeros((10, 10, 4), np.uint8))
    with pytest.raises(UserError, match=r"atlas\.json belongs to the run pan_"):
        run_edit(finished_run, tmp_path / "out", f"--atlas={atlas}", f"--edit_background_path={tmp_path / 'paint.png'}")


def test_resolution_padding_and_bits_can_be_chosen(folder, tmp_path):
    flags = ["--resolution", "200", "--padding", "5", "--bits", "16"]
    export_atlas.main([f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}", *flags])
    assert abs(max(media.image_size(tmp_path / "out" / "background.png")) - 200) <= 2
    deep = cv2.imread(str(tmp_path / "out" / "background.png"), cv2.IMREAD_UNCHANGED)
    assert (deep.dtype, deep.shape[2]) == (np.uint16, 4)
    with pytest.raises(UserError, match="--resolution is '3', expected auto or pixels, 64 to 8192"):
        export_atlas.main([f"--trained_model_folder={folder}", f"--output_folder={tmp_path}", "--resolution", "3"])


def test_room_around_an_object_takes_paint_that_is_attached_to_it(folder, run, tmp_path):
    out, plain = tmp_path / "roomy", tmp_path / "plain"
    for target, flags in ((out, ["--room", "30"]), (plain, [])):
        export_atlas.main([f"--trained_model_folder={folder}", f"--output_folder={target}", *flags])
    (width, height), (roomy_width, roomy_height) = (media.image_size(path / "foreground.png") for path in (plain, out))
    assert (roomy_width, roomy_height) == (width + 60, height + 60)
    assert media.image_size(out / "background.png") == media.image_size(plain / "background.png")
    paint = np.zeros((roomy_height, roomy_width, 4), np.uint8)
    paint[8:20, roomy_width // 2 - 20 : roomy_width // 2 + 20] = (255, 0, 0, 255)  # above everything that is visible
    media.write_png(out / "painted.png", paint)
    changed = {}
    for name, flags in (("attached", ["--edit_object_attach", "1"]), ("clipped", [])):
        arguments = [f"--trained_model_folder={folder}", f"--output_folder={tmp_path / name}", "--format=png", *flags]
        only_edit.main([*arguments, f"--edit_foreground_path={out / 'painted.png'}"])
        frames = sorted(next((tmp_path / name).glob("edited_*/")).iterdir())
        changed[name] = np.mean([media.read_rgb(path)[..., 0] > 240 for path in frames])
    assert changed["attached"] > changed["clipped"] + 0.005


def test_an_openraster_file_follows_the_specification(tmp_path):
    picture = np.zeros((20, 30, 4), np.uint8)
    picture[5:10, 5:10] = (255, 0, 0, 255)
    write_openraster(tmp_path / "a.ora", {"paint <here>": np.zeros_like(picture), "atlas": picture})
    with zipfile.ZipFile(tmp_path / "a.ora") as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"image/openraster"
        assert b'<layer name="paint &lt;here&gt;" src="data/layer0.png"' in archive.read("stack.xml")
        with Image.open(archive.open("data/layer1.png")) as layer:
            assert np.array_equal(np.asarray(layer), picture)


@pytest.fixture(scope="module")
def layers(atlas, folder, tmp_path_factory):
    pytest.importorskip("OpenEXR", reason="ST maps need OpenEXR, which is not installed")
    out = tmp_path_factory.mktemp("layers") / "out"
    export_layers.main([f"--trained_model_folder={folder}", f"--output_folder={out}", f"--atlas={atlas}"])
    return out


def test_the_foreground_over_the_plate_is_the_frame(layers, scene):
    for t in (0, 5):
        rgba = np.asarray(media.open_image(layers / "foreground" / f"{t:05d}.png")).astype(float)
        plate = media.read_rgb(layers / "background" / f"{t:05d}.png").astype(float)
        alpha = rgba[..., 3:] / 255
        composite = rgba[..., :3] * alpha + plate * (1 - alpha)
        assert psnr(composite / 255, scene.frame(t).rgb / 255) > 33


def test_mattes_alone_need_no_atlas(folder, tmp_path):
    flags = [f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}", "--kinds", "alpha"]
    export_layers.main(flags)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alpha", "layers.png"]


def test_the_plate_shows_what_was_hidden(layers, scene):
    """What the object hides is known here, because the scene is drawn from photographs."""
    t = 4
    alpha = scene.frame(t).alpha[0]
    plate = media.read_rgb(layers / "background" / f"{t:05d}.png").astype(float)
    never_visible = media.read_mask(layers / "background_unseen" / f"{t:05d}.png") > 0
    layer = scene.layers[-1]
    positions = layer.to_photograph(scene.grid(), t).astype(np.float32)
    truth = cv2.remap(layer.photograph, positions, None, cv2.INTER_AREA).astype(float)
    is_hidden = (alpha > 0.99) & ~never_visible
    assert is_hidden.sum() > 30
    frame_error = np.abs(scene.frame(t).rgb.astype(float) - truth)[is_hidden].mean()
    assert np.abs(plate - truth)[is_hidden].mean() < 0.4 * frame_error


def test_removing_shadows_needs_plates(folder, tmp_path):
    flags = ("--kinds", "alpha", "--remove_shadow")
    with pytest.raises(UserError, match="add background to --kinds"):
        export_layers.main([f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}", *flags])


@pytest.fixture(scope="module")
def exr_layers(run, atlas, tmp_path_factory):
    """Folder with all layers of every frame in one EXR file each."""
    out = tmp_path_factory.mktemp("exr") / "out"
    flags = [f"--trained_model_folder={run.checkpoint.parent}", f"--output_folder={out}", f"--atlas={atlas}"]
    export_layers.main([*flags, "--format", "exr"])
    return out


def read_channels(path) -> dict[str, np.ndarray]:
    """Read the channels of an EXR file one by one, by their full names."""
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        return {name: channel.pixels.copy() for name, channel in file.channels().items()}


def test_all_layers_of_a_frame_are_in_one_exr_by_name(exr_layers, run):
    channels = read_channels(exr_layers / "layers" / "00004.exr")
    st_names = {f"st_{layer}.{letter}" for layer in ("foreground", "background") for letter in "RGB"}
    colors = {f"background.{letter}" for letter in "RGB"} | {f"foreground.{letter}" for letter in "RGBA"}
    assert set(channels) == {*"RGB", "alpha.A", "background_unseen.A"} | colors | st_names
    assert {str(channels[name].dtype) for name in colors} == {"float16"}  # a frame of 8 bits needs no more
    assert {str(channels[name].dtype) for name in st_names} == {"float32"}
    assert all(channel.shape == (64, 96) for channel in channels.values())
    assert len(list((exr_layers / "layers").iterdir())) == len(run.clip)
    assert (exr_layers / "st_background_inverse").is_dir()  # of the atlas' size, so a file of its own


def test_the_layers_of_an_exr_give_the_frame_in_linear_light(exr_layers, run):
    channels = read_channels(exr_layers / "layers" / "00004.exr")
    foreground, background, frame = (
        np.dstack([channels[f"{layer}{letter}"] for letter in "RGB"]).astype(np.float32)
        for layer in ("foreground.", "background.", "")
    )
    opacity = channels["foreground.A"][..., None].astype(np.float32)
    error = np.abs(foreground + (1 - opacity) * background - frame).max(-1)
    assert (error > 0.01).mean() < 0.02  # Where the plate is brighter than the frame, no colour can make up for it.
    assert error[opacity[..., 0] == 1].max() < 0.001
    np.testing.assert_array_equal(media.to_8_bit(media.to_display(frame)), run.clip.native_frame(4))


def test_st_maps_in_an_exr_are_those_of_single_files(exr_layers, layers):
    together, alone = (
        read_channels(folder / name / "00004.exr")
        for folder, name in ((exr_layers, "layers"), (layers, "st_background"))
    )
    for letter in "RGB":
        np.testing.assert_array_equal(together[f"st_background.{letter}"], alone[letter])


def test_st_maps_follow_nukes_convention():
    positions = np.array([[[0, 0], [3, 0]], [[0, 1], [3, 1]]], np.float32)
    expected = [[[0.125, 0.75], [0.875, 0.75]], [[0.125, 0.25], [0.875, 0.25]]]
    np.testing.assert_allclose(st_values(positions, (4, 2)), expected)


def apply_st_map(path, picture):
    """Warp a picture (h, w, 3) as Nuke's STMap node does: s to the right, t upwards from the lower left corner."""
    import OpenEXR

    with OpenEXR.File(str(path)) as file:
        values = file.channels()["RGB"].pixels
        assert "A" not in file.channels()  # Programs that divide colours by an opacity leave the map as it is.
    height, width = picture.shape[:2]
    x, y = values[..., 0] * width - 0.5, (1 - values[..., 1]) * height - 0.5
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR), values[..., 2]


def test_an_st_map_warps_the_atlas_to_the_frame_and_its_inverse_the_frame_to_the_atlas(layers, atlas, scene):
    picture = media.read_rgb(atlas / "background.png")
    warped, visibility = apply_st_map(layers / "st_background" / "00004.exr", picture)
    is_visible = visibility > 0.99
    assert warped.shape == (64, 96, 3)
    assert psnr(warped[is_visible][None] / 255, scene.frame(4).rgb[is_visible][None] / 255) > 26
    unwrapped, visibility = apply_st_map(layers / "st_background_inverse" / "00004.exr", scene.frame(4).rgb)
    assert unwrapped.shape == picture.shape
    is_visible = visibility > 0.99
    assert is_visible.mean() > 0.1
    assert psnr(unwrapped[is_visible][None] / 255, picture[is_visible][None] / 255) > 26


@pytest.mark.parametrize("layer", [0, 1])
def test_a_point_is_tracked(run, scene, layer):
    def layer_opacity(t):
        return scene.frame(t).alpha[0] if layer == 0 else 1 - scene.frame(t).alpha[0]

    inner = cv2.erode((layer_opacity(2) > 0.99).astype(np.uint8), np.ones((7, 7)))
    rows, columns = np.nonzero(inner)
    x, y = float(columns[len(rows) // 2]), float(rows[len(rows) // 2])
    name, track = track_point(run, x, y, 2)
    assert name == ("foreground", "background")[layer]
    origin = scene.layers[layer].to_photograph(np.array([x, y]), 2)
    checked_frames = 0
    for point in track:
        truth = scene.layers[layer].to_frame(origin, point.t)
        column, row = np.rint(truth).astype(int)
        opacity = layer_opacity(point.t)
        is_inside = 3 <= column < SIZE[0] - 3 and 3 <= row < SIZE[1] - 3
        if is_inside and opacity[row - 2 : row + 3, column - 2 : column + 3].min() > 0.99:
            checked_frames += 1
            assert point.is_visible
            assert np.hypot(point.x - truth[0], point.y - truth[1]) < 1.5
    assert checked_frames > 3
    assert track[2].is_visible
    assert (track[2].x, track[2].y) == pytest.approx((x, y), abs=0.05)


def test_a_track_is_printed_and_written(folder, tmp_path):
    flags = [f"--trained_model_folder={folder}", f"--output_folder={tmp_path / 'out'}"]
    done = run_script("export_layers.py", *flags, "--track", "20,10,0")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "out" / "track.csv").read_text().splitlines()
    assert rows[0] == "frame,x,y,visible"
    assert len(rows) == 1 + COUNT
    assert rows[1] in done.stdout
    with pytest.raises(UserError, match="outside the clip of 8 frames"):
        export_layers.main([*flags, "--track", "500,10,0"])


def test_an_edit_is_transferred_to_another_run_of_the_clip(folder, run, tmp_path, capsys):
    from dataclasses import replace

    from config import load_config
    from training.runs import start_run

    config = load_config(folder / "config.json")
    other = start_run(replace(config, seed=5, iters_num=40, results_folder_name=str(tmp_path / "results")))
    other.run()
    paint = np.zeros((300, 300, 4), np.uint8)
    paint[120:180, 120:180] = (255, 255, 0, 255)
    media.write_png(tmp_path / "paint.png", paint)
    before = run_edit(folder, tmp_path / "old", f"--edit_background_path={tmp_path / 'paint.png'}")
    after = run_edit(
        other.folder, tmp_path / "new", f"--edit_background_path={tmp_path / 'paint.png'}", f"--transfer_from={folder}"
    )
    source = np.stack([run.clip.frame(t) for t in range(COUNT)]).astype(int)
    painted = np.abs(before - source).max(-1) > 60
    assert painted.mean() > 0.01
    assert np.abs(before - after)[painted].mean() < 25  # its edges move by a fraction of a pixel
    reused = run_edit(
        other.folder, tmp_path / "again", f"--edit_background_path={tmp_path / 'new' / 'carried_background.png'}"
    )
    assert np.abs(reused - after).mean() < 0.5  # the transferred picture can be used like any other
    assert "transferred the edit: mean difference" in capsys.readouterr().out
    assert (tmp_path / "new" / "carried_background.png").is_file()
    assert checkpoint_fingerprint(other.folder / "checkpoint") != checkpoint_fingerprint(folder / "checkpoint")


def test_a_weighted_median_has_less_than_half_of_the_weight_below_it_and_half_up_to_it():
    rng = np.random.default_rng(0)
    values, weights = rng.integers(0, 256, (9, 20, 30), np.uint8), rng.random((9, 20, 30), np.float32)
    weights[:, :2] = 0  # texels that no frame shows
    median = find_median(values, weights)
    below, up_to = (np.where(part, weights, 0).sum(0) for part in (values < median, values <= median))
    assert (below[2:] < weights.sum(0)[2:] / 2).all()
    assert (up_to >= weights.sum(0) / 2 - 1e-5).all()
    assert (median[:2] == 0).all()
