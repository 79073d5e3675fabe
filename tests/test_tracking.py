"""Objects followed through a clip: their identity, gaps in the detections, the choice of one object."""

import numpy as np
import pytest

from command_line import UserError
from masks.overlap import iou
from media import resize
from preprocessing.mask_tracking import Detection, Motion, fill_gaps, find_track_at, link_detections

PERSON, DOG = 1, 18
SIZE = (64, 48)
STEP_PX = 3  # pixels by which both objects move per frame, in opposite directions
FRAMES = 10


def disc(x: float, y: float) -> np.ndarray:
    """Return the mask (H, W) of a disc around a pixel."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.where((columns - x) ** 2 + (rows - y) ** 2 < 49, 255, 0).astype(np.uint8)


def upper(t: int) -> np.ndarray:
    """Return the mask of the object that moves to the right in the upper half."""
    return disc(14 + STEP_PX * t, 12)


def lower(t: int) -> np.ndarray:
    """Return the mask of the object that moves to the left in the lower half."""
    return disc(50 - STEP_PX * t, 35)


@pytest.fixture
def motion() -> Motion:
    """The exact flow; the upper half moves to the right, the lower half to the left."""
    forward = np.zeros((SIZE[1], SIZE[0], 2), np.float16)
    forward[:24, :, 0], forward[24:, :, 0] = STEP_PX, -STEP_PX
    return Motion([forward] * (FRAMES - 1), [-forward] * (FRAMES - 1), SIZE)


def detections(t: int) -> list[Detection]:
    """Return the detections of both objects as a detector lists them; which one is the surer one alternates."""
    scores = (0.9, 0.8) if t % 2 else (0.8, 0.9)
    both = [Detection(PERSON, scores[0], upper(t)), Detection(PERSON, scores[1], lower(t))]
    return sorted(both, key=lambda detection: -detection.score)


def test_identity_does_not_flip_where_the_scores_do(motion):
    tracks = link_detections([detections(t) for t in range(FRAMES)], motion)
    assert len(tracks) == 2
    for track in tracks:
        masks, filled = fill_gaps(track, FRAMES, motion)
        path = upper if np.array_equal(masks[0], upper(0)) else lower
        assert all(np.array_equal(mask, path(t)) for t, mask in enumerate(masks))
        assert filled == []


def test_missed_frames_are_filled_along_the_flow_from_both_sides(motion):
    frames = [[Detection(PERSON, 0.9, upper(t))] if t not in (4, 5, 6) else [] for t in range(FRAMES)]
    (track,) = link_detections(frames, motion)
    masks, filled = fill_gaps(track, FRAMES, motion)
    assert filled == [4, 5, 6]
    assert all(iou(motion.shrink_mask(masks[t]), motion.shrink_mask(upper(t))) > 0.9 for t in filled)


def test_an_object_that_is_gone_is_tracked_for_a_few_frames_only(motion):
    frames = [[Detection(PERSON, 0.9, upper(t))] if t < 4 else [] for t in range(FRAMES)]
    masks, filled = fill_gaps(link_detections(frames, motion)[0], FRAMES, motion)
    assert filled == [4, 5, 6]
    assert masks[7:] == [None] * 3


def test_a_wrong_class_in_one_frame_does_not_break_the_track(motion):
    frames = [[Detection(DOG if t == 5 else PERSON, 0.9, upper(t))] for t in range(FRAMES)]
    (track,) = link_detections(frames, motion)
    assert len(track.detections) == FRAMES
    assert track.label == PERSON


def test_the_object_that_is_detected_longest_and_surest_comes_first(motion):
    frames = [detections(t) if t < 3 else [Detection(PERSON, 0.7, lower(t))] for t in range(FRAMES)]
    first, second = link_detections(frames, motion)
    assert np.array_equal(first.detections[0].mask, lower(0))
    assert sorted(second.detections) == [0, 1, 2]


def test_a_point_chooses_the_object_under_it(motion):
    tracks = link_detections([detections(t) for t in range(FRAMES)], motion)
    chosen = find_track_at(tracks, 50, 35, 0, str)
    assert np.array_equal(chosen.detections[0].mask, lower(0))
    with pytest.raises(UserError, match="no object was found there; frame 3 has person, person"):
        find_track_at(tracks, 0, 0, 3, {PERSON: "person"}.get)


def test_masks_may_be_larger_than_the_size_they_are_compared_at(motion):
    frames = [[Detection(PERSON, 0.9, resize(upper(t), 128, 96))] if t != 4 else [] for t in range(FRAMES)]
    masks, _ = fill_gaps(link_detections(frames, motion)[0], FRAMES, motion)
    assert {mask.shape for mask in masks} == {(96, 128)}
