"""Evaluating a run: the published files, metrics, and a page."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw, last_line, read_video, run_script, tiny_config, video_metadata
from PIL import Image

import implicit_neural_networks
import media
from evaluate import evaluate
from evaluation.image_metrics import psnr, ssim
from evaluation.mask_metrics import iou
from evaluation.page import find_meaning
from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from rendering.atlas_view import AtlasView, fit_atlas_views, mark_visible_texels, refine_cells, render_atlas
from rendering.blending import apply_edits
from rendering.frames import Frame, render_frames
from rendering.trained_run import TrainedRun

VIDEOS = """reconstruction alpha alpha_vs_mask_rcnn residuals uv_1 uv_1_masked uv_2 checkerboard_1 checkerboard_2
edited1 edited2 edited1_tex edited2_tex edit global_info"""
PICTURES = "texture_orig1 texture_orig2 texture_edit1 texture_edit2 texture_orig1_alpha texture_orig2_alpha"


@pytest.fixture(scope="module")
def evaluated(finished_run, shared_clip, tmp_path_factory):
    """Folder that only_evaluate.py wrote, run as a user does, and the text that it printed."""
    folder = tmp_path_factory.mktemp("out") / "evaluation"
    done = run_script(
        "only_evaluate.py",
        f"--trained_model_folder={finished_run}",
        f"--video_name={shared_clip.name}",
        f"--data_folder={shared_clip.parent}",
        f"--output_folder={folder}",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_published_file_is_written(evaluated):
    folder, _ = evaluated
    names = {path.name for path in folder.iterdir()}
    assert {f"{kind}_demo.mp4" for kind in VIDEOS.split()} <= names
    assert {f"{name}.png" for name in PICTURES.split()} <= names
    assert {"metrics.json", "index.html", "quality.png"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_the_last_line_names_the_folder(evaluated):
    folder, printed = evaluated
    assert last_line(printed) == f"wrote {folder}"


def test_metrics_are_single_numbers_with_lists_per_frame(evaluated):
    metrics = json.loads((evaluated[0] / "metrics.json").read_text())
    for name in (
        "psnr",
        "ssim",
        "iou",
        "boundary_f",
        "atlas_use_background",
        "edit_warp_error",
        "seconds",
        "peak_memory_mb",
    ):
        assert isinstance(metrics[name], float), name
    assert {name: len(values) for name, values in metrics["per_frame"].items()} == dict.fromkeys(
        ("psnr", "ssim", "iou", "boundary_f"), 4
    )
    assert metrics["psnr"] == pytest.approx(np.mean(metrics["per_frame"]["psnr"]), abs=1e-5)


@pytest.mark.slow
def test_every_video_has_the_clips_frames_and_speed(evaluated):
    for path in evaluated[0].glob("*.mp4"):
        assert len(list(read_video(path))) == 4, path
        assert video_metadata(path)["fps"] == 12, path


def test_the_page_shows_every_picture_and_video(evaluated):
    folder, _ = evaluated
    page = (folder / "index.html").read_text()
    for path in [*folder.glob("*.mp4"), *folder.glob("*.png")]:
        assert f'src="{path.name}"' in page, path


def test_the_page_says_what_each_metric_means(evaluated):
    metrics = json.loads((evaluated[0] / "metrics.json").read_text())
    numbers = [name for name, value in metrics.items() if isinstance(value, int | float)]
    page = (evaluated[0] / "index.html").read_text()
    for name in numbers:
        meaning = find_meaning(name, ["foreground", "background"])
        assert meaning, name
        assert meaning in page
    assert find_meaning("psnr_masked", ["foreground"]) == ""


def test_atlases_are_a_thousand_pixels_wide_and_transparent_where_not_visible(evaluated):
    for number in (1, 2):
        opaque = media.read_rgb(evaluated[0] / f"texture_orig{number}.png")
        with Image.open(evaluated[0] / f"texture_orig{number}_alpha.png") as image:
            rgba = np.asarray(image)
        assert opaque.shape == (1000, 1000, 3)
        assert rgba.shape == (1000, 1000, 4)
        assert not opaque[rgba[..., 3] == 0].any()
    assert rgba[..., 3].any()


@pytest.mark.slow
def test_a_folder_with_files_is_left_alone(evaluated, finished_run):
    folder, _ = evaluated
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = run_script("only_evaluate.py", f"--trained_model_folder={finished_run}", f"--output_folder={folder}")
    assert last_line(done.stdout) == f"wrote {folder}_2"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.slow
def test_a_clip_without_flow_masks_or_truth_can_be_evaluated(tmp_path):
    folder = draw(tmp_path / "data", frames=2)
    for suffix in ("_flow", "_maskrcnn", "_gt"):
        for path in folder.with_name("demo" + suffix).iterdir():
            path.unlink()
        folder.with_name("demo" + suffix).rmdir()
    config = tiny_config(folder, tmp_path)
    evaluation = evaluate(TrainedRun(AtlasModel(config), open_clip(folder, config)), tmp_path / "out")
    assert "iou" not in evaluation.metrics
    assert not (tmp_path / "out" / "alpha_vs_mask_rcnn_demo.mp4").exists()
    assert (tmp_path / "out" / "global_info_demo.mp4").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trained_model_folder=nowhere"], "nowhere: no such folder; give a folder that train.py wrote"),
        (["--video_name=dog"], "dog: no such folder of frames"),
        (["--fps=0"], "--fps is 0.0, expected frames per second above 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(finished_run, tmp_path, arguments, message):
    done = run_script(
        "only_evaluate.py", f"--trained_model_folder={finished_run}", f"--output_folder={tmp_path / 'out'}", *arguments
    )
    assert done.returncode == 2
    assert message in last_line(done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def frame_with(alpha, uv=None) -> Frame:
    """Return a frame of one object with this opacity (H, W), and uv (2, H, W, 2) or zeros."""
    alpha = np.array(alpha, np.float32)
    uv = np.zeros((2, *alpha.shape, 2), np.float32) if uv is None else uv
    return Frame(0, uv, alpha[None], np.zeros((*alpha.shape, 3), np.float32))


def test_the_background_view_is_the_square_that_visible_background_uses(tmp_path):
    model = AtlasModel(tiny_config(tmp_path, tmp_path))
    uv = np.zeros((2, 1, 4, 2), np.float32)
    uv[1, 0] = [[-0.8, -0.2], [0.0, 0.2], [0.4, 0.1], [1.0, 1.0]]
    for full_range in (True, False):
        frame = replace(frame_with([[0.1, 0.2, 0.74, 0.9]], uv), full_range=full_range)
        view = fit_atlas_views(model, [frame])[1]
        assert (view.left, view.top) == pytest.approx((-0.9, -0.6))
        assert view.edge == pytest.approx(0.6)


def test_the_crop_counts_raw_opacity_so_that_it_does_not_depend_on_the_rendered_range(tmp_path):
    """Raw, a tanh, 0.5 is an opacity of 0.75; 0.745 lies below it in the full range and above in the published one."""
    assert replace(frame_with([[0.745]]), full_range=True).uses_background.all()
    assert not replace(frame_with([[0.745]]), full_range=False).uses_background.any()


def test_a_background_that_is_never_visible_keeps_its_whole_square(tmp_path):
    model = AtlasModel(tiny_config(tmp_path, tmp_path))
    assert fit_atlas_views(model, [frame_with([[1.0, 1.0]])])[1] == AtlasView(-1.0, -1.0, 1.0)


def test_marking_leaves_no_holes_where_the_atlas_is_finer_than_the_frame():
    texel_visibility, view = torch.zeros(61, 61), AtlasView(0.0, 0.0, 1.0)
    axis = torch.linspace(0, 1, 21)
    atlas_uv = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    mark_visible_texels(texel_visibility, view, atlas_uv, torch.ones(21, 21))
    torch.testing.assert_close(texel_visibility, torch.ones(61, 61))


def test_marking_a_few_positions_at_a_time_equals_marking_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(0.1, 0.9, 21)
    atlas_uv = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    visibility = torch.rand(21, 21, generator=generator)
    at_once, in_parts = torch.zeros(61, 61), torch.zeros(61, 61)
    mark_visible_texels(at_once, AtlasView(0.0, 0.0, 1.0), atlas_uv, visibility)
    monkeypatch.setattr("rendering.atlas_view.MOST_POSITIONS", 1)
    mark_visible_texels(in_parts, AtlasView(0.0, 0.0, 1.0), atlas_uv, visibility)
    assert at_once.any()
    torch.testing.assert_close(in_parts, at_once)


def test_marking_only_what_may_change_equals_marking_everything(monkeypatch):
    """A frame pans over the atlas while a hole with a soft outline moves through it, and part of it is torn."""
    rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    quick, thorough, chosen = torch.zeros(100, 120), torch.zeros(100, 120), []
    everything = np.ones((30, 40), bool)

    def count_cells(values, is_chosen, factor):
        chosen.append(is_chosen.mean())
        return refine_cells(values, is_chosen, factor)

    for t in range(8):
        atlas_uv = torch.stack((0.012 * columns + 0.01 * t, 0.02 * rows + 0.004 * t), dim=-1)
        atlas_uv[:, 20:] += 0.1 * (t % 3)
        visibility = ((rows - 15).hypot(columns - 5 - 3 * t) / 5 - 0.5).clamp(0, 1)
        frame = AtlasView(0.0, 0.0, 1.0), atlas_uv, visibility
        with monkeypatch.context() as patch:
            patch.setattr("rendering.atlas_view.refine_cells", count_cells)
            mark_visible_texels(quick, *frame)
        with monkeypatch.context() as patch:
            patch.setattr("rendering.atlas_view.find_changes", lambda *_: everything)
            mark_visible_texels(thorough, *frame)
    assert thorough.mean() > 0.3
    torch.testing.assert_close(quick, thorough, rtol=0, atol=1 / 256)
    assert chosen[0] > 0.9
    assert np.mean(chosen[1:]) < 0.6  # The other frames mark only what is new.


def test_marking_ignores_positions_outside_the_image():
    texel_visibility = torch.zeros(5, 5)
    mark_visible_texels(texel_visibility, AtlasView(0.0, 0.0, 1.0), torch.full((4, 4, 2), 1.5), torch.ones(4, 4))
    assert not texel_visibility.any()


def test_marking_ignores_hidden_pixels():
    texel_visibility = torch.zeros(5, 5)
    mark_visible_texels(texel_visibility, AtlasView(0.0, 0.0, 1.0), torch.rand(4, 4, 2), torch.full((4, 4), 0.3))
    assert not texel_visibility.any()


@torch.no_grad()
def test_an_atlas_image_holds_the_networks_colours_at_its_grid(tmp_path):
    model = AtlasModel(tiny_config(tmp_path, tmp_path))
    view = AtlasView(0.1, 0.2, 0.5)
    image = render_atlas(model, view, 9)
    corner = model.atlas_color(torch.tensor([[0.6, 0.2]]))
    np.testing.assert_allclose(image[0, 8], corner[0], atol=1e-6)
    mask = np.zeros((9, 9), bool)
    mask[2, 3] = True
    masked_image = render_atlas(model, view, 9, mask)
    np.testing.assert_allclose(masked_image[2, 3], image[2, 3], atol=1e-6)
    assert np.count_nonzero(masked_image.any(-1)) == 1


def test_rendering_in_parts_gives_the_same_frame(shared_clip, tmp_path, monkeypatch):
    config = tiny_config(shared_clip, tmp_path)
    model, clip = AtlasModel(config), open_clip(shared_clip, config)
    frames = []
    for chunk in (10**6, 100):
        monkeypatch.setitem(implicit_neural_networks.CHUNK, "cpu", chunk)
        frames.append(next(render_frames(model, clip, True)))
    np.testing.assert_allclose(frames[0].rgb, frames[1].rgb, atol=1e-6)


def test_a_transparent_edit_changes_nothing_and_an_opaque_one_everything():
    source = np.random.default_rng(0).random((4, 5, 3), np.float32)
    visibility = np.full((4, 5), 0.25, np.float32)
    transparent, white = np.zeros((4, 5, 4), np.float32), np.ones((4, 5, 4), np.float32)
    np.testing.assert_array_equal(apply_edits(source, [(transparent, visibility)]), source)
    np.testing.assert_allclose(apply_edits(source, [(white, visibility), (white, 1 - visibility)]), 1, atol=1e-6)


def test_psnr_is_the_textbook_formula_and_infinite_for_equal_pictures():
    image = np.full((3, 3, 3), 0.5)
    assert psnr(image, image + 0.1) == pytest.approx(20)
    assert psnr(image, image) == float("inf")


def test_ssim_of_equal_pictures_is_one():
    image = np.random.default_rng(0).random((8, 9, 3))
    assert ssim(image, image) == pytest.approx(1)


def test_iou_counts_overlap_and_two_empty_masks_agree():
    a, b = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a & False, b & False) == 1
