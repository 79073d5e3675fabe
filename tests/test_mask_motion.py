"""Masks found by motion, and masks refined by motion and colour."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import last_line, run_script

import media
import preprocess_mask_rcnn
import unwrap_video
from command_line import UserError
from evaluation.mask_metrics import iou
from masks.cues import SmallClip, shrink_video
from masks.departure import measure_departure
from masks.provenance import read_mask_request
from media.flows import BACKWARD, FORWARD, flow_name, write_flow
from preprocessing import masks
from preprocessing.errors import NoWeights
from preprocessing.mask_motion import enlarge_masks, find_candidates, largest_part, otsu_threshold, stands_still
from preprocessing.mask_request import MaskRequest
from preprocessing.small_video import open_small_clip, read_small_video
from scenes.catalogue import SCENES
from scenes.files import write_scene

SIZE = (192, 112, 12)


@pytest.fixture(scope="module")
def drawn_scene(tmp_path_factory):
    """The easy scene `pan`, drawn once. Tests write masks beside links to it, never here."""
    return write_scene(SCENES["pan"](*SIZE), tmp_path_factory.mktemp("motion"))


@pytest.fixture
def scene(drawn_scene, tmp_path):
    """The same clip without rough masks, in a folder of the test's own."""
    for suffix in ("", "_gt"):
        source = drawn_scene.with_name(drawn_scene.name + suffix)
        (tmp_path / source.name).symlink_to(source, target_is_directory=True)
    return tmp_path / drawn_scene.name


def mean_j(folder, truth) -> float:
    """Return the mean IoU of the masks in a folder with the true masks."""
    values = [iou(media.read_mask(path) > 127, media.read_mask(truth / path.name) > 127) for path in folder.iterdir()]
    return float(np.mean(values))


@pytest.mark.slow
def test_motion_finds_the_object_without_any_weights(scene):
    preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "motion"])
    masks = scene.with_name("pan_maskrcnn")
    assert len(list(masks.iterdir())) == SIZE[2]
    assert mean_j(masks, scene.with_name("pan_gt")) > 0.75


@pytest.mark.slow
def test_candidates_are_shown_and_another_one_can_be_chosen(scene):
    picture = scene.with_name("pan_maskrcnn_candidates.png")
    with pytest.raises(UserError, match=r"--candidate 99: there are \d, see .*pan_maskrcnn_candidates\.png"):
        preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "motion", "--candidate", "99"])
    assert picture.is_file()
    assert not scene.with_name("pan_maskrcnn").exists()
    preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "motion", "--candidate", "2"])
    assert mean_j(scene.with_name("pan_maskrcnn"), scene.with_name("pan_gt")) > 0.5
    assert read_mask_request(scene.with_name("pan_maskrcnn")) == {"method": "motion", "candidate": "2"}


def test_the_vote_takes_what_three_of_the_four_segmentations_show(tmp_path):
    video = read_small_video(open_small_clip(write_scene(SCENES["pan"](*SIZE), tmp_path)))
    candidates = find_candidates(video)
    assert list(candidates)[5:] == ["another moving thing", "moves within 40 frames"]
    vote, *others = (masks > 127 for masks in list(candidates.values())[:5])
    np.testing.assert_array_equal(vote, np.sum(others, axis=0) >= 3)
    assert any((vote != other).any() for other in others)
    assert enlarge_masks(candidates["what most others show"], video.size).shape == video.size


@pytest.fixture(scope="module")
def stopping_clip(tmp_path_factory):
    """A textured square that walks to the right for 10 frames, then stands still for 14 frames; and its true masks."""
    rng = np.random.default_rng(0)
    ground, square = (media.resize(rng.integers(0, 255, (24, 36, 3)).astype(np.uint8), 192, 128) for _ in range(2))
    folder, truth = media.make_folder(tmp_path_factory.mktemp("stopping") / "square"), np.zeros((24, 128, 192), bool)
    for t in range(24):
        x = 20 + 8 * min(t, 10)
        frame = ground.copy()
        frame[40:90, x : x + 50] = square[:50, :50]
        truth[t, 40:90, x : x + 50] = True
        media.write_png(folder / f"{t:05d}.png", frame)
    return read_small_video(open_small_clip(folder)), truth


def test_an_object_that_stands_still_is_found_by_what_it_did_before(stopping_clip):
    video, truth = stopping_clip
    candidates = find_candidates(video)
    assert list(candidates)[-1] == "moves between two frames"  # the other kind of motion than the one that was used
    masks = enlarge_masks(candidates["what most others show"], video.size) > 127
    at_the_time = enlarge_masks(candidates["moves between two frames"], video.size) > 127
    assert np.mean([iou(masks[t], truth[t]) for t in range(13, 24)]) > 0.8
    assert np.mean([iou(at_the_time[t], truth[t]) for t in range(13, 24)]) < 0.3


def test_a_pixel_that_stood_still_has_departed_as_far_as_it_went_before(stopping_clip):
    video, truth = stopping_clip
    clip = shrink_video(video, 192)
    departure = measure_departure(clip, np.tile(np.eye(3), (24, 1, 1)), noise_px=1.0)
    assert departure.shape == (24, 128, 192)
    # 16 frames before frame 20, the square was 6 steps of 8 px away; the noise of 16 frames is 4 px.
    assert np.median(departure[20][truth[20]]) == pytest.approx(6 * 8 / 4, rel=0.1)
    assert np.median(departure[20][~truth[20]]) < 0.1


def make_small_clip(flow_px, flow_valid) -> SmallClip:
    """Return a clip whose picture moves by flow_px to the right from frame to frame, where flow_valid is above 0."""
    flow = np.zeros((2, *flow_valid.shape[1:], 2), np.float32)
    flow[FORWARD, ..., 0], flow[BACKWARD, ..., 0] = flow_px, -flow_px
    flow *= flow_valid[..., None] > 0  # A reduced clip has no flow where none is valid.
    return SmallClip(np.zeros((*flow_valid.shape[1:], 3), np.uint8), flow, flow_valid, np.eye(3))


def test_nothing_departs_from_a_pan_beside_pixels_without_flow():
    valid = np.ones((2, 8, 40, 60), np.float32)
    valid[:, :, 10:20, 20:30] = 0
    pan = np.tile(np.eye(3), (8, 1, 1))
    pan[:, 0, 2] = -2.5 * np.arange(8)
    departure = measure_departure(make_small_clip(2.5, valid), pan, noise_px=0.1)
    assert np.nanmax(departure) < 1e-2
    assert np.isnan(departure[3, 12:18, 22:28]).all()


def test_pixels_that_cannot_be_followed_have_no_departure():
    clip = make_small_clip(1.0, np.zeros((2, 5, 20, 30), np.float32))
    assert np.isnan(measure_departure(clip, np.tile(np.eye(3), (5, 1, 1)), noise_px=0.1)).all()


def test_what_has_moved_is_taken_only_if_it_shows_more_and_is_steadier(stopping_clip):
    video, truth = stopping_clip
    clip = shrink_video(video, 192)
    flickers = truth & (np.arange(24) % 3 == 0)[:, None, None]
    assert stands_still(clip, moves=flickers, has_moved=truth)
    assert not stands_still(clip, moves=truth, has_moved=truth)  # The object moves all the time.
    assert not stands_still(clip, moves=flickers, has_moved=flickers)
    upper_part = truth & (np.arange(128) < 60)[:, None]
    assert not stands_still(clip, moves=upper_part, has_moved=truth)  # It shows less than half, but is as steady.
    assert not stands_still(clip, moves=np.zeros_like(truth), has_moved=truth)
    few_frames = truth & (np.arange(24) > 20)[:, None, None]
    assert not stands_still(clip, moves=flickers, has_moved=few_frames)


def test_a_candidate_belongs_to_motion(scene):
    with pytest.raises(UserError, match="--candidate is for --method motion"):
        preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "maskrcnn", "--candidate", "2"])
    with pytest.raises(UserError, match="--candidate is for --method motion"):
        unwrap_video.main([str(scene), "--candidate", "2"])
    with pytest.raises(UserError, match="--candidate is 0, expected 1 or more"):
        preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "motion", "--candidate", "0"])


@pytest.mark.slow
def test_motion_fills_in_only_the_masks_that_are_missing(scene):
    masks = scene.with_name("pan_maskrcnn")
    masks.mkdir()
    own = np.zeros(SIZE[1::-1], np.uint8)
    own[:5, :5] = 255
    media.write_png(masks / "00003.png", own)
    preprocess_mask_rcnn.main(["--vid-path", str(scene), "--method", "motion"])
    np.testing.assert_array_equal(media.read_mask(masks / "00003.png"), own)
    assert len(list(masks.iterdir())) == SIZE[2]


@pytest.mark.slow
def test_refining_improves_the_masks_and_keeps_the_given_ones(scene, drawn_scene):
    given = drawn_scene.with_name("pan_maskrcnn")
    masks, truth = scene.with_name("pan_maskrcnn"), scene.with_name("pan_gt")
    masks.mkdir()
    for path in given.iterdir():
        media.write_png(masks / path.name, media.read_mask(path))
    before = mean_j(masks, truth)
    preprocess_mask_rcnn.main(["--vid-path", str(scene), "--refine"])
    assert mean_j(masks, truth) > before + 0.05
    assert mean_j(scene.with_name("pan_maskrcnn_rough"), truth) == before
    with pytest.raises(UserError, match="were refined before"):
        preprocess_mask_rcnn.main(["--vid-path", str(scene), "--refine"])


@pytest.mark.slow
def test_refining_without_masks_says_what_to_do(scene):
    done = run_script("preprocess_mask_rcnn.py", "--vid-path", scene, "--refine")
    assert done.returncode == 2
    assert "find or make some first" in last_line(done.stderr)


def test_a_clip_in_which_nothing_moves_is_refused_with_a_way_out(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    folder = media.make_folder(tmp_path / "still")
    for t in range(4):
        media.write_png(folder / f"{t:05d}.png", picture)
    with pytest.raises(UserError, match="nothing moves against the background"):
        find_candidates(read_small_video(open_small_clip(folder)))


def test_refining_a_mask_of_another_shape_names_it_and_changes_nothing(scene, drawn_scene):
    masks = scene.with_name("pan_maskrcnn")
    masks.mkdir()
    for path in drawn_scene.with_name("pan_maskrcnn").iterdir():
        media.write_png(masks / path.name, media.read_mask(path))
    media.write_png(masks / "00002.png", np.full((40, 40), 255, np.uint8))
    with pytest.raises(UserError, match=r"00002\.png is 40 x 40, the frames are 192 x 112"):
        preprocess_mask_rcnn.main(["--vid-path", str(scene), "--refine"])
    assert not scene.with_name("pan_maskrcnn_rough").exists()


def test_motion_in_a_single_frame_is_refused(tmp_path):
    media.write_png(media.make_folder(tmp_path / "one") / "0.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="at least 2 are needed to follow a motion"):
        preprocess_mask_rcnn.main(["--vid-path", str(tmp_path / "one"), "--method", "motion"])


def test_the_threshold_lies_between_the_two_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate((rng.normal(0, 0.3, 9000), rng.normal(4, 0.3, 1000))).astype(np.float32)
    assert 0.8 < otsu_threshold(values.reshape(10, 10, 100)) < 3.2


def test_specks_and_whole_frames_are_no_objects():
    speck, whole, part = (np.zeros((40, 60), bool) for _ in range(3))
    speck[3, 3] = True
    whole[:] = True
    part[10:20, 10:30] = part[30:33, 50:53] = True
    assert not largest_part(speck).any()
    assert not largest_part(whole).any()
    assert largest_part(part).sum() == 200


def test_a_small_video_has_the_flow_of_the_clips_files(scene):
    small = open_small_clip(scene)
    flow_folder = media.make_folder(scene.with_name("pan_flow"))
    written = np.full((2 * SIZE[1], 2 * SIZE[0], 2), 3.0, np.float32)  # of twice the size, so 1.5 px of the clip
    coarse = np.full((SIZE[1] // 2, SIZE[0] // 2, 2), 3.0, np.float32)
    for first, second in pairwise(path.name for path in small.frame_paths):
        write_flow(flow_folder / flow_name(first, second), written)
        write_flow(flow_folder / flow_name(second, first), -written)
    names = [path.name for path in small.frame_paths]
    (flow_folder / flow_name(names[4], names[5])).unlink()
    (flow_folder / flow_name(names[8], names[7])).write_bytes(b"half a file")
    write_flow(flow_folder / flow_name(names[9], names[10]), coarse)
    video = read_small_video(small)
    flow = video.flow_steps[FORWARD].numpy() * video.flow_unit_px[FORWARD].numpy()[:, None, None, None]
    middle = flow[:, 30:80, 50:140]
    is_written = [np.allclose(middle[t], 1.5, atol=1e-3) for t in range(SIZE[2] - 1)]
    # Where a file is missing, damaged or coarser than the small clip, flow is computed.
    assert is_written == [t not in (4, 7, 9) for t in range(SIZE[2] - 1)]
    assert np.abs(middle[[4, 7, 9]]).max() > 0


@pytest.mark.parametrize("method", ["motion", "auto"])
def test_flow_is_written_before_masks_are_found_by_motion(scene, monkeypatch, method):
    def fail(request):
        raise NoWeights("no weights")

    monkeypatch.setattr(masks, "make_detector", fail)
    calls: list[str] = []
    full = np.full((SIZE[1], SIZE[0]), 255, np.uint8)

    def find(frames, missing, request):
        calls.append("masks")
        return iter([full] * len(missing))

    monkeypatch.setattr(masks, "find_moving_object", find)
    masks.write_masks(scene, MaskRequest(method), lambda: calls.append("flow"))
    assert calls == ["flow", "masks"]
    masks.write_masks(scene, MaskRequest(method), lambda: calls.append("flow"))
    assert calls == ["flow", "masks"]  # Masks that exist need no flow.
