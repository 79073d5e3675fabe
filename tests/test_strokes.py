"""Strokes: reading them, growing them, carrying them along the flow, and what they do to a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw, last_line, run_script, tiny_config

import media
from command_line import UserError
from editing.atlas_file import LayerImage
from grids.atlas_size import enlarge_atlas
from grids.fields import Lattice
from grids.model import GridModel
from grids.shape import Shape, Spacing
from implicit_neural_networks import uv_to_atlas
from masks.cues import shrink_video
from masks.strokes import carry_along_flow, grow_strokes, object_strokes, read_strokes
from media.clip import open_clip
from rendering.frames import VISIBLE, render_frame, render_frames
from training.runs import Corrections, resume_run, start_run
from unwrap_utils import load_video

SIZE = {"width": 96, "height": 64, "frames": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("strokes"), **SIZE)


@pytest.fixture(scope="module")
def clip(folder, tmp_path_factory):
    return open_clip(folder, grid_config(folder, tmp_path_factory.mktemp("unused")))


def grid_config(folder, results, **changes):
    settings = {"representation": "grid", "light": True, "maximum_number_of_frames": 6, "iters_num": 20}
    return tiny_config(folder, results, **(settings | {"evaluate_every": 1000, "checkpoint_every": 1000} | changes))


def paint(folder, name, *strokes, size=(96, 64)):
    """Write strokes as a PNG: each is a colour and the rectangle (top, bottom, left, right) that it fills."""
    picture = np.zeros((size[1], size[0], 4), np.uint8)
    for color, (top, bottom, left, right) in strokes:
        picture[top:bottom, left:right] = (*color, 255)
    media.write_png(media.make_folder(folder) / name, picture)
    return folder


RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def test_colours_say_object_background_or_nothing(clip, tmp_path):
    strokes = read_strokes(paint(tmp_path, "00002.png", (RED, (2, 5, 3, 9)), (BLACK, (20, 22, 3, 9))), clip)
    assert list(strokes) == [2]
    labels = object_strokes(strokes[2], 1)
    assert (labels[2:5, 3:9] == 1).all() and (labels[20:22, 3:9] == -1).all()
    assert np.count_nonzero(labels) == 3 * 6 + 2 * 6


def test_a_picture_may_be_named_by_the_number_of_its_frame(clip, tmp_path):
    assert list(read_strokes(paint(tmp_path, "4.png", (RED, (2, 5, 3, 9))), clip)) == [4]


@pytest.mark.parametrize(
    ("name", "strokes", "size", "message"),
    [
        ("00099.png", [(RED, (2, 5, 3, 9))], (96, 64), "belongs to no frame"),
        ("00001.png", [(RED, (2, 5, 3, 9))], (90, 60), "is 90 x 60, the frames are 96 x 64"),
        ("00001.png", [((90, 200, 160), (2, 5, 3, 9))], (96, 64), "colour (90, 200, 160) at 3,2 is not known"),
        ("00001.png", [(GREEN, (2, 5, 3, 9))], (96, 64), "for 1 object(s)"),
        ("00001.png", [], (96, 64), "nothing is painted there"),
        ("00001.png", [(RED, (0, 64, 0, 96))], (96, 64), "opaque everywhere"),
    ],
)
def test_strokes_that_cannot_be_used_are_named(clip, tmp_path, name, strokes, size, message):
    with pytest.raises(UserError) as error:
        read_strokes(paint(tmp_path, name, *strokes, size=size), clip)
    assert message in str(error.value)


def test_a_missing_folder_of_strokes_is_one_line(folder, tmp_path):
    result = run_script(ROOT / "train.py", ROOT / "config/fast.json", "--set", f"data_folder={folder}",
                        "--set", f"results_folder_name={tmp_path}", "--strokes", tmp_path / "none")  # fmt: skip
    assert result.returncode == 2
    assert "no such folder" in last_line(result.stderr) and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_stroke_grows_to_the_edges_of_what_it_lies_on():
    rgb = np.full((240, 640, 3), 40, np.uint8)
    rgb[100:122, 100:300], rgb[100:122, 300:500] = (200, 60, 60), (60, 60, 200)
    rgb += np.random.default_rng(0).integers(0, 12, rgb.shape, np.uint8)
    inside = np.zeros((240, 640), bool)
    inside[100:122, 100:300] = True  # The blue half of the object is missing.
    strokes = np.zeros((240, 640), np.int8)
    strokes[108:114, 306:494] = 1
    grown = grow_strokes(rgb, inside, strokes)
    blue = np.zeros_like(inside)
    blue[100:122, 300:500] = True
    assert (grown[blue] == 1).mean() > 0.9
    assert np.count_nonzero(grown[~blue]) < 20


def test_parts_without_a_stroke_stay_as_they_are():
    rgb = np.full((40, 60, 3), 40, np.uint8)
    rgb[5:15, 5:15] = rgb[25:35, 40:55] = (200, 60, 60)
    inside = np.zeros((40, 60), bool)
    strokes = np.zeros((40, 60), np.int8)
    strokes[8:12, 8:12] = 1
    assert not (grow_strokes(rgb, inside, strokes)[20:, 30:] == 1).any()


def test_a_region_is_carried_along_the_flow(clip):
    small = shrink_video(load_video(clip, torch.device("cpu")))
    region = np.zeros(small.rgb.shape[1:3], np.int8)
    region[28:36, 40:48] = 1
    carried = carry_along_flow(small, {2: region})
    assert carried[2, 30, 44] == 1
    assert 0.5 < carried[4].max() < 1
    moved = np.argwhere(carried[4] > 0.3).mean(0)[1] - np.argwhere(region > 0).mean(0)[1]
    assert moved == pytest.approx(small.flow[0, 2:4, 28:36, 40:48, 0].mean((1, 2)).sum(), abs=1.0)


def test_strokes_are_never_contradicted_in_a_new_run(folder, clip, tmp_path):
    strokes = paint(tmp_path / "strokes", "00003.png", (RED, (2, 5, 2, 6)), (BLACK, (30, 33, 46, 50)))
    trainer = start_run(grid_config(folder, tmp_path / "runs", strokes_folder=str(strokes)))
    trainer.run()
    check_strokes(trainer, read_strokes(strokes, clip))


def test_strokes_correct_a_finished_run(folder, clip, tmp_path):
    run = start_run(grid_config(folder, tmp_path / "runs"))
    run.run()
    before = coverage(run)
    strokes = paint(tmp_path / "strokes", "00003.png", (RED, (2, 5, 2, 6)), (BLACK, (30, 33, 46, 50)))
    corrected = resume_run(run.folder, time_budget_s=1.0, corrections=Corrections(strokes))
    assert corrected.iteration == run.iteration < corrected.config.iters_num  # Time alone ends the correction.
    corrected.run()
    check_strokes(corrected, read_strokes(strokes, clip))
    changed = (coverage(corrected) > VISIBLE) != (before > VISIBLE)
    assert changed.mean() < 0.15  # What no stroke is about stays.
    again = resume_run(
        run.folder,
        time_budget_s=1.0,
        corrections=Corrections(paint(tmp_path / "more", "00001.png", (RED, (9, 11, 2, 6)))),
    )
    again.run()
    check_strokes(again, read_strokes(strokes, clip))


def coverage(trainer):
    frames = render_frames(trainer.model, trainer.clip, True, with_colors=False)
    return np.stack([frame.coverage for frame in frames])


def check_strokes(trainer, strokes):
    for t, labels in strokes.items():
        frame, says = render_frame(trainer.model, trainer.clip, t, True), object_strokes(labels, 1)
        assert (frame.coverage[says > 0] > VISIBLE).all()
        assert (frame.coverage[says < 0] < VISIBLE).all()


def test_networks_cannot_be_corrected_after_training(finished_run, tmp_path):
    strokes = paint(tmp_path, "00001.png", (RED, (2, 5, 3, 9)), size=(48, 32))
    with pytest.raises(UserError, match="representation 'grid' alone"):
        resume_run(finished_run, corrections=Corrections(strokes))


def test_an_enlarged_atlas_keeps_every_texel_in_place():
    model = GridModel(Shape((2, 20, 30), ((20, 30), (20, 30)), Spacing(((16, 1),), ((8, 1),), 0)))
    model.atlases[0].data = torch.rand(1, 3, 20, 30)
    texels = model.at_frames(0).texels(0, lattice := Lattice.of_raster((30, 20), (20, 30)))
    uv_before = model.to_uv(texels[0].flatten(1).T, 0)
    before = model.colors(torch.stack([uv_before] * 2))[0]
    painted = LayerImage("object_1.png", 0, 30, 20, -1.0, -0.6, 2 / 29, units=model.uv_units(0))
    view_before = painted.view(model, (30, 20), None)
    enlarge_atlas(model, 0, np.array([[-9.0, -14], [30, 20]]))
    assert model.shape.atlas_sizes[0] == (20 + 14 + 4, 30 + 9 + 4)
    texels = model.at_frames(0).texels(0, lattice)
    uv = model.to_uv(texels[0].flatten(1).T, 0)
    torch.testing.assert_close(model.layer_color(uv, 0), before, atol=1e-5, rtol=0)
    # Pictures that were painted over the smaller atlas lie over the same part of it.
    scale, *offset = model.uv_units(0)
    torch.testing.assert_close(scale * uv + torch.tensor(offset), uv_before, atol=1e-5, rtol=0)
    pixels = painted.view(model, (30, 20), None).to_pixels(uv_to_atlas(uv, model.atlas_centers[0]), (30, 20))
    pixels_before = view_before.to_pixels(uv_to_atlas(uv_before, model.atlas_centers[0]), (30, 20))
    torch.testing.assert_close(pixels, pixels_before, atol=1e-4, rtol=0)
    saved = GridModel.from_checkpoint(model.checkpoint(), Path("checkpoint"))
    assert saved.uv_units(0) == model.uv_units(0) and saved.uv_units(1) == (1, 0, 0)
