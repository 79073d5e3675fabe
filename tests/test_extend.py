"""New frames for a finished run: they are fitted to its atlases, and everything before them stays as it was."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_exact_flow

import export_atlas
import extend_run
import media
import only_edit
from benchmarks.measure import placement_errors
from command_line import UserError
from editing.atlas_file import EXTENSION_FILE_NAME, list_extended
from grids.mosaic import Mosaic
from grids.windowed_learner import keep_units
from grids.windows import LayerAtlas, Placement, WindowedModel, WindowLayer
from masks.overlap import iou
from media.decoding import read_frames
from preprocessing.extract import Span, extract_frames, read_clip_note
from preprocessing.new_frames import check_first_frame, choose_span, continue_names, write_clip_note
from preprocessing.small_video import open_small_clip
from rendering.frame_store import temporary_frame_store
from rendering.frames import render_frame, render_frames
from rendering.trained_run import open_run
from scenes.catalogue import SCENES
from scenes.files import write_scene
from training.runs import resume_run, start_run

SIZE, TRAINED, ALL = (96, 54), 20, 32


@pytest.fixture(scope="module")
def scene():
    return SCENES["roam"](*SIZE, ALL)


@pytest.fixture(scope="module")
def clip(scene, tmp_path_factory):
    return write_exact_flow(write_scene(scene, tmp_path_factory.mktemp("all")))


@pytest.fixture(scope="module")
def run_folder(clip, tmp_path_factory):
    """A run of the first frames of a clip whose folder holds more frames, with masks of the first ones alone."""
    data = tmp_path_factory.mktemp("data")
    for suffix in ("", "_flow", "_maskrcnn"):
        shutil.copytree(clip.with_name(clip.name + suffix), data / f"{clip.name}{suffix}")
    for path in media.list_images(data / f"{clip.name}_maskrcnn")[TRAINED:]:
        path.unlink()
    (data / f"{clip.name}_maskrcnn" / "notes.txt").write_text("mine")
    grid = {"representation": "grid", "light": True, "mask_quality": "exact", "maximum_number_of_frames": TRAINED}
    steps = {"iters_num": 30, "evaluate_every": 10**6, "checkpoint_every": 10**6}
    trainer = start_run(tiny_config(data / clip.name, data / "results", **(grid | steps)))
    trainer.run(with_evaluation=False)
    return trainer.folder


def extend(run, frames, *flags):
    """Extend a run with a short budget, and return the folder of the new run."""
    before = set(run.parent.iterdir())
    extend_run.main(["--trained_model_folder", str(run), "--frames", str(frames), "--time_budget", "5", *flags])
    (folder,) = set(run.parent.iterdir()) - before
    return folder


@pytest.fixture(scope="module")
def extended(run_folder):
    """The run with the frames of its own folder that it had left out."""
    clip = open_run(run_folder).clip.folder
    return run_folder, extend(run_folder, clip)


def test_the_new_run_has_all_frames_and_the_old_one_is_unchanged(extended):
    old, new = (open_run(folder) for folder in extended)
    assert (len(old.clip), len(new.clip)) == (TRAINED, ALL)
    assert isinstance(new.model, WindowedModel)
    assert (extended[1] / "preview.png").is_file()


@torch.no_grad()
def test_frames_that_were_trained_before_keep_their_mapping_and_opacity(extended):
    old, new = (open_run(folder) for folder in extended)
    for t in (0, 7):
        before, after = (render_frame(run.model, run.clip, t, True) for run in (old, new))
        np.testing.assert_allclose(before.alpha, after.alpha, atol=1e-6)
        for layer in range(2):
            scale, *shift = new.model.uv_units(layer)
            np.testing.assert_allclose(before.uv[layer], after.uv[layer] * scale + shift, atol=1e-4)


def test_new_frames_are_shown_and_placed_well(extended, scene):
    run = open_run(extended[1])
    with temporary_frame_store(run.checkpoint.parent) as store:
        errors = []
        for frame in render_frames(run.model, run.clip, True):
            store.add(frame)
            errors.append(np.abs(frame.rgb - run.clip.frame(frame.t) / 255).mean())
        assert max(errors[TRAINED:]) < 0.06
        assert np.median(placement_errors(run, store, scene)) < 0.7
        truth = [scene.frame(t).alpha[0] > 0.5 for t in range(TRAINED, ALL)]
        found = [store.frame(t).alpha[0] > 0.5 for t in range(TRAINED, ALL)]
    assert np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(truth, found, strict=True)]) > 0.7


@pytest.mark.slow
def test_an_edit_of_the_old_run_appears_in_the_new_frames(extended, tmp_path):
    paint = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    paint[22:32, 42:54] = [255, 0, 255, 255]
    media.write_png(tmp_path / "paint.png", paint)
    flags = ["--trained_model_folder", str(extended[1]), "--output_folder", str(tmp_path / "out"), "--format", "png"]
    only_edit.main([*flags, "--edit_frame", f"4:{tmp_path / 'paint.png'}"])
    pictures = media.list_images(next((tmp_path / "out").glob("**/*00000*")).parent)
    assert len(pictures) == ALL
    assert (media.read_rgb(pictures[-1]).astype(int) @ [1, -2, 1] > 300).mean() > 0.005


@pytest.mark.slow
def test_paint_on_the_atlas_of_the_old_run_has_its_place_in_the_extended_one(extended, tmp_path):
    export_atlas.main(["--trained_model_folder", str(extended[0]), "--output_folder", str(tmp_path / "atlas")])
    height, width = media.read_rgb(tmp_path / "atlas" / "foreground.png").shape[:2]
    paint = np.full((height, width, 4), [255, 0, 255, 255], np.uint8)
    media.write_png(tmp_path / "atlas" / "paint.png", paint)
    painted = []
    for run in extended:
        flags = ["--trained_model_folder", str(run), "--output_folder", str(tmp_path / run.name), "--format", "png"]
        only_edit.main([*flags, "--edit_foreground_path", str(tmp_path / "atlas" / "paint.png")])
        pictures = media.list_images(next((tmp_path / run.name).glob("**/*00000*")).parent)
        painted.append([media.read_rgb(picture).astype(int) @ [1, -2, 1] > 300 for picture in pictures])
    before, after = painted
    assert (len(before), len(after)) == (TRAINED, ALL)
    assert iou(before[0], after[0]) > 0.98
    assert before[0].mean() > 0.01
    assert all(frame.mean() > 0.5 * before[0].mean() for frame in after)


@pytest.mark.parametrize("note", ["not JSON", "{}", "[]"])
def test_a_damaged_note_about_the_extended_run_is_named(tmp_path, note):
    (tmp_path / EXTENSION_FILE_NAME).write_text(note)
    with pytest.raises(UserError, match=r"extends\.json: damaged; delete it"):
        list_extended(tmp_path / "checkpoint")


def test_masks_that_were_there_are_not_touched_and_missing_ones_are_carried_on(extended):
    clip = open_run(extended[1]).clip
    folder = clip.sibling_folder("_maskrcnn")
    assert (folder / "notes.txt").read_text() == "mine"
    assert all((clip.mask(path) > 127).any() for path in clip.object_masks[0])


@pytest.mark.slow
def test_frames_of_another_folder_get_a_clip_beside_the_old_one(run_folder, clip, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for number, path in enumerate(media.list_images(clip)[TRAINED:ALL]):
        shutil.copy(path, new / f"shot{number}.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, path in enumerate(media.list_images(clip.with_name(f"{clip.name}_maskrcnn"))[TRAINED:ALL]):
        shutil.copy(path, masks / f"shot{number}.png")
    run = open_run(extend(run_folder, new, "--masks", str(masks)))
    assert run.clip.folder.name == f"{clip.name}_extended"
    assert len(run.clip) == ALL
    assert [path.stem for path in run.clip.frame_paths[TRAINED - 1 : TRAINED + 1]] == ["00019", "00020"]
    np.testing.assert_array_equal(run.clip.frame(ALL - 1), media.read_rgb(media.list_images(clip)[ALL - 1]))
    assert len(media.list_images(run_folder.parents[1] / clip.name)) == ALL  # The old folder is as it was.
    # It can be extended once more, and be continued.
    again = open_run(extend(run.checkpoint.parent, new))
    assert len(again.clip) == 2 * ALL - TRAINED
    config = run.checkpoint.parent / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_budget_s": None, "iters_num": 10**6}))
    trainer = resume_run(run.checkpoint.parent)
    trainer.step()
    assert trainer.learner.number == 1


def test_names_of_new_frames_follow_those_of_the_old_ones():
    assert continue_names(["00008", "00009"], 2) == ["00010", "00011"]
    assert continue_names(["shot_98", "shot_99"], 2) == ["shot_100", "shot_101"]
    assert continue_names(["first", "last"], 1) == ["last_00001"]


def test_an_atlas_grows_only_where_new_windows_see_more_and_keeps_its_colours():
    image = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    base = LayerAtlas(image, Placement(2.0, 5.0, 6.0), torch.full((40, 60), 9.0))
    window = WindowLayer((40, 60), Placement(2.0, -15.0, 6.0))  # 20 texels further to the right
    coverage = np.zeros((10, 15), np.float32)
    assert Mosaic.around(base, [window], [coverage]).size == (40, 60)
    coverage[:, :12] = 1
    mosaic = Mosaic.around(base, [window], [coverage])
    assert mosaic.size == (40, 68)
    mosaic.add(np.zeros((40, 60, 3), np.float32), coverage, window)
    atlas = keep_units(mosaic.finish(), base)
    torch.testing.assert_close(atlas.image[..., :60], image, atol=0.01, rtol=0)
    scale, u, v = atlas.units
    place = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(atlas.uv_placement.apply(place) * scale + [u, v], base.uv_placement.apply(place))


@pytest.mark.parametrize(
    ("frames", "message"),
    [("missing.mp4", "no such file or folder"), ("small", "new frames must have the same size"), ("empty", "holds no")],
)
def test_new_frames_that_cannot_be_used_are_refused(run_folder, tmp_path, frames, message):
    for name in ("small", "empty"):
        (tmp_path / name).mkdir()
    media.write_png(tmp_path / "small" / "0.png", np.zeros((20, 30, 3), np.uint8))
    before = sorted(run_folder.parent.iterdir())
    with pytest.raises(UserError, match=message):
        extend_run.main(["--trained_model_folder", str(run_folder), "--frames", str(tmp_path / frames)])
    assert sorted(run_folder.parent.iterdir()) == before


@pytest.fixture
def video(scene, tmp_path):
    """A video of 12 frames of the scene, 10 per second."""
    with media.VideoWriter(tmp_path / "shot.mp4", 10) as writer:
        for t in range(12):
            writer.write(scene.frame(t).rgb)
    return tmp_path / "shot.mp4"


def times_of_new_frames(clip, video, *part):
    span = choose_span(clip, video, *part)
    times = [frame.time_s for frame in read_frames(video, span.start_s, span.end_s)]
    return [round(float(time), 3) for time in times[:: span.every]]


@pytest.mark.parametrize(
    ("span", "following"), [(Span(0.2, 0.7), [0.7, 0.8, 0.9, 1.0, 1.1]), (Span(0.2, 0.7, every=2), [0.8, 1.0])]
)
def test_of_the_video_of_a_run_the_frames_after_its_last_one_are_added(tmp_path, video, span, following):
    extract_frames(video, tmp_path / "clip", span, allow_cuts=False, max_frames=100)
    clip = open_small_clip(tmp_path / "clip")
    assert times_of_new_frames(clip, video, None, None) == following
    assert times_of_new_frames(clip, video, None, 0.95) == [time for time in following if time < 0.95]
    assert times_of_new_frames(clip, video, 1.0, None)[0] == 1.0
    other = shutil.copy(video, tmp_path / "other.mp4")  # nothing is known of it
    assert times_of_new_frames(clip, other, None, 0.3) == [0.0, 0.1, 0.2]


def test_a_clip_can_be_extended_by_its_video_once_more(tmp_path, video):
    extract_frames(video, tmp_path / "clip", Span(0, 0.4), allow_cuts=False, max_frames=100)
    clip = open_small_clip(tmp_path / "clip")
    more = extract_frames(video, tmp_path / "more", choose_span(clip, video, None, 0.75), False, 100)
    write_clip_note(clip, tmp_path / "clip_extended", 8, more)
    assert read_clip_note(tmp_path / "clip_extended").span_after(8).start_s == pytest.approx(0.75)
    other = extract_frames(shutil.copy(video, tmp_path / "other.mp4"), tmp_path / "others", Span(0, 0.4), False, 100)
    write_clip_note(clip, tmp_path / "clip_extended", 8, other)
    assert not read_clip_note(tmp_path / "clip_extended").is_of(video)  # It is not known what follows.


def test_a_run_of_a_whole_video_cannot_be_extended_by_it(tmp_path, video):
    extract_frames(video, tmp_path / "clip", Span(), allow_cuts=False, max_frames=100)
    with pytest.raises(UserError, match=r"shot\.mp4: the run has all of its frames already"):
        choose_span(open_small_clip(tmp_path / "clip"), video, None, None)


def first_new_frame(tmp_path, video, picture):
    """Return a clip of the first six frames of a video, and the file of a picture."""
    extract_frames(video, tmp_path / "clip", Span(0, 0.6), allow_cuts=False, max_frames=100)
    media.write_png(tmp_path / "new.png", picture)
    return open_small_clip(tmp_path / "clip"), tmp_path / "new.png"


@pytest.mark.parametrize(("number", "is_repeated"), [(0, True), (6, False)])
def test_new_frames_that_repeat_the_run_are_warned_about(tmp_path, video, capsys, number, is_repeated):
    frames = [frame.pixels for frame in read_frames(video)]
    clip, path = first_new_frame(tmp_path, video, frames[number])
    capsys.readouterr()
    check_first_frame(clip, path, allow_cuts=False)
    assert ("looks like the first frame of the run" in capsys.readouterr().err) == is_repeated


def test_new_frames_of_another_scene_are_refused_unless_they_are_allowed(tmp_path, video):
    noise = np.random.default_rng(1).integers(0, 255, (6, 8, 3), np.uint8).repeat(9, axis=0).repeat(12, axis=1)
    clip, path = first_new_frame(tmp_path, video, noise)
    with pytest.raises(UserError, match=r"new\.png, shows another scene than the last frame of the run.*--allow_cuts"):
        check_first_frame(clip, path, allow_cuts=False)
    check_first_frame(clip, path, allow_cuts=True)


def test_a_part_is_for_videos_only(run_folder, clip):
    flags = ["--trained_model_folder", str(run_folder), "--frames", str(clip), "--start", "1"]
    with pytest.raises(UserError, match="--start and --end are for videos"):
        extend_run.main(flags)


def test_masks_that_do_not_fit_leave_nothing_behind(run_folder, clip, tmp_path):
    new, masks = tmp_path / "new", tmp_path / "masks"
    for folder in (new, masks):
        folder.mkdir()
    for path in media.list_images(clip)[TRAINED : TRAINED + 3]:
        shutil.copy(path, new)
    media.write_png(masks / "0.png", np.zeros((SIZE[1], SIZE[0]), np.uint8))
    data = run_folder.parents[1]
    before = sorted(data.iterdir())
    flags = ["--trained_model_folder", str(run_folder), "--frames", str(new), "--masks", str(masks)]
    with pytest.raises(UserError, match="holds 1 pictures for 3 frames"):
        extend_run.main(flags)
    assert sorted(data.iterdir()) == before


def test_a_run_that_has_all_frames_of_its_folder_and_runs_of_networks_are_refused(extended, shared_clip, tmp_path):
    new = open_run(extended[1])
    with pytest.raises(UserError, match="has all of its 32 frames already"):
        extend_run.main(["--trained_model_folder", str(extended[1]), "--frames", str(new.clip.folder)])
    trainer = start_run(tiny_config(shared_clip, tmp_path))
    trainer.save()
    with pytest.raises(UserError, match="not to networks"):
        extend_run.main(["--trained_model_folder", str(trainer.folder), "--frames", str(shared_clip)])
