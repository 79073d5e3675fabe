"""Several foreground objects: each has masks, mappings, an atlas and edits of its own."""

import json

import numpy as np
import pytest
from conftest import last_line, run_script, tiny_config, write_exact_flow

import export_layers
import media
import only_edit
import preprocess_mask_rcnn
from command_line import UserError
from config import ConfigError, load_config
from evaluation.mask_metrics import iou
from masks.refinement import remove_specks
from media.checkpoints import read_checkpoint
from media.clip import open_clip
from rendering.frames import render_frames
from rendering.trained_run import open_run
from scenes.catalogue import SCENES
from scenes.files import write_scene
from training.runs import start_run
from unwrap_utils import load_video, pick_device

pytestmark = pytest.mark.slow

SIZE, FRAMES = (96, 64), 8
SCENE = SCENES["cross"](*SIZE, FRAMES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Frames folder of a clip with two objects that cross."""
    folder = write_scene(SCENE, tmp_path_factory.mktemp("objects"))
    write_exact_flow(folder)
    return folder


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    """Folder of a finished run with a layer for each object."""
    settings = {"iters_num": 60, "evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 100}
    settings |= {"representation": "grid", "objects": 2, "maximum_number_of_frames": FRAMES}
    trainer = start_run(tiny_config(clip, tmp_path_factory.mktemp("runs"), **settings))
    trainer.run()
    return trainer.folder


def paint(path, color):
    """Write an opaque edit of one colour; return its path."""
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[..., :3] = color
    media.write_png(path, picture)
    return path


def find_changed_pixels(run, out, *flags):
    """Run only_edit.py with flags; return a mask (T, H, W) of the pixels that it changes clearly."""
    only_edit.main([f"--trained_model_folder={run}", f"--output_folder={out}", "--format=png", *map(str, flags)])
    clip = open_run(run).clip
    after = [media.read_rgb(path) for path in media.list_images(out / f"edited_{clip.name}")]
    before = [clip.frame(t) for t in range(len(clip))]
    return np.abs(np.stack(after).astype(int) - np.stack(before)).max(-1) > 40


def visible_pixels(index):
    """Return a mask (T, H, W) of the pixels that show a layer of the scene."""
    return np.stack([SCENE.front_layer(SCENE.grid(), t) for t in range(FRAMES)]) == index


def test_every_object_has_masks_of_its_visible_part(clip, tmp_path):
    video = load_video(open_clip(clip, tiny_config(clip, tmp_path, objects=2)), pick_device())
    for index, masks in enumerate(video.masks.cpu().numpy() > 127):
        agreement = [iou(mask, visible_pixels(index)[t]) for t, mask in enumerate(masks)]
        assert np.mean(agreement) > 0.6


def test_every_object_gets_an_opacity_of_its_own(run):
    model, clip = open_run(run).model, open_run(run).clip
    visibility = np.stack([frame.visibility for frame in render_frames(model, clip, True, with_colors=False)])
    for index in range(2):
        agreement = map(iou, visibility[:, index] > 0.5, visible_pixels(index))
        assert np.mean(list(agreement)) > 0.75, index


def test_paint_on_one_object_stays_on_it(run, tmp_path):
    red = paint(tmp_path / "red.png", (255, 0, 60))
    for index in range(2):
        is_changed = find_changed_pixels(run, tmp_path / f"out{index}", "--edit_object", f"{index + 1}:{red}")
        is_visible = visible_pixels(index)
        assert is_changed[is_visible].mean() > 0.7
        assert is_changed[~is_visible].mean() < 0.05


def test_the_published_foreground_flag_paints_the_front_object(run, tmp_path):
    red = paint(tmp_path / "red.png", (255, 0, 60))
    by_published_flag = find_changed_pixels(run, tmp_path / "published", f"--edit_foreground_path={red}")
    by_number = find_changed_pixels(run, tmp_path / "number", "--edit_object", f"1:{red}")
    np.testing.assert_array_equal(by_published_flag, by_number)


def test_paint_on_a_frame_can_be_given_to_one_object(run, tmp_path):
    red = np.full((SIZE[1], SIZE[0], 4), 255, np.uint8)
    red[..., 1:3] = 0
    media.write_png(tmp_path / "frame.png", red)
    flags = ("--edit_frame", f"4:{tmp_path / 'frame.png'}", "--edit_frame_object", 2)
    is_changed, is_visible = find_changed_pixels(run, tmp_path / "out", *flags), visible_pixels(1)
    assert is_changed[4][is_visible[4]].mean() > 0.7
    assert is_changed[~is_visible].mean() < 0.05


def test_every_object_has_a_matte_of_its_own(run, tmp_path):
    export_layers.main([f"--trained_model_folder={run}", f"--output_folder={tmp_path / 'out'}", "--kinds", "alpha"])
    first, second, together = (
        media.read_mask(tmp_path / "out" / f"alpha{name}" / "00004.png") for name in ("_foreground", "_foreground2", "")
    )
    assert np.abs(first.astype(int) + second - together).max() <= 2
    assert min(first.max(), second.max()) > 200


def test_networks_learn_several_objects_too(clip, tmp_path):
    trainer = start_run(tiny_config(clip, tmp_path, objects=2))
    trainer.run()
    assert (trainer.evaluation_folder / "texture_orig3.png").is_file()
    assert "model_F_mapping3_state_dict" in read_checkpoint(trainer.checkpoint_path)


def test_label_pictures_are_imported_as_objects(clip, tmp_path):
    frames = tmp_path / "two"
    for t in range(3):
        labels = np.zeros((64, 96), np.uint8)
        labels[10:20, 10:20], labels[30:40, 50:60] = 1, 2
        media.write_png(media.make_folder(tmp_path / "labels") / f"{t:05d}.png", labels)
        media.write_png(media.make_folder(frames) / f"{t:05d}.png", media.read_rgb(clip / f"{t:05d}.png"))
    arguments = ["--vid-path", str(frames), "--method", "import", "--masks", str(tmp_path / "labels"), "--objects", "2"]
    preprocess_mask_rcnn.main(arguments)
    centers = [np.argwhere(media.read_mask(tmp_path / f"two_maskrcnn_{n}" / "00001.png")).mean(0) for n in (1, 2)]
    np.testing.assert_allclose(centers, [[14.5, 14.5], [34.5, 54.5]])
    assert (media.read_mask(tmp_path / "two_maskrcnn" / "00001.png") > 0).sum() == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edit_object", "3:{red}"], "object 3: the run .* has 2"),
        (["--edit_object", "0:{red}"], "objects are counted from 1"),
        (["--edit_frame", "0:{red}", "--edit_frame_object", "4"], "object 4: the run .* has 2"),
    ],
)
def test_an_object_number_that_the_run_does_not_have_is_named(run, tmp_path, flags, message):
    red = paint(tmp_path / "red.png", (255, 0, 0))
    with pytest.raises(UserError, match=message):
        find_changed_pixels(run, tmp_path / "out", *(flag.format(red=red) for flag in flags))


def test_a_missing_mask_folder_of_an_object_is_named(clip, tmp_path):
    with pytest.raises(UserError, match=r"cross_maskrcnn_3: no such folder; run .* --objects 3"):
        start_run(tiny_config(clip, tmp_path, objects=3))


def test_more_objects_than_the_atlas_has_room_for_are_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"data_folder": "x", "objects": 4}')
    with pytest.raises(ConfigError, match="objects must be at most 3, got 4"):
        load_config(tmp_path / "c.json")


def test_unwrap_video_refuses_several_objects_with_masks_from_motion(clip):
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


def test_existing_masks_of_single_objects_are_merged_to_the_masks_of_all(clip, tmp_path):
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


def test_a_run_with_another_number_of_objects_than_its_config_is_refused(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"objects": 1}))
    (tmp_path / "checkpoint").write_bytes((run / "checkpoint").read_bytes())
    with pytest.raises(UserError, match=r"holds 2 object\(s\), the config asks for 1"):
        open_run(tmp_path)


def test_several_edits_of_one_object_are_transferred_to_another_run_as_one(run, tmp_path):
    red, blue = (
        paint(tmp_path / f"{name}.png", color) for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))
    )
    flags = ("--edit_object", f"1:{red}", "--edit_object", f"1:{blue}", f"--transfer_from={run}")
    only_edit.main([f"--trained_model_folder={run}", f"--output_folder={tmp_path / 'out'}", *flags])
    rgba = np.asarray(media.open_image(tmp_path / "out" / "carried_foreground.png"))
    opaque = rgba[rgba[..., 3] > 200]
    assert (
        len(opaque) > 50 and np.median(opaque[:, 2]) > 240 and np.median(opaque[:, 0]) < 15
    )  # the later edit is in front


def test_a_small_part_inside_the_rough_mask_is_not_removed_as_a_speck():
    probability = np.zeros((40, 60), np.float32)
    probability[5:30, 5:40], probability[10:12, 50:52], probability[30:32, 50:52] = 0.9, 0.9, 0.9
    rough = np.zeros((40, 60), bool)
    rough[11, 51] = True
    cleaned = remove_specks(probability, rough)
    assert cleaned[11, 51] > 0.5 and cleaned[31, 51] == 0 and (cleaned[5:30, 5:40] > 0.5).all()
