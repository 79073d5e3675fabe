"""Several foreground objects: masks, mappings, atlases and edits of their own."""

import json

import numpy as np
import pytest
from conftest import exact_flow, last_line, run_script, tiny_config

import export_layers
import media
import only_edit
import preprocess_mask_rcnn
from command_line import UserError
from config import ConfigError, load_config
from evaluation.mask_metrics import iou
from masks.refinement import remove_specks
from media.clip import open_clip
from rendering.frames import render_frames
from rendering.trained_run import open_run
from scenes.catalogue import SCENES
from scenes.files import write_scene
from training.loop import start_run
from unwrap_utils import load_video, pick_device

SIZE, FRAMES = (96, 64), 8
SCENE = SCENES["cross"](*SIZE, FRAMES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two objects that cross, on disk."""
    folder = write_scene(SCENE, tmp_path_factory.mktemp("objects"))
    exact_flow(folder)
    return folder


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    """A finished run with a layer for each: its folder."""
    rare = {"iters_num": 60, "evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 100}
    results = tmp_path_factory.mktemp("runs")
    trainer = start_run(
        tiny_config(clip, results, representation="grid", objects=2, **rare | {"maximum_number_of_frames": FRAMES})
    )
    trainer.run()
    return trainer.folder


def paint(path, color):
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[..., :3] = color
    media.write_png(path, picture)
    return path


def changed(run, out, *flags):
    """(T, H, W) whether an edit changes a pixel clearly."""
    only_edit.main([f"--trained_model_folder={run}", f"--output_folder={out}", "--format=png", *map(str, flags)])
    clip = open_run(run).clip
    after = [media.read_rgb(path) for path in media.list_images(out / f"edited_{clip.name}")]
    before = [clip.frame(t) for t in range(len(clip))]
    return np.abs(np.stack(after).astype(int) - np.stack(before)).max(-1) > 40


def test_every_object_has_masks_of_its_own_of_what_a_frame_shows_of_it(clip, tmp_path):
    video = load_video(open_clip(clip, tiny_config(clip, tmp_path, objects=2)), pick_device())
    for index, plane in enumerate(video.masks.numpy() > 127):
        agreement = [iou(mask, SCENE.front_layer(SCENE.grid(), t) == index) for t, mask in enumerate(plane)]
        assert np.mean(agreement) > 0.6


def test_every_object_gets_an_opacity_of_its_own(run):
    opened = open_run(run)
    found = [frame.visibility for frame in render_frames(opened.model, opened.clip, True, with_colors=False)]
    for index in range(2):
        agreement = [
            iou(shares[index] > 0.5, SCENE.front_layer(SCENE.grid(), t) == index) for t, shares in enumerate(found)
        ]
        assert np.mean(agreement) > 0.75, index


def test_paint_on_one_object_stays_on_it(run, tmp_path):
    red = paint(tmp_path / "red.png", (255, 0, 60))
    for index in range(2):
        touched = changed(run, tmp_path / f"out{index}", "--edit_object", f"{index + 1}:{red}")
        shown = np.stack([SCENE.front_layer(SCENE.grid(), t) for t in range(FRAMES)]) == index
        assert touched[shown].mean() > 0.7
        assert touched[~shown].mean() < 0.05


def test_the_published_foreground_flag_paints_the_front_object(run, tmp_path):
    red = paint(tmp_path / "red.png", (255, 0, 60))
    old = changed(run, tmp_path / "old", f"--edit_foreground_path={red}")
    new = changed(run, tmp_path / "new", "--edit_object", f"1:{red}")
    np.testing.assert_array_equal(old, new)


def test_paint_on_a_frame_can_be_given_to_one_object(run, tmp_path):
    over = np.full((SIZE[1], SIZE[0], 4), 255, np.uint8)
    over[..., 1:3] = 0
    media.write_png(tmp_path / "frame.png", over)
    touched = changed(run, tmp_path / "out", "--edit_frame", f"4:{tmp_path / 'frame.png'}", "--edit_frame_object", 2)
    shown = np.stack([SCENE.front_layer(SCENE.grid(), t) for t in range(FRAMES)]) == 1
    assert touched[4][shown[4]].mean() > 0.7
    assert touched[~shown].mean() < 0.05


def test_every_object_has_a_matte_of_its_own(run, tmp_path):
    export_layers.main([f"--trained_model_folder={run}", f"--output_folder={tmp_path / 'out'}", "--kinds", "alpha"])
    both = [
        media.read_mask(tmp_path / "out" / f"alpha{name}" / "00004.png") for name in ("_foreground", "_foreground2")
    ]
    together = media.read_mask(tmp_path / "out" / "alpha" / "00004.png")
    assert np.abs(both[0].astype(int) + both[1] - together).max() <= 2
    assert min(mask.max() for mask in both) > 200


def test_networks_learn_several_objects_too(clip, tmp_path):
    trainer = start_run(tiny_config(clip, tmp_path, objects=2))
    trainer.run()
    assert (trainer.evaluation_folder / "texture_orig3.png").is_file()
    assert "model_F_mapping3_state_dict" in trainer.learner.checkpoint()


def test_label_pictures_are_imported_as_objects(clip, tmp_path):
    frames = tmp_path / "two"
    for t in range(3):
        labels = np.zeros((64, 96), np.uint8)
        labels[10:20, 10:20], labels[30:40, 50:60] = 1, 2
        media.write_png(media.make_folder(tmp_path / "labels") / f"{t:05d}.png", labels)
        media.write_png(media.make_folder(frames) / f"{t:05d}.png", media.read_rgb(clip / f"{t:05d}.png"))
    arguments = ["--vid-path", str(frames), "--method", "import", "--masks", str(tmp_path / "labels"), "--objects", "2"]
    preprocess_mask_rcnn.main(arguments)
    areas = [np.argwhere(media.read_mask(tmp_path / f"two_maskrcnn_{n}" / "00001.png")).mean(0) for n in (1, 2)]
    np.testing.assert_allclose(areas, [[14.5, 14.5], [34.5, 54.5]])
    assert (media.read_mask(tmp_path / "two_maskrcnn" / "00001.png") > 0).sum() == 200


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--edit_object", "3:{red}"], "object 3: the run .* has 2"),
        (["--edit_object", "0:{red}"], "objects are counted from 1"),
        (["--edit_frame", "0:{red}", "--edit_frame_object", "4"], "object 4: the run .* has 2"),
    ],
)
def test_an_object_that_is_not_there_is_named(run, tmp_path, flags, complaint):
    red = paint(tmp_path / "red.png", (255, 0, 0))
    with pytest.raises(UserError, match=complaint):
        changed(run, tmp_path / "out", *(flag.format(red=red) for flag in flags))


def test_a_missing_mask_folder_of_an_object_is_named(clip, tmp_path):
    with pytest.raises(UserError, match=r"cross_maskrcnn_3: no such folder; run .* --objects 3"):
        start_run(tiny_config(clip, tmp_path, objects=3))


def test_more_objects_than_the_atlas_has_room_for_are_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"data_folder": "x", "objects": 4}')
    with pytest.raises(ConfigError, match="objects must be at most 3, got 4"):
        load_config(tmp_path / "c.json")


def test_one_command_refuses_objects_that_motion_cannot_tell_apart(clip):
    done = run_script("unwrap_video.py", clip, "--method", "motion", "--objects", 2)
    assert done.returncode == 2
    assert "--method motion finds one object" in last_line(done.stderr)


def test_labels_that_no_picture_has_are_named_and_leave_nothing(clip, tmp_path):
    frames = tmp_path / "one"
    for t in range(2):
        media.write_png(media.make_folder(frames) / f"{t:05d}.png", media.read_rgb(clip / f"{t:05d}.png"))
        media.write_png(media.make_folder(tmp_path / "hard") / f"{t:05d}.png", np.ones((64, 96), np.uint8))
    arguments = ["--vid-path", str(frames), "--method", "import", "--masks", str(tmp_path / "hard"), "--objects", "2"]
    with pytest.raises(UserError, match="no picture has the label 2, expected labels 1 to 2"):
        preprocess_mask_rcnn.main(arguments)
    assert not (tmp_path / "one_maskrcnn_1").exists() and not (tmp_path / "one_maskrcnn").exists()


def test_masks_of_single_objects_that_are_there_make_those_of_all(clip, tmp_path):
    frames = tmp_path / "own"
    for t in range(2):
        media.write_png(media.make_folder(frames) / f"{t:05d}.png", media.read_rgb(clip / f"{t:05d}.png"))
        for number in (1, 2):
            mask = np.zeros((64, 96), np.uint8)
            mask[:, number * 10 : number * 10 + 5] = 255
            media.write_png(media.make_folder(tmp_path / f"own_maskrcnn_{number}") / f"{t:05d}.png", mask)
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--objects", "2"])
    assert (media.read_mask(tmp_path / "own_maskrcnn" / "00001.png") > 0).sum() == 64 * 10
    (tmp_path / "own_maskrcnn_2" / "00001.png").unlink()
    with pytest.raises(UserError, match=r"own_maskrcnn_1, .*hold masks, but not of 2 objects in every frame"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--objects", "2"])


def test_a_run_of_other_objects_than_its_config_says_is_refused(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"objects": 1}))
    (tmp_path / "checkpoint").write_bytes((run / "checkpoint").read_bytes())
    with pytest.raises(UserError, match=r"holds 2 object\(s\), the config asks for 1"):
        open_run(tmp_path)


def test_several_pictures_over_one_object_are_carried_to_another_run_as_one(run, tmp_path):
    red, blue = (
        paint(tmp_path / f"{name}.png", color) for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))
    )
    both = ("--edit_object", f"1:{red}", "--edit_object", f"1:{blue}", f"--transfer_from={run}")
    only_edit.main([f"--trained_model_folder={run}", f"--output_folder={tmp_path / 'out'}", *both])
    rgba = np.asarray(media.open_image(tmp_path / "out" / "carried_foreground.png"))
    opaque = rgba[rgba[..., 3] > 200]
    assert len(opaque) > 50 and np.median(opaque[:, 2]) > 240 and np.median(opaque[:, 0]) < 15  # the later one


def test_a_small_part_that_the_rough_mask_holds_is_no_speck():
    probability = np.zeros((40, 60), np.float32)
    probability[5:30, 5:40], probability[10:12, 50:52], probability[30:32, 50:52] = 0.9, 0.9, 0.9
    rough = np.zeros((40, 60), bool)
    rough[11, 51] = True
    kept = remove_specks(probability, rough)
    assert kept[11, 51] > 0.5 and kept[31, 51] == 0 and (kept[5:30, 5:40] > 0.5).all()
