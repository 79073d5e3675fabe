"""The closed-form start: how layers move, and which pixels are the object's."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import draw, exact_flow

from alignment import long_range
from alignment.layers import align_layer, align_layers, layer_pixels, object_boxes, refine_long_range
from alignment.tracks import sample_point_pairs
from alignment.transforms import is_sound, motion_generators, transform_points
from benchmarks.alignment import errors_px
from config import Config
from grids.model import Spacing
from grids.start import start_model
from masks.cues import Cue, SmallClip, background_differences, shrink_video
from masks.quality import STEADY, are_exact, frames_to_refine, missed_frames, temporal_consistency
from masks.refinement import GuidedFilter, agreement, log_likelihood_ratio, logistic_weights, refine_masks
from media.clip import open_clip
from scenes.catalogue import SCENES
from scenes.files import write_scene
from scenes.scene import Scene
from unwrap_utils import Video, load_video

SIZE = {"width": 160, "height": 96, "frames": 12}


def video_of(folder) -> Video:
    return load_video(open_clip(folder, Config(data_folder=str(folder), resx=None, resy=None)), torch.device("cpu"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Video:
    """The demo scene with exact flow."""
    return video_of(draw(tmp_path_factory.mktemp("aligned"), **SIZE))


@pytest.fixture(scope="module")
def truth():
    return SCENES["demo"](*SIZE.values())


def drift(transforms, layer, reference, frames) -> float:
    """Largest distance between where transforms and the truth carry points of the first and last frame."""
    points = np.stack(np.meshgrid([30.0, 80, 130], [20.0, 48, 76]), axis=-1).reshape(-1, 2)
    errors = []
    for t in (0, frames - 1):
        expected = layer.to_frame(layer.to_photograph(points, t), reference)
        errors.append(np.linalg.norm(transform_points(transforms[t], points) - expected, axis=1).max())
    return max(errors)


def test_the_background_drifts_less_than_a_pixel_over_the_clip(video, truth):
    background = align_layers(video)[-1]
    reference = int(np.argmin([np.abs(matrix - np.eye(3)).max() for matrix in background]))
    assert drift(background, truth.layers[-1], reference, SIZE["frames"]) < 1.0


def test_pairs_span_several_distances_and_stay_on_their_layer(video):
    mask = video.masks[0].numpy() > 127
    pairs = sample_point_pairs(video, mask)
    assert {1, 2, 4, 8} <= set((pairs.target - pairs.source).tolist())
    for index in range(len(pairs.source)):
        real = pairs.weight[index] > 0
        for points, frames in ((pairs.start_px, pairs.source), (pairs.end_px, pairs.target)):
            x, y = np.rint(points[index][real]).astype(int).T
            assert mask[frames[index], y, x].all()


def test_a_layer_is_followed_through_frames_whose_mask_was_missed(video, truth):
    mask = video.masks[0].numpy() > 127
    mask[5:7] = False
    found = align_layer(video, mask, "affine")
    poses = [truth.layers[0].pose(t) for t in (3, 5)]
    before, after = (np.array([[pose.x, pose.y]]) for pose in poses)
    moved = transform_points(np.linalg.inv(found[5]) @ found[3], before)
    assert np.linalg.norm(moved - after) < 2.0 < np.linalg.norm(before - after)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory) -> tuple[Scene, Video]:
    """36 frames of rigid layers whose flow falls short by 3 %, everywhere."""
    scene = SCENES["pan"](256, 144, 36)
    video = video_of(exact_flow(write_scene(scene, tmp_path_factory.mktemp("drifting"))))
    return scene, replace(video, flow_unit_px=video.flow_unit_px * 0.97)


def test_frames_far_apart_compared_directly_take_drift_away(drifting):
    """Bundle adjustment over flow alone can't see that it falls short."""
    scene, video = drifting
    followed = align_layers(video)
    for layer, (before, after) in enumerate(zip(followed, refine_long_range(video, followed), strict=True)):
        assert errors_px(scene, layer, after)[0] < 0.75 * errors_px(scene, layer, before)[0]


def test_an_object_that_bends_keeps_what_the_flow_says_of_the_whole(tmp_path):
    scene = SCENES["bend"](256, 144, 36)
    bending, background = scene.layers
    twice = replace(bending, pose=lambda t: replace(bending.pose(t), bend=2 * bending.pose(t).bend))
    video = video_of(exact_flow(write_scene(replace(scene, layers=(twice, background)), tmp_path)))
    followed = align_layers(video)
    steady = refine_long_range(video, followed)
    np.testing.assert_array_equal(steady[0], followed[0])
    assert not np.array_equal(steady[1], followed[1])  # the background is rigid


def test_what_is_flat_has_no_say_in_how_a_layer_moves(drifting):
    _, video = drifting
    flat = replace(video, frames=torch.full_like(video.frames, 90))
    followed = align_layers(flat)
    np.testing.assert_array_equal(refine_long_range(flat, followed), followed)


def test_an_object_without_any_mask_stays_on_its_reference(drifting):
    _, video = drifting
    empty = replace(video, masks=torch.zeros_like(video.masks))
    np.testing.assert_array_equal(
        refine_long_range(empty, align_layers(empty))[0], np.broadcast_to(np.eye(3), (36, 3, 3))
    )


@pytest.mark.parametrize(("size", "edge_px"), [((160, 96), 512), ((256, 144), 128), ((144, 250), 128)])
def test_points_compared_directly_end_where_the_truth_says(tmp_path, monkeypatch, size, edge_px):
    """Whatever the size of the clip, and that at which it is looked at."""
    monkeypatch.setattr(long_range, "LONG_EDGE_PX", edge_px)
    scene = SCENES["pan"](*size, 18)
    video = video_of(exact_flow(write_scene(scene, tmp_path)))
    member, _ = layer_pixels(video)[-1]
    pairs = long_range.match_distant_frames(video, member, align_layers(video)[-1])
    assert list(zip(pairs.source, pairs.target, strict=True)) == [(0, 16)]
    counted = pairs.weight[0] > 0
    expected = scene.move_points(pairs.start_px[0][counted], np.ones(counted.sum(), int), 0, 16)
    away = np.linalg.norm(expected - pairs.end_px[0][counted], axis=1)
    assert np.median(away) < 0.3
    x, y = np.rint(pairs.end_px[0][counted]).astype(int).T
    assert member[16, y, x].mean() > 0.9


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (2, []),
        (16, []),
        (18, [(0, 16)]),
        (36, [(0, 16), (4, 20), (8, 24), (12, 28), (16, 32), (0, 32)]),
        (90, [(t, t + 20) for t in range(0, 70, 5)] + [(t, t + 40) for t in range(0, 50, 5)] + [(0, 80), (5, 85)]),
    ],
)
def test_frames_are_compared_with_those_sixteen_or_more_twice_four_times_as_far(frames, expected):
    assert long_range.choose_frame_pairs(frames) == expected


@pytest.mark.parametrize("frames", [73, 500, 3000])
def test_however_long_a_clip_few_of_its_frames_are_compared(frames):
    compared = long_range.choose_frame_pairs(frames)
    assert len({t for pair in compared for t in pair}) <= long_range.MOST_FRAMES
    assert len(compared) < 70


def test_without_any_valid_flow_every_frame_lies_on_the_reference(video):
    blind = replace(video, flow_valid=torch.zeros_like(video.flow_valid))
    np.testing.assert_array_equal(align_layers(blind), np.broadcast_to(np.eye(3), (2, SIZE["frames"], 3, 3)))


def test_a_static_camera_gives_the_identity(tmp_path):
    scene = SCENES["demo"](**SIZE)
    still = scene.layers[-1].__class__(scene.layers[-1].photograph, lambda _: scene.layers[-1].pose(0))
    fixed = scene.__class__("still", scene.width, scene.height, scene.frames, (scene.layers[0], still))
    folder = write_scene(fixed, tmp_path)
    target = folder.with_name("still_flow")
    target.mkdir()
    for path in folder.with_name("still_gt_flow").glob("*.npy"):
        np.save(target / path.name, np.load(path)[..., :2])
    corners = np.array([[0.0, 0], [159, 0], [0, 95], [159, 95]])
    for matrix in align_layers(video_of(folder))[-1]:
        assert np.abs(transform_points(matrix, corners) - corners).max() < 0.5


def test_a_transform_with_a_horizon_in_the_frame_is_not_sound():
    tipped = np.eye(3)
    tipped[2, 0] = -1 / 80
    assert is_sound(np.eye(3)[None], (96, 160))
    assert not is_sound(tipped[None], (96, 160))
    assert not is_sound(np.full((1, 3, 3), np.nan), (96, 160))


def test_matches_that_make_no_sense_give_sound_transforms_all_the_same(video):
    rng = np.random.default_rng(0)
    steps = torch.from_numpy(rng.integers(-30000, 30000, video.flow_steps.shape).astype(np.int16))
    wild = replace(video, flow_steps=steps, flow_valid=torch.ones_like(video.flow_valid))
    for transforms in align_layers(wild):
        assert is_sound(transforms, video.size[1:])


@pytest.mark.parametrize(("kind", "freedom"), [("similarity", 4), ("affine", 6), ("homography", 8)])
def test_a_transform_has_the_freedom_of_its_kind(kind, freedom):
    moves = motion_generators(kind).reshape(freedom, 9)
    assert np.linalg.matrix_rank(moves) == freedom


def test_mended_masks_are_better_than_the_rough_ones(video, truth):
    transforms = align_layers(video)
    rough = video.masks[0].numpy()
    evidence = refine_masks(shrink_video(video), rough, transforms[-1], transforms[0])
    true = np.stack([truth.frame(t).alpha[0] > 0.5 for t in range(SIZE["frames"])])
    found = np.stack([evidence.upsample(frame, t) > 0.5 for t, frame in enumerate(video.frames.numpy())])
    assert agreement(found, true) > agreement(rough > 127, true) + 0.05
    assert agreement(found, true) > 0.93


def test_a_frame_without_a_mask_gets_its_object_from_its_neighbours(video, truth):
    transforms = align_layers(video)
    rough = video.masks[0].numpy().copy()
    rough[4] = 0
    evidence = refine_masks(shrink_video(video), rough, transforms[-1], transforms[0])
    found = evidence.upsample(video.frames[4].numpy(), 4) > 0.5
    assert agreement(found[None], truth.frame(4).alpha[:1] > 0.5) > 0.8


def test_a_clip_without_any_object_stays_without(video):
    transforms = align_layers(video)
    evidence = refine_masks(shrink_video(video), np.zeros_like(video.masks[0].numpy()), transforms[-1], transforms[0])
    assert not evidence.small.any()


def test_a_shadow_differs_from_the_background_by_its_brightness_alone():
    rng = np.random.default_rng(0)
    background = cv2.GaussianBlur(rng.integers(0, 255, (48, 64, 3)).astype(np.float32), (0, 0), 2).clip(60, 200)
    frames, still = np.repeat(background[None], 6, axis=0), np.tile(np.eye(3), (6, 1, 1))
    frames[2, 10:20, 10:30] *= 0.5  # a shadow
    frames[2, 30:40, 10:30] = frames[2, 30:40, 30:50, ::-1]  # a thing of its own
    unknown = np.zeros((2, *frames.shape[:3], 2), np.float32)
    clip = SmallClip(frames.astype(np.uint8), unknown, unknown[..., 0], np.eye(3))
    outside = np.ones(frames.shape[:3], bool)
    outside[2, 10:40, 10:30] = False
    plain, apart = (each[2] for each in background_differences(clip, still, outside))
    shadow, thing = np.s_[12:18, 12:28], np.s_[32:38, 12:28]
    assert plain[shadow].mean() > 5
    assert apart[shadow].mean() < 0.2 * apart[thing].mean()
    assert apart[shadow].mean() < 0.1 * plain[shadow].mean()


@pytest.fixture(scope="module")
def sharp(tmp_path_factory) -> tuple[Video, np.ndarray]:
    """A scene large enough for outlines to lie on edges, and its exact masks (T, H, W)."""
    scene = SCENES["bend"](256, 144, 8)
    folder = write_scene(scene, tmp_path_factory.mktemp("sharp"))
    exact_flow(folder)
    masks = np.stack([np.where(scene.frame(t).alpha[0] > 0.5, 255, 0) for t in range(8)])
    return video_of(folder), masks.astype(np.uint8)


def test_exact_masks_are_told_from_rough_ones(sharp):
    video, exact = sharp
    clip, frames = shrink_video(video), video.frames.numpy()
    assert are_exact(clip, frames, exact)
    assert not are_exact(clip, frames, video.masks[0].numpy())
    grown = np.stack([cv2.dilate(mask, np.ones((7, 7), np.uint8)) for mask in exact])
    assert not are_exact(clip, frames, grown)
    assert not are_exact(clip, frames, np.zeros_like(exact))
    assert not are_exact(clip, frames, np.full_like(exact, 255))


def test_masks_that_lose_parts_now_and_then_are_not_steady(sharp):
    video, exact = sharp
    jumping = exact.copy()
    for mask in jumping[::2]:
        rows = np.flatnonzero(mask.any(1))
        mask[: int(rows.mean())] = 0  # the upper half is missed
    clip, numbers = shrink_video(video), np.arange(len(exact))
    assert temporal_consistency(clip, exact, numbers) > STEADY + 0.05
    assert temporal_consistency(clip, jumping, numbers) < STEADY - 0.2
    assert not are_exact(clip, video.frames.numpy(), jumping)


def test_where_no_flow_is_valid_masks_are_not_taken_for_exact(sharp):
    video, exact = sharp
    clip = shrink_video(video)
    clip.flow_valid[:] = 0
    assert not are_exact(clip, video.frames.numpy(), exact)


def test_of_exact_masks_only_short_gaps_are_mended(sharp):
    video, exact = sharp
    clip, frames = shrink_video(video), video.frames.numpy()
    given = exact.copy()
    given[4] = 0
    given[7] = 0  # gone at the end: not missed
    assert np.flatnonzero(frames_to_refine(clip, frames, given, "auto", False)).tolist() == [4]
    assert frames_to_refine(clip, frames, given, "auto", True).all()  # a method found them
    assert not frames_to_refine(clip, frames, given, "exact", True).any()
    assert frames_to_refine(clip, frames, given, "rough", False).all()
    assert frames_to_refine(clip, frames, video.masks[0].numpy(), "auto", False).all()


def test_a_long_gap_says_that_the_object_is_hidden():
    masks = np.full((10, 4, 4), 255, np.uint8)
    masks[2:8] = 0
    assert not missed_frames(masks).any()
    masks[7] = 255
    assert np.flatnonzero(missed_frames(masks)).tolist() == [2, 3, 4, 5, 6]


def test_the_start_keeps_exact_masks_and_fills_in_the_missed_one(sharp, capsys):
    video, exact = sharp
    given = exact.copy()
    given[4] = 0
    video = replace(video, masks=torch.from_numpy(given)[None])
    _, probability = start_model(
        video, Spacing.from_config(Config(data_folder="unused")), "auto", 4, lambda model: None
    )
    assert "masks of 7 of 8 frames are exact and kept" in capsys.readouterr().out
    found = np.stack([cv2.resize(each.numpy(), (256, 144)) > 0.5 for each in probability[0]])
    assert agreement(np.delete(found, 4, axis=0), np.delete(exact, 4, axis=0) > 127) > 0.97
    assert agreement(found[4:5], exact[4:5] > 127) > 0.8


def test_the_start_mends_masks_that_were_found_however_exact_they_look(sharp, capsys):
    video, exact = sharp
    found = replace(video, masks=torch.from_numpy(exact)[None], masks_found=torch.tensor([True]))
    start_model(found, Spacing.from_config(Config(data_folder="unused")), "auto", 4, lambda model: None)
    assert "masks are rough and are refined" in capsys.readouterr().out
    start_model(found, Spacing.from_config(Config(data_folder="unused")), "exact", 4, lambda model: None)
    assert "masks of 8 of 8 frames are exact and kept" in capsys.readouterr().out


def test_a_telling_cue_weighs_more_than_noise():
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.2
    cues = np.stack((np.where(labels, 2.0, -2.0) + rng.normal(size=4000), rng.normal(size=4000)), axis=1)
    weights = logistic_weights(cues.astype(np.float32), labels)
    assert weights[0] > 10 * abs(weights[1])


def test_a_bin_seen_only_inside_speaks_for_the_object_and_one_seen_nowhere_for_nothing():
    codes = np.array([[[1, 1, 2, 2, 3]]], np.int32)
    inside = np.array([[[True, True, False, False, False]]])
    taught = np.array([[[True, True, True, True, False]]])
    ratio = log_likelihood_ratio(Cue(codes, (5,), (0.0,)), inside, taught)[0, 0]
    assert ratio[0] > 4 and ratio[2] < -4 and ratio[4] == pytest.approx(0)


def test_the_guided_filter_puts_a_blurred_edge_where_the_picture_has_it():
    guide = np.zeros((32, 32, 3), np.uint8)
    guide[:, 16:] = 200
    blurred = np.clip((np.arange(32, dtype=np.float32) - 12) / 8, 0, 1)[None].repeat(32, 0)
    sharp = GuidedFilter(guide)(blurred)[16]
    assert sharp[14] < 0.3 and sharp[18] > 0.7
    assert abs(sharp[16] - sharp[15]) > 2 * abs(blurred[16, 16] - blurred[16, 15])


def test_a_box_holds_the_object_of_its_neighbours_too_and_none_where_nothing_is():
    inside = np.zeros((5, 20, 20), bool)
    inside[1, 5:8, 6:9] = inside[2, 7:10, 6:9] = True
    boxes = object_boxes(inside, 0.0)
    assert boxes[1].tolist() == [5, 10, 6, 9]
    assert boxes[4].tolist() == [0, 0, 0, 0]
