"""The second search of DIS flow: what is lost in one direction or in part is found from the rest."""

import cv2
import numpy as np
import pytest

from alignment.dis_flow import Direction, DisFlow, guess_from_features, halve_both, invert_flow, spread_flow
from unwrap_utils import consistent_pixels, targets_inside

BACKGROUND_PX, OBJECT_PX = (4, 0), (-22, 6)  # motion (dx, dy) of background and object
RIM_PX = 8  # Here DIS mixes the motion of object and background.
OBJECT = (slice(60, 110), slice(110, 160))  # rows and columns of the object in the first frame
MOVED = (slice(66, 116), slice(88, 138))  # the same in the second frame


def draw_texture(seed, height=180, width=240):
    """Return a smooth random grey image."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.uint8(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX))


@pytest.fixture
def images():
    """Two grey frames: a square moves to the left over a background that moves to the right."""
    first, texture = draw_texture(1), draw_texture(2)[:50, :50]
    second = np.roll(first, BACKGROUND_PX, axis=(1, 0))
    first[OBJECT], second[MOVED] = texture, texture
    return first, second


@pytest.fixture
def flows():
    """The true flow from the first frame to the second, and back."""
    flow, back_flow = (np.empty((180, 240, 2), np.float32) for _ in range(2))
    flow[:], back_flow[:] = BACKGROUND_PX, np.negative(BACKGROUND_PX)
    flow[OBJECT], back_flow[MOVED] = OBJECT_PX, np.negative(OBJECT_PX)
    return flow, back_flow


def search_again(images, flow, back_flow):
    """Search lost areas again; the flows change in place."""
    DisFlow().search_again(Direction(*images, flow), Direction(*images[::-1], back_flow))


def share_of_right(flow, area, motion):
    """Return the share of the pixels in an area, without its rim, whose flow is right within half a pixel."""
    inner = tuple(slice(side.start + RIM_PX, side.stop - RIM_PX) for side in area)
    return (np.linalg.norm(flow[inner] - np.array(motion), axis=-1) < 0.5).mean()


def test_an_object_that_one_direction_has_lost_is_found_by_the_other(images, flows):
    flow, back_flow = flows
    back_flow[MOVED] = np.negative(BACKGROUND_PX)
    search_again(images, flow, back_flow)
    assert share_of_right(back_flow, MOVED, np.negative(OBJECT_PX)) > 0.95
    assert share_of_right(flow, OBJECT, OBJECT_PX) > 0.95


def test_a_part_that_both_directions_have_lost_is_found_by_the_rest(images, flows):
    flow, back_flow = flows
    for values, (rows, columns), motion in ((flow, OBJECT, (0, 35)), (back_flow, MOVED, (9, -30))):
        values[rows, columns.start + 20 : columns.stop] = motion
    search_again(images, flow, back_flow)
    assert share_of_right(flow, OBJECT, OBJECT_PX) > 0.9
    assert share_of_right(back_flow, MOVED, np.negative(OBJECT_PX)) > 0.9


def test_flow_that_agrees_with_the_flow_back_stays_as_it_is(images, flows):
    flow, back_flow = (values.copy() for values in flows)
    is_right = consistent_pixels(*flows)
    search_again(images, flow, back_flow)
    np.testing.assert_array_equal(flow[is_right], flows[0][is_right])


def test_a_repeated_pattern_that_moves_far_stays_as_it_is_around_a_lost_object(images):
    motion = (-40, 0)  # The pattern repeats every 20 px, so other motions fit as well.
    stripes = np.uint8(127 + 100 * np.sin(np.arange(240) / 20 * 2 * np.pi) * np.ones((180, 1)))
    first, second, texture = stripes.copy(), stripes.copy(), images[0][OBJECT]
    first[OBJECT], second[MOVED] = texture, texture
    flow, back_flow = (np.empty((180, 240, 2), np.float32) for _ in range(2))
    flow[:], back_flow[:] = motion, np.negative(motion)
    flow[OBJECT] = OBJECT_PX
    before, is_near = back_flow.copy(), np.zeros((180, 240), bool)
    is_near[tuple(slice(side.start - RIM_PX, side.stop + RIM_PX) for side in MOVED)] = True
    is_contradicted = targets_inside(back_flow) & ~consistent_pixels(back_flow, flow)  # covered by the object
    search_again((first, second), flow, back_flow)
    assert share_of_right(back_flow, MOVED, np.negative(OBJECT_PX)) > 0.5
    stays = ~is_near & ~is_contradicted
    np.testing.assert_array_equal(back_flow[stays], before[stays])


def test_a_guess_stays_as_it_is(images, flows):
    guess = flows[0].copy()
    DisFlow().search_from(Direction(*images, flows[0]), guess)
    np.testing.assert_array_equal(guess, flows[0])


def test_in_flat_areas_nothing_changes(flows):
    flow, back_flow = flows
    back_flow[MOVED] = np.negative(BACKGROUND_PX)
    before = back_flow.copy()
    noise = np.random.default_rng(0).integers(100, 104, (2, 180, 240)).astype(np.uint8)
    search_again(noise, flow, back_flow)
    np.testing.assert_array_equal(back_flow, before)


def test_an_object_that_both_directions_have_lost_is_found_by_features(images):
    first, second = draw_texture(1), np.roll(draw_texture(1), BACKGROUND_PX, axis=(1, 0))
    far, rows = (-100, 0), slice(60, 110)  # farther than the margin around a lost area
    first[rows, 160:210], second[rows, 60:110] = images[0][OBJECT], images[0][OBJECT]
    flow, back_flow = (np.empty((180, 240, 2), np.float32) for _ in range(2))
    flow[:], back_flow[:] = BACKGROUND_PX, np.negative(BACKGROUND_PX)
    flow[rows, 160:210], back_flow[rows, 60:110] = (0, 12), (0, 12)
    search_again((first, second), flow, back_flow)
    assert share_of_right(flow, (rows, slice(160, 210)), far) > 0.95
    assert share_of_right(back_flow, (rows, slice(60, 110)), np.negative(far)) > 0.95


def test_without_contradictions_or_without_matches_the_guess_from_features_is_the_flow(images, flows):
    still = np.zeros((180, 240, 2), np.float32)
    directions = Direction(*images, still), Direction(*images[::-1], still)
    contradicting = [Direction(*np.zeros((2, 180, 240), np.uint8), np.full_like(flow, 30)) for flow in flows]
    for pair in (directions, contradicting):
        halves = halve_both(*pair)
        guess, back_guess = guess_from_features(halves)
        np.testing.assert_array_equal(guess, halves.forth.flow)
        np.testing.assert_array_equal(back_guess, halves.back.flow)
    assert halves.wrong.any()


def test_the_inverse_of_the_flow_back_leads_back(flows):
    flow, back_flow = flows
    assert share_of_right(invert_flow(back_flow, np.zeros_like(flow)), OBJECT, OBJECT_PX) == 1


def test_the_nearest_chosen_flow_is_spread(flows):
    flow, _ = flows
    chosen = np.ones((180, 240), bool)
    chosen[80:90, 130:140] = False
    wrong = np.where(chosen[..., None], flow, np.float32(50))
    np.testing.assert_array_equal(spread_flow(wrong, chosen), flow)
    np.testing.assert_array_equal(spread_flow(wrong, np.zeros_like(chosen)), wrong)


@pytest.mark.parametrize("height", [16, 121, 180])
def test_frames_of_other_sizes_may_follow_each_other(images, height):
    dis_flow = DisFlow()
    colors = [np.repeat(image[..., None], 3, axis=2) for image in images]
    for rows in (180, height, 180):
        assert [flow.shape for flow in dis_flow(*(frame[:rows] for frame in colors))] == [(rows, 240, 2)] * 2
