"""Long clips: windows of frames that share one meaning of uv, trained one after the other, on disk when they rest."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_exact_flow

import media
import only_edit
import only_evaluate
from benchmarks.measure import placement_errors
from command_line import UserError
from config import Config
from grids.mosaic import Mosaic, register_window
from grids.windows import OVERLAP, Placement, Span, WindowedModel, WindowLayer, is_long, plan_windows
from rendering.frame_store import temporary_frame_store
from rendering.frames import render_frame, render_frames
from rendering.trained_run import open_run
from scenes.catalogue import SCENES
from scenes.files import write_scene
from training.loop import Trainer
from training.runs import Corrections, resume_run, start_run
from unwrap_utils import empty_video

SIZE, FRAMES = (96, 54), 38


def grid_config(clip, results, **changes):
    """Return settings for a clip in two windows, with few steps."""
    grid = {"representation": "grid", "light": True, "window_frames": 24, "maximum_number_of_frames": FRAMES}
    steps = {"iters_num": 30, "evaluate_every": 10**6, "checkpoint_every": 10**6, "mask_quality": "exact"}
    return tiny_config(clip, results, **(grid | steps | changes))


@pytest.fixture(scope="module")
def scene():
    return SCENES["roam"](*SIZE, FRAMES)


@pytest.fixture(scope="module")
def clip(scene, tmp_path_factory):
    return write_exact_flow(write_scene(scene, tmp_path_factory.mktemp("long")))


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    trainer = start_run(grid_config(clip, tmp_path_factory.mktemp("results")))
    trainer.run(with_evaluation=False)
    return open_run(trainer.folder)


@pytest.mark.parametrize("frames", [151, 333, 1000, 2000])
def test_windows_cover_the_clip_and_neighbours_have_some_frames_in_common(frames):
    spans = plan_windows(frames, 100)
    assert spans[0].first == 0
    assert spans[-1].end == frames
    assert all(earlier.end - later.first == OVERLAP for earlier, later in pairwise(spans))
    assert max(map(len, spans)) < 1.3 * min(map(len, spans))
    assert all(70 <= len(span) <= 130 for span in spans)


def test_only_grids_of_clips_that_are_much_longer_than_a_window_are_trained_in_windows():
    config = Config(data_folder="clip", representation="grid", window_frames=100)
    assert not is_long(150, config)
    assert is_long(151, config)
    assert not is_long(1000, replace(config, representation="mlp"))


def test_placements_are_applied_one_after_the_other_and_undone():
    first, second, points = Placement(2, 1, -3), Placement(0.5, 4, 0), np.array([[1.0, 2.0], [-3.0, 7.0]])
    np.testing.assert_allclose(first.then(second).apply(points), second.apply(first.apply(points)))
    np.testing.assert_allclose(first.inverse().apply(first.apply(points)), points)
    homogeneous = np.concatenate((points, np.ones((2, 1))), axis=1)
    np.testing.assert_allclose((homogeneous @ first.matrix.T)[:, :2], first.apply(points))


def test_a_part_of_a_video_has_no_flow_to_frames_outside():
    video = empty_video((6, 8, 8))
    video.flow_valid[:] = True
    video.frames[3] = 7
    video.strokes = {1: np.zeros((8, 8), np.uint8), 4: np.ones((8, 8), np.uint8)}
    part = video.part(2, 5)
    assert part.size == (3, 8, 8)
    assert int(part.frames[1].min()) == 7
    assert not part.flow_valid[1, 0].any()
    assert not part.flow_valid[0, -1].any()
    assert bool(part.flow_valid[0, 0].all())
    assert list(part.strokes) == [2]
    assert bool(video.flow_valid.all())


def test_a_video_on_disk_keeps_its_frames_when_its_memory_is_released(tmp_path):
    video = empty_video((3, 8, 8), tmp_path, is_on_disk=True)
    video.frames[1] = 42
    video.release_memory()
    assert int(video.frames[1].min()) == 42
    assert not list(tmp_path.iterdir())


def test_all_windows_are_trained_and_hold_every_frame(run):
    assert isinstance(run.model, WindowedModel)
    assert len(run.model.spans) == 2
    frames = list(render_frames(run.model, run.clip, True))
    assert len(frames) == FRAMES
    errors = [np.abs(frame.rgb - run.clip.frame(frame.t) / 255).mean() for frame in frames]
    assert max(errors) < 0.06


@torch.no_grad()
def test_a_frame_of_one_window_is_rendered_by_it_alone_and_common_frames_are_blended(run):
    model, (first, second) = run.model, run.model.spans
    assert len(model.windows[0].looks) > 1
    alone = model.windows[0].frame_sample(3, model.windows[0].shape.size, True, True)
    torch.testing.assert_close(model.frame_sample(3, model.size, True, True).alpha, alone.alpha)
    t = second.first + OVERLAP // 2
    parts = [
        model.windows[index].frame_sample(t - span.first, model.windows[index].shape.size, True, True)
        for index, span in enumerate((first, second))
    ]
    blended = model.frame_sample(t, model.size, True, True).alpha
    low, high = torch.stack([part.alpha for part in parts]).aminmax(dim=0)
    assert bool(((blended >= low - 1e-6) & (blended <= high + 1e-6)).all())
    assert [weight for _, weight in model.windows_at(second.first)] == pytest.approx([8 / 9, 1 / 9])


@torch.no_grad()
def test_a_place_has_one_uv_in_all_windows(run, scene):
    with temporary_frame_store(run.checkpoint.parent) as store:
        for frame in render_frames(run.model, run.clip, True):
            store.add(frame)
        assert np.median(placement_errors(run, store, scene)) < 0.6


def test_uv_at_crossings_is_that_of_the_pixels(run):
    rows, columns = torch.arange(0, SIZE[1], 5).float(), torch.arange(0, SIZE[0], 7).float()
    for t in (2, 22):
        uv = run.model.lattice_uv(t, rows, columns, run.clip.size).detach().cpu().numpy()
        expected = render_frame(run.model, run.clip, t, True, with_colors=False).uv
        np.testing.assert_allclose(uv, expected[:, ::5, ::7], atol=1e-5)


def test_a_window_whose_atlas_has_moved_is_moved_back():
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (20, 30, 3)).astype(np.float32)
    picture = np.asarray(
        torch.nn.functional.interpolate(torch.from_numpy(noise).permute(2, 0, 1)[None], (120, 180), mode="bicubic")[0]
        .permute(1, 2, 0)
        .clamp(0, 1)
    )
    earlier = WindowLayer((120, 180), Placement())
    seen = np.ones((30, 45), np.float32)
    mosaic = Mosaic.around(None, [earlier], [seen])
    mosaic.add(picture, seen, earlier)
    moved = WindowLayer((120, 180), Placement(1.0, 1.5, -1.0))  # The same picture, said to lie elsewhere.
    texels = rng.uniform([20, 20], [160, 100], (200, 2))
    common = texels, np.tile([1.5, -1.0], (200, 1))
    corrected = register_window(mosaic, picture, seen, moved, common)
    places = corrected.to_plane(Placement.of_texels((120, 180)).inverse().apply_to_tensor(torch.from_numpy(texels)))
    np.testing.assert_allclose(places.numpy(), texels, atol=0.15)


def test_a_window_without_common_points_gets_no_correction():
    layer = WindowLayer((20, 30), Placement())
    nothing = np.zeros((0, 2)), np.zeros((0, 2))
    color, seen = np.zeros((20, 30, 3), np.float32), np.zeros((5, 8), np.float32)
    mosaic = Mosaic.around(None, [layer], [seen])
    assert register_window(mosaic, color, seen, layer, nothing) is layer


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_window_that_it_had(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path))
    while trainer.learner.parts_done < 3:  # The first window is finished, and nothing was saved but what a part ends.
        trainer.step()
    motion = trainer.learner.motion = replace(trainer.learner.motion, shutter=0.5)
    trainer.save()
    files = {path.name: path.stat().st_mtime_ns for path in (trainer.folder / "windows").iterdir()}
    resumed = resume_run(trainer.folder)
    assert resumed.iteration == trainer.iteration
    assert resumed.learner.motion.shutter == motion.shutter
    resumed.run(with_evaluation=False)
    first = trainer.folder / "windows" / "window_001"
    assert first.stat().st_mtime_ns == files[first.name]
    model = open_run(trainer.folder).model
    assert render_frame(model, resumed.clip, FRAMES - 1, True).rgb.shape == (SIZE[1], SIZE[0], 3)


@pytest.mark.slow
def test_strokes_correct_the_window_in_which_they_lie(clip, run, tmp_path):
    folder = shutil.copytree(run.checkpoint.parent, tmp_path / "run")
    strokes = tmp_path / "strokes"
    strokes.mkdir()
    picture = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    picture[4:12, 4:16] = [255, 0, 0, 255]
    last = run.clip.frame_paths[FRAMES - 3]
    media.write_png(strokes / f"{last.stem}.png", picture)
    first = folder / "windows" / "window_001"
    before = first.read_bytes()
    resume_run(folder, 2.0, corrections=Corrections(strokes)).run(with_evaluation=False)
    assert first.read_bytes() == before
    # The corrected window has a file of its own, so that a run that is killed meanwhile has all that it had.
    assert sorted(path.name for path in first.parent.iterdir()) == ["window_001", "window_002_2"]
    alpha = render_frame(open_run(folder).model, run.clip, FRAMES - 3, True).alpha[0]
    assert alpha[5:11, 5:15].mean() > 0.9


@pytest.mark.slow
def test_a_time_budget_that_ends_early_still_gives_every_frame(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, iters_num=1))
    trainer.run(with_evaluation=False)
    assert render_frame(trainer.model, trainer.clip, FRAMES - 1, True).rgb.std() > 0.05


def test_a_run_that_lacks_windows_names_what_is_missing(run, clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, iters_num=10**6))
    trainer.save()
    with pytest.raises(UserError, match="before all windows of its long clip were started"):
        open_run(trainer.folder)
    paths = run.model.windows.paths
    hidden = paths[1].rename(paths[1].with_name("hidden"))
    try:
        with pytest.raises(UserError, match=f"{paths[1].name}: no such file"):
            open_run(run.checkpoint.parent)
    finally:
        hidden.rename(paths[1])


def test_pins_are_refused_for_a_clip_in_windows(run, tmp_path):
    pins = tmp_path / "pins.json"
    place = {"x": 40, "y": 20}
    pins.write_text(json.dumps({"pins": [{"layer": 1, "places": [{"frame": 1, **place}, {"frame": 3, **place}]}]}))
    trainer = Trainer(run_config(run), run.checkpoint.parent)
    trainer.restore(run.checkpoint)
    with pytest.raises(UserError, match="this run has 2 windows"):
        trainer.learner.mend([], {0: 2.0})


def run_config(run):
    """Return the config of a run."""
    from config import load_config

    return load_config(run.checkpoint.parent / "config.json")


@pytest.mark.slow
def test_a_long_clip_is_evaluated_and_edited_like_any_other(run, tmp_path):
    folder = str(run.checkpoint.parent)
    only_evaluate.main(["--trained_model_folder", folder, "--output_folder", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["psnr"] > 22
    paint = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    paint[20:34, 40:60] = [255, 0, 255, 255]
    media.write_png(tmp_path / "paint.png", paint)
    arguments = ["--trained_model_folder", folder, "--output_folder", str(tmp_path / "edited"), "--format", "png"]
    only_edit.main([*arguments, "--edit_frame", f"4:{tmp_path / 'paint.png'}"])
    pictures = media.list_images(next((tmp_path / "edited").glob("**/*00000*")).parent)
    magenta = [(media.read_rgb(path).astype(int) @ [1, -2, 1] > 300).mean() for path in pictures]
    assert magenta[4] > 0.03
    assert magenta[-1] > 0.01  # The paint has followed into the other window.


def test_spans_know_their_frames():
    assert 4 in Span(2, 5)
    assert 5 not in Span(2, 5)
    assert len(Span(2, 5)) == 3
