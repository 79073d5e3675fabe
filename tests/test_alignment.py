"""Alignment of the layers, refinement of masks, and the start of a grid model that uses both."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import draw, write_exact_flow

from alignment import long_range
from alignment.layers import align_layer, align_layers, layer_pixels, match_layers, object_boxes, refine_long_range
from alignment.tracks import sample_point_pairs
from alignment.transforms import are_plausible, motion_generators, transform_points
from benchmarks.alignment import transform_errors_px
from config import Config
from grids.shape import Spacing
from grids.start import start_model
from masks.cues import Cue, SmallClip, background_differences, shrink_video
from masks.quality import (
    MAX_ROUGH_PROMINENCE,
    MIN_ROUGH_JITTER,
    are_rough,
    decide_masks,
    find_missed_frames,
    outline_jitter,
    outline_prominence,
)
from masks.refinement import (
    MAX_LOG_LIKELIHOOD,
    PRIOR_VOTES,
    RefinedMasks,
    agreement,
    cue_score,
    find_largest_part,
    invert_symmetric_3x3,
    log_likelihood_ratio,
    refine_masks,
    weigh_cues,
)
from media.clip import open_clip
from scenes.catalogue import SCENES
from scenes.files import write_scene
from scenes.scene import Scene
from unwrap_utils import Video, load_video

SIZE = {"width": 160, "height": 96, "frames": 12}


def read_video(folder) -> Video:
    """Read a clip at its own size."""
    return load_video(open_clip(folder, Config(data_folder=str(folder), resx=None, resy=None)), torch.device("cpu"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Video:
    """The demo scene with exact flow and rough masks."""
    return read_video(draw(tmp_path_factory.mktemp("aligned"), **SIZE))


@pytest.fixture(scope="module")
def truth():
    return SCENES["demo"](*SIZE.values())


def drift_px(transforms, layer, reference, frames) -> float:
    """Return the largest distance in pixels of points of the first and the last frame from their true positions.

    The transforms (T, 3, 3) and the scene's layer both move the points to the reference frame.
    """
    points = np.stack(np.meshgrid([30.0, 80, 130], [20.0, 48, 76]), axis=-1).reshape(-1, 2)
    errors = []
    for t in (0, frames - 1):
        expected = layer.to_frame(layer.to_photograph(points, t), reference)
        errors.append(np.linalg.norm(transform_points(transforms[t], points) - expected, axis=1).max())
    return max(errors)


def test_the_background_drifts_less_than_a_pixel_over_the_clip(video, truth):
    background = align_layers(video)[-1]
    reference = int(np.argmin([np.abs(matrix - np.eye(3)).max() for matrix in background]))
    assert drift_px(background, truth.layers[-1], reference, SIZE["frames"]) < 1.0


def test_pairs_span_several_distances_and_stay_on_their_layer(video):
    mask = video.masks[0].numpy() > 127
    pairs = sample_point_pairs(video, mask)
    assert {1, 2, 4, 8} <= set((pairs.target - pairs.source).tolist())
    for index in range(len(pairs.source)):
        is_point = pairs.weight[index] > 0
        for points, frames in ((pairs.start_px, pairs.source), (pairs.end_px, pairs.target)):
            x, y = np.rint(points[index][is_point]).astype(int).T
            assert mask[frames[index], y, x].all()


def test_a_layer_is_tracked_through_frames_whose_mask_was_missed(video, truth):
    mask = video.masks[0].numpy() > 127
    mask[5:7] = False
    transforms = align_layer(video, mask, "affine")
    poses = [truth.layers[0].pose(t) for t in (3, 5)]
    before, after = (np.array([[pose.x, pose.y]]) for pose in poses)
    moved = transform_points(np.linalg.inv(transforms[5]) @ transforms[3], before)
    assert np.linalg.norm(moved - after) < 2.0 < np.linalg.norm(before - after)


@pytest.fixture(scope="module")
def drifting_clip(tmp_path_factory) -> tuple[Scene, Video]:
    """A scene of 36 frames with rigid layers, and its video, whose flow is 3 % too short everywhere."""
    scene = SCENES["pan"](256, 144, 36)
    video = read_video(write_exact_flow(write_scene(scene, tmp_path_factory.mktemp("short_flow"))))
    return scene, replace(video, flow_unit_px=video.flow_unit_px * 0.97)


@pytest.mark.slow
def test_matches_between_distant_frames_reduce_the_drift(drifting_clip):
    """Transforms fitted to the flow alone cannot correct flow that is too short."""
    scene, video = drifting_clip
    transforms = align_layers(video)
    refined = refine_long_range(video, transforms, match_layers(video, transforms))
    for layer, (before, after) in enumerate(zip(transforms, refined, strict=True)):
        assert transform_errors_px(scene, layer, after)[0] < 0.75 * transform_errors_px(scene, layer, before)[0]


@pytest.mark.slow
def test_an_object_that_bends_keeps_the_transforms_fitted_to_its_flow(tmp_path):
    scene = SCENES["bend"](256, 144, 36)
    bending, background = scene.layers
    strongly_bending = replace(bending, pose=lambda t: replace(bending.pose(t), bend=2 * bending.pose(t).bend))
    video = read_video(write_exact_flow(write_scene(replace(scene, layers=(strongly_bending, background)), tmp_path)))
    transforms = align_layers(video)
    refined = refine_long_range(video, transforms, match_layers(video, transforms))
    np.testing.assert_array_equal(refined[0], transforms[0])
    assert not np.array_equal(refined[1], transforms[1])  # the background is rigid


@pytest.mark.slow
def test_flow_that_is_too_short_does_not_bend_rigid_layers(drifting_clip):
    """Direct matches of distant frames contradict it."""
    _, video = drifting_clip
    spacing = Spacing.from_config(Config(data_folder="unused"))
    model, _ = start_model(video, spacing, "auto", 4, lambda model: None)
    assert model.rigid_layers == {0, 1}
    for layer in range(2):
        assert not any(grid.values.any() for grid in model.fields_by_name()[f"mappings.{layer}"])


def test_frames_without_texture_do_not_change_the_transforms(drifting_clip):
    _, video = drifting_clip
    flat = replace(video, frames=torch.full_like(video.frames, 90))
    transforms = align_layers(flat)
    np.testing.assert_array_equal(refine_long_range(flat, transforms, match_layers(flat, transforms)), transforms)


def test_an_object_without_any_mask_does_not_move(drifting_clip):
    _, video = drifting_clip
    empty = replace(video, masks=torch.zeros_like(video.masks))
    transforms = align_layers(empty)
    refined = refine_long_range(empty, transforms, match_layers(empty, transforms))
    np.testing.assert_array_equal(refined[0], np.broadcast_to(np.eye(3), (36, 3, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("size", "edge_px"), [((160, 96), 512), ((256, 144), 128), ((144, 250), 128)])
def test_points_matched_between_distant_frames_have_their_true_ends(tmp_path, monkeypatch, size, edge_px, layer):
    """This holds for any size of the clip and any size at which its frames are compared, and for an object, too."""
    monkeypatch.setattr(long_range, "LONG_EDGE_PX", edge_px)
    scene = SCENES["pan"](*size, 18)
    video = read_video(write_exact_flow(write_scene(scene, tmp_path)))
    mask, _ = layer_pixels(video)[layer]
    pairs = long_range.match_distant_frames(video, mask, align_layers(video)[layer])
    assert list(zip(pairs.source, pairs.target, strict=True)) == [(0, 16)]
    is_point = pairs.weight[0] > 0
    expected = scene.move_points(pairs.start_px[0][is_point], np.full(is_point.sum(), layer), 0, 16)
    errors = np.linalg.norm(expected - pairs.end_px[0][is_point], axis=1)
    assert np.median(errors) < 0.3
    x, y = np.rint(pairs.end_px[0][is_point]).astype(int).T
    assert mask[16][y, x].mean() > 0.9


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
def test_frames_are_compared_at_distances_of_16_or_more_and_its_doubles(frames, expected):
    assert long_range.choose_frame_pairs(frames) == expected


@pytest.mark.parametrize("frames", [73, 280])
def test_only_few_frames_of_a_clip_are_compared(frames):
    pairs = long_range.choose_frame_pairs(frames)
    assert len({t for pair in pairs for t in pair}) <= long_range.MAX_FRAMES
    assert len(pairs) < 70


def test_in_a_long_clip_every_sixteenth_frame_is_compared_with_few_others():
    pairs = long_range.choose_frame_pairs(3000)
    assert {t for pair in pairs for t in pair} == set(range(0, 3000, 16))
    assert len(pairs) < 8 * 3000 / 16


def test_without_any_valid_flow_no_layer_moves(video):
    without_flow = replace(video, flow_valid=torch.zeros_like(video.flow_valid))
    np.testing.assert_array_equal(align_layers(without_flow), np.broadcast_to(np.eye(3), (2, SIZE["frames"], 3, 3)))


def test_a_static_camera_gives_the_identity(tmp_path):
    scene = SCENES["demo"](**SIZE)
    background = replace(scene.layers[-1], pose=lambda _: scene.layers[-1].pose(0))
    still_scene = replace(scene, name="still", layers=(scene.layers[0], background))
    folder = write_scene(still_scene, tmp_path)
    target = folder.with_name("still_flow")
    target.mkdir()
    for path in folder.with_name("still_gt_flow").glob("*.npy"):
        np.save(target / path.name, np.load(path)[..., :2])
    corners = np.array([[0.0, 0], [159, 0], [0, 95], [159, 95]])
    for matrix in align_layers(read_video(folder))[-1]:
        assert np.abs(transform_points(matrix, corners) - corners).max() < 0.5


def test_a_transform_with_a_horizon_in_the_frame_is_not_plausible():
    tilted = np.eye(3)
    tilted[2, 0] = -1 / 80
    assert are_plausible(np.eye(3)[None], (96, 160))
    assert not are_plausible(tilted[None], (96, 160))
    assert not are_plausible(np.full((1, 3, 3), np.nan), (96, 160))


def test_random_flow_gives_plausible_transforms(video):
    rng = np.random.default_rng(0)
    steps = torch.from_numpy(rng.integers(-30000, 30000, video.flow_steps.shape).astype(np.int16))
    random_video = replace(video, flow_steps=steps, flow_valid=torch.ones_like(video.flow_valid))
    for transforms in align_layers(random_video):
        assert are_plausible(transforms, video.size[1:])


@pytest.mark.parametrize(("kind", "freedom"), [("similarity", 4), ("affine", 6), ("homography", 8)])
def test_a_transform_has_the_freedom_of_its_kind(kind, freedom):
    moves = motion_generators(kind).reshape(freedom, 9)
    assert np.linalg.matrix_rank(moves) == freedom


@pytest.mark.slow
def test_refined_masks_are_better_than_the_rough_ones(video, truth):
    transforms = align_layers(video)
    rough = video.masks[0].numpy()
    refined = refine_masks(shrink_video(video), rough, transforms[-1], transforms[0])
    true = np.stack([truth.frame(t).alpha[0] > 0.5 for t in range(SIZE["frames"])])
    masks = np.stack([refined.upsample(frame, t) > 0.5 for t, frame in enumerate(video.frames.numpy())])
    assert agreement(masks, true) > agreement(rough > 127, true) + 0.05
    assert agreement(masks, true) > 0.93


@pytest.mark.slow
def test_a_shadow_that_no_mask_shows_stays_outside(tmp_path):
    scene = SCENES["shadow"](192, 108, 12)
    folder = write_exact_flow(write_scene(scene, tmp_path))
    video = read_video(folder)
    transforms = align_layers(video)
    refined = refine_masks(shrink_video(video), video.masks[0].numpy(), transforms[-1], transforms[0])
    masks = np.stack([refined.upsample(frame, t) > 0.5 for t, frame in enumerate(video.frames.numpy())])
    frames = [scene.frame(t) for t in range(scene.frames)]
    is_shadow = np.stack([(frame.light < 0.7) & (frame.alpha[0] == 0) for frame in frames])
    assert masks[is_shadow].mean() < 0.15
    assert agreement(masks, np.stack([frame.alpha[0] > 0.5 for frame in frames])) > 0.93


def test_a_frame_without_a_mask_gets_one_from_its_neighbours(video, truth):
    transforms = align_layers(video)
    rough = video.masks[0].numpy().copy()
    rough[4] = 0
    refined = refine_masks(shrink_video(video), rough, transforms[-1], transforms[0])
    mask = refined.upsample(video.frames[4].numpy(), 4) > 0.5
    assert agreement(mask[None], truth.frame(4).alpha[:1] > 0.5) > 0.8


def test_a_clip_without_any_object_stays_without_one(video):
    transforms = align_layers(video)
    refined = refine_masks(shrink_video(video), np.zeros_like(video.masks[0].numpy()), transforms[-1], transforms[0])
    assert not refined.probability.any()


def test_a_shadow_differs_from_the_background_only_in_brightness():
    rng = np.random.default_rng(0)
    background = cv2.GaussianBlur(rng.integers(0, 255, (48, 64, 3)).astype(np.float32), (0, 0), 2).clip(60, 200)
    frames, still = np.repeat(background[None], 6, axis=0), np.tile(np.eye(3), (6, 1, 1))
    frames[2, 10:20, 10:30] *= 0.5  # a shadow
    frames[2, 30:40, 10:30] = frames[2, 30:40, 30:50, ::-1]  # an object
    unknown = np.zeros((2, *frames.shape[:3], 2), np.float32)
    clip = SmallClip(frames.astype(np.uint8), unknown, unknown[..., 0], np.eye(3))
    is_background = np.ones(frames.shape[:3], bool)
    is_background[2, 10:40, 10:30] = False
    color, darkened_color = (difference[2] for difference in background_differences(clip, still, is_background))
    shadow, object_ = np.s_[12:18, 12:28], np.s_[32:38, 12:28]
    assert color[shadow].mean() > 5
    assert darkened_color[shadow].mean() < 0.2 * darkened_color[object_].mean()
    assert darkened_color[shadow].mean() < 0.1 * color[shadow].mean()


@pytest.fixture(scope="module")
def exact_clip(tmp_path_factory) -> tuple[Video, np.ndarray]:
    """A video large enough that outlines lie on edges, and its exact masks (T, H, W)."""
    scene = SCENES["bend"](256, 144, 8)
    folder = write_scene(scene, tmp_path_factory.mktemp("exact_masks"))
    write_exact_flow(folder)
    masks = np.stack([np.where(scene.frame(t).alpha[0] > 0.5, 255, 0) for t in range(8)])
    return read_video(folder), masks.astype(np.uint8)


def test_exact_masks_are_distinguished_from_rough_ones(exact_clip):
    video, exact = exact_clip
    assert not are_rough(video, exact)
    assert are_rough(video, video.masks[0].numpy())
    assert are_rough(video, np.zeros_like(exact))


def test_masks_beside_the_edges_are_kept_if_they_are_steady(exact_clip):
    video, exact = exact_clip
    reduced = np.stack([cv2.erode(mask, np.ones((9, 9), np.uint8)) for mask in exact])
    assert outline_prominence(video.frames[3].numpy(), reduced[3] > 127) < MAX_ROUGH_PROMINENCE
    assert outline_jitter(video, reduced > 127, 3) < MIN_ROUGH_JITTER
    assert not are_rough(video, reduced)


def test_masks_that_lack_a_part_in_some_frames_jitter(exact_clip):
    video, exact = exact_clip
    jumping = exact.copy()
    for mask in jumping[::2]:
        rows = np.flatnonzero(mask.any(1))
        mask[: int(rows.mean())] = 0  # the upper half is missed
    assert outline_jitter(video, jumping > 127, 2) > 2 * MIN_ROUGH_JITTER


def test_without_any_valid_flow_masks_are_kept(exact_clip):
    video, _ = exact_clip
    blind = replace(video, flow_valid=torch.zeros_like(video.flow_valid))
    assert not are_rough(blind, video.masks[0].numpy())


def test_masks_are_kept_or_refined_by_where_they_come_from_unless_the_config_says_otherwise(exact_clip):
    video, exact = exact_clip
    rough = video.masks[0].numpy()
    assert not decide_masks(video, rough, "auto", "brought").is_refined.any()
    assert decide_masks(video, exact, "auto", "found").is_refined.all()
    assert not decide_masks(video, rough, "exact", "found").is_refined.any()
    assert decide_masks(video, exact, "rough", "brought").is_refined.all()
    assert decide_masks(video, rough, "auto", "unknown").is_refined.all()


def test_masks_of_unknown_origin_are_kept_but_for_short_gaps(exact_clip):
    video, exact = exact_clip
    masks = exact.copy()
    masks[4] = 0
    masks[7] = 0  # at the end of the clip the object may be gone, so this mask was not missed
    decision = decide_masks(video, masks, "auto", "unknown")
    assert np.flatnonzero(decision.is_refined).tolist() == [4]
    assert 'set mask_quality to "rough"' in decision.reason
    assert not decide_masks(video, masks, "auto", "brought").is_refined.any()  # black says that the object is hidden


def test_empty_masks_count_as_missed_only_in_short_gaps():
    masks = np.full((10, 4, 4), 255, np.uint8)
    masks[2:8] = 0
    assert not find_missed_frames(masks).any()
    masks[7] = 255
    assert np.flatnonzero(find_missed_frames(masks)).tolist() == [2, 3, 4, 5, 6]


def test_the_start_keeps_exact_masks_and_adds_the_missed_one(exact_clip, capsys):
    video, exact = exact_clip
    masks = exact.copy()
    masks[4] = 0
    video = replace(video, masks=torch.from_numpy(masks)[None])
    _, probability = start_model(
        video, Spacing.from_config(Config(data_folder="unused")), "auto", 4, lambda model: None
    )
    assert "masks are kept, 1 missing ones are filled in" in capsys.readouterr().out
    start_masks = np.stack([cv2.resize(frame.numpy(), (256, 144)) > 0.5 for frame in probability[0]])
    assert agreement(np.delete(start_masks, 4, axis=0), np.delete(exact, 4, axis=0) > 127) > 0.97
    assert agreement(start_masks[4:5], exact[4:5] > 127) > 0.8


def test_the_start_refines_masks_found_by_a_method_even_if_they_look_exact(exact_clip, capsys):
    video, exact = exact_clip
    video = replace(video, masks=torch.from_numpy(exact)[None], mask_sources=("found",))
    start_model(video, Spacing.from_config(Config(data_folder="unused")), "auto", 4, lambda model: None)
    assert "masks were found by a method and are refined" in capsys.readouterr().out
    start_model(video, Spacing.from_config(Config(data_folder="unused")), "exact", 4, lambda model: None)
    assert "masks are kept, as mask_quality 'exact' says" in capsys.readouterr().out


def test_weak_cues_do_not_move_a_pixel_against_masks_that_agree():
    assert cue_score(np.array([-1.9, 0.0, 1.9])).tolist() == [0, 0, 0]
    assert cue_score(np.array([5.0]))[0] > 5


def test_cues_alone_do_not_remove_what_all_masks_show():
    vote = (20 + PRIOR_VOTES / 2) / (20 + PRIOR_VOTES)
    assert cue_score(np.array([-20.0]))[0] + np.log(vote / (1 - vote)) > 0


def test_cues_are_not_learned_from_a_part_that_all_masks_miss():
    bin_indices = np.full((1, 20, 100), 1, np.int32)  # the background
    bin_indices[0, :, 20:80] = 2  # the object
    vote = np.zeros((1, 20, 100), np.float32)
    vote[0, :, 20:76] = 1  # All masks miss the last columns of the object.
    everywhere = np.ones(vote.shape, bool)
    cues = [Cue(bin_indices, (4,), (0.0,))] * 2
    once = sum(log_likelihood_ratio(cue, vote > 0.5, everywhere) for cue in cues)
    assert once[0, 0, 78] < 5
    assert weigh_cues(cues, vote, everywhere)[0, 0, 78] == pytest.approx(2 * MAX_LOG_LIKELIHOOD)


def test_the_likelihood_ratio_is_high_for_bins_inside_low_for_bins_outside_and_0_for_unknown_bins():
    bin_indices = np.array([[[1, 1, 2, 2, 3]]], np.int32)
    inside = np.array([[[True, True, False, False, False]]])
    is_training_pixel = np.array([[[True, True, True, True, False]]])
    ratio = log_likelihood_ratio(Cue(bin_indices, (5,), (0.0,)), inside, is_training_pixel)[0, 0]
    assert ratio[0] > 4 and ratio[2] < -4 and ratio[4] == pytest.approx(0)


def test_the_guided_filter_moves_a_blurred_edge_to_the_edge_of_the_guide():
    guide = np.zeros((32, 32, 3), np.uint8)
    guide[:, 16:] = 200
    blurred = np.clip((np.arange(32, dtype=np.float32) - 12) / 8, 0, 1)[None].repeat(32, 0)
    filtered = RefinedMasks(blurred[None], guide[None]).upsample(guide, 0)[16]
    assert filtered[14] < 0.3 and filtered[18] > 0.7
    assert abs(filtered[16] - filtered[15]) > 2 * abs(blurred[16, 16] - blurred[16, 15])


def test_a_box_also_holds_the_object_in_neighbouring_frames_and_is_empty_without_one():
    inside = np.zeros((5, 20, 20), bool)
    inside[1, 5:8, 6:9] = inside[2, 7:10, 6:9] = True
    boxes = object_boxes(inside, 0.0)
    assert boxes[1].tolist() == [5, 10, 6, 9]
    assert boxes[4].tolist() == [0, 0, 0, 0]


def test_symmetric_matrices_are_inverted():
    root = np.random.default_rng(0).standard_normal((4, 5, 3, 3))
    matrices = root @ root.swapaxes(-1, -2) + 0.1 * np.eye(3)
    np.testing.assert_allclose(invert_symmetric_3x3(matrices), np.linalg.inv(matrices), rtol=1e-9, atol=1e-9)


def test_a_part_that_is_separate_for_some_frames_belongs_to_the_object():
    probability = np.zeros((5, 40, 30), np.float32)
    probability[:, 20:38, 5:25] = 0.9  # the body
    probability[:, 10:14, 12:15] = 0.9  # the head
    probability[[0, 4], 14:20, 12:14] = 0.9  # the neck, which is seen in the first and the last frame
    probability[2, 2:4, 26:28] = 0.9  # a ripple
    largest = find_largest_part(probability)
    np.testing.assert_array_equal(largest[2], (probability[2] > 0) & (np.arange(40)[:, None] > 5))
    assert not find_largest_part(np.zeros((2, 8, 8), np.float32)).any()
