"""Metrics of hand-placed points, and the files that hold such points."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import tracks
from benchmarks.points import first_frames, read_joints, read_tap_vid_pickle, read_tracks
from benchmarks.tracks import FollowedPoints, PointFolder, follow_to_next, measure_points, points_table
from benchmarks.tracks import main as print_tracks
from command_line import UserError
from evaluation.track_metrics import correct_joints, find_visible_so_far, tap_vid_metrics, uv_spread_px
from rendering.frames import Frame
from rendering.point_tracks import Points, follow_points, pick_in_frame

ALL = np.ones((1, 4), bool)


def metrics_of(error_px, is_visible=ALL, is_truly_visible=ALL, counts=ALL):
    truth = np.full((1, 4, 2), 100.0)
    return tap_vid_metrics(truth + [error_px, 0], is_visible, truth, is_truly_visible, counts)


def test_points_in_their_place_get_all_and_far_points_nothing():
    assert metrics_of(0.0) == {"aj": 100, "delta": 100, "oa": 100}
    assert metrics_of(50.0) == {"aj": 0, "delta": 0, "oa": 100}


def test_a_point_within_four_of_the_five_thresholds_gets_four_fifths():
    result = metrics_of(1.5)
    assert result["delta"] == pytest.approx(80)
    assert result["aj"] == pytest.approx(80)


def test_an_occluded_point_that_is_called_visible_costs_jaccard_and_occlusion_accuracy():
    hidden = np.array([[True, True, True, False]])
    result = metrics_of(0.0, is_truly_visible=hidden)
    assert result["oa"] == pytest.approx(75)
    assert result["delta"] == pytest.approx(100)  # of the visible ones alone
    assert result["aj"] == pytest.approx(75)  # 3 hits, 1 false alarm


def test_a_visible_point_that_is_called_hidden_is_a_miss():
    assert metrics_of(0.0, is_visible=np.array([[True, True, False, False]]))["aj"] == pytest.approx(50)


def test_frames_that_do_not_count_change_nothing():
    counts = np.array([[True, False, True, True]])
    assert metrics_of(0.0, is_visible=counts, counts=counts) == {"aj": 100, "delta": 100, "oa": 100}


def test_a_joint_is_right_within_a_fifth_of_the_animal_s_size():
    truth = np.zeros((1, 3, 2))
    guess = truth + np.array([[19.0, 0], [21.0, 0], [0, 0]])
    right = correct_joints(guess, truth, np.array([[True, True, False]]), [100.0**2])
    assert right.tolist() == [True, False]


def test_a_joint_that_was_hidden_once_is_no_longer_visible_so_far():
    seen = np.array([[True, True, False], [True, False, True], [True, True, True]])
    assert find_visible_so_far(seen).tolist() == [[True, True, False], [True, False, False], [True, False, False]]


def test_a_place_that_stands_twice_in_the_atlas_has_a_spread():
    uv = np.array([[[0, 0], [0, 0], [0.3, 0.4]], [[0.1, 0.1], [0.1, 0.1], [9, 9]]])
    seen = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(uv_spread_px(uv, seen, np.array([30.0, 30.0])), [0.5 * 30 / 3, 0])


def moving_frame(t):
    """A frame of one object on a background, both without displacement but for 2 pixels of the object per frame."""
    y, x = np.mgrid[:24, :40].astype(np.float32)
    alpha = ((x >= 10 + 2 * t) & (x < 20 + 2 * t) & (y > 4) & (y < 16)).astype(np.float32)
    return Frame(t, np.stack([np.dstack((x - 2 * t, y)), np.dstack((x, y))]) / 20 - 1, alpha[None], np.zeros(0))


def test_a_point_follows_the_layer_that_its_pixel_shows():
    frames = [moving_frame(t) for t in range(5)]
    starts = np.array([[12.0, 8], [22.0, 8], [3.0, 20]])
    points = Points.join([pick_in_frame(frames[t], starts[chosen]) for t, chosen in ((0, [0, 1]), (2, [2]))])
    assert points.layers.tolist() == [0, 1, 1]
    positions, is_visible = follow_points(frames, points)
    np.testing.assert_allclose(positions[0], [[12 + 2 * t, 8] for t in range(5)], atol=1e-3)
    np.testing.assert_allclose(positions[1:, 4], [[22, 8], [3, 20]], atol=1e-3)
    assert is_visible.tolist() == [[True] * 5, [True, True, False, False, False], [True] * 5]


@pytest.mark.parametrize(("x", "y", "outside"), [(19.5, 9, (1, 0)), (9.5, 9, (-1, 0)), (15, 4.5, (0, -1))])
def test_a_point_close_beside_an_outline_follows_the_object(x, y, outside):
    start, farther = (np.array([[x, y]]) + distance_px * np.array(outside) for distance_px in (1.4, 1.6))
    points = pick_in_frame(moving_frame(0), start)
    assert points.layers.tolist() == [0]
    assert pick_in_frame(moving_frame(0), farther).layers.tolist() == [1]
    positions, is_visible = follow_points([moving_frame(t) for t in range(5)], points)
    assert is_visible.tolist() == [[True] * 5]
    moved = start + [(2 * t, 0) for t in range(5)]
    np.testing.assert_allclose(positions[0], moved, atol=0.02)  # It keeps its distance to the outline.


def test_a_point_beside_an_object_is_hidden_where_the_object_is():
    points = pick_in_frame(moving_frame(0), np.array([[20.5, 9]]))
    gone = replace(moving_frame(1), alpha=np.zeros((1, 24, 40), np.float32))
    assert follow_points([moving_frame(0), gone], points)[1].tolist() == [[True, False]]


def test_a_point_beside_an_object_stays_visible_where_the_outline_wavers():
    points = pick_in_frame(moving_frame(0), np.array([[20.5, 9]]))
    narrower, far_narrower = (replace(moving_frame(0), alpha=moving_frame(0).alpha.copy()) for _ in range(2))
    narrower.alpha[:, :, 19:] = 0
    far_narrower.alpha[:, :, 16:] = 0
    assert follow_points([narrower, far_narrower], points)[1].tolist() == [[True, False]]


def test_a_point_beside_two_objects_follows_the_nearer_one():
    one = moving_frame(0)
    farther = np.roll(one.alpha, 12, axis=2)  # from column 22 on
    frame = Frame(0, np.concatenate((one.uv[:1], one.uv)), np.concatenate((farther, one.alpha)), np.zeros(0))
    assert pick_in_frame(frame, np.array([[20.4, 9], [20.6, 9]])).layers.tolist() == [1, 0]


def test_a_point_beside_a_thin_and_half_transparent_part_follows_the_object():
    alpha = np.zeros((1, 24, 40), np.float32)
    alpha[0, :, 12] = 0.7
    frame = replace(moving_frame(0), alpha=alpha)
    starts = np.array([[12 + distance, 9] for distance in (0, 0.4, 0.8, 1.2, 1.6)])
    assert pick_in_frame(frame, starts).layers.tolist() == [0] * 5


def test_points_are_followed_from_each_frame_to_the_next_one(monkeypatch):
    positions = np.random.default_rng(0).random((4, 3, 2))

    def follow_queries(_, times, start_frames, starts, truth):
        np.testing.assert_array_equal(truth[np.arange(len(starts)), start_frames], starts)
        steps = np.arange(len(times)) - start_frames[:, None]
        return FollowedPoints(starts[:, None] + steps[..., None] * [0.1, 0.2], None, None, None)

    monkeypatch.setattr(tracks, "follow_queries", follow_queries)
    np.testing.assert_allclose(follow_to_next(None, [0, 5, 10, 16], positions), positions[:-1] + [0.1, 0.2])


def write_tracks(folder, **changes):
    """Write points of a clip "demo" of 48 x 32 pixels, one still on the background and one that comes later."""
    values = {
        "query": np.array([[0, 24, 16], [4, 12, 8]], np.float32),
        "tracks": np.broadcast_to(np.array([[[24, 16]], [[12, 8]]], np.float32), (2, 6, 2)),
        "occluded": np.zeros((2, 6), bool),
        "is_fg": np.array([True, False]),
        "w": 48,
        "h": 32,
    }
    np.savez(folder / "demo.npz", **(values | changes))


def test_points_of_a_clip_are_shares_of_its_size_and_end_with_it(tmp_path):
    write_tracks(tmp_path)
    placed = read_tracks(tmp_path / "demo.npz")
    assert placed.queries.tolist() == [[0, 0.5, 0.5], [4, 0.25, 0.25]]
    short = first_frames(placed, 3)
    assert short.positions.shape == (1, 3, 2)
    assert short.is_object.tolist() == [True]


def test_the_official_file_gives_a_query_every_fifth_frame_of_a_visible_point(tmp_path):
    occluded = np.zeros((2, 12), bool)
    occluded[1, :7] = True
    clips = {"demo": {"points": np.zeros((2, 12, 2)), "occluded": occluded, "video": np.zeros((1, 1))}}
    (tmp_path / "tapvid_davis.pkl").write_bytes(pickle.dumps(clips))
    placed = read_tap_vid_pickle(tmp_path / "tapvid_davis.pkl")["demo"]
    assert placed.queries[:, 0].tolist() == [0, 5, 10, 10]
    assert PointFolder(tmp_path).tracks("demo") is not None
    assert PointFolder(tmp_path).tracks("other") is None


class RunsCode:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"demo": RunsCode()}))
    with pytest.raises(UserError, match=r"evil\.pkl: no file of TAP-Vid's points .*print"):
        read_tap_vid_pickle(path)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("demo.npz", b"nothing", read_tracks),
        ("demo.json", b"[{}]", read_joints),
        ("demo.json", b"{", read_joints),
        ("a.pkl", b"nothing", read_tap_vid_pickle),
    ],
)
def test_a_file_that_holds_no_points_is_named(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


def test_points_of_a_finished_run_are_measured(finished_run, tmp_path):
    from rendering.trained_run import open_run

    run = open_run(finished_run)
    write_tracks(tmp_path)
    rows = [
        {
            "image_path": f"a/{t:05d}.jpg",
            "joints": np.full((37, 2), [540, 960]).tolist(),
            "visibility": [t != 1] * 37,
        }
        for t in (0, 1, 3)
    ]
    rows[2]["joints"] = np.full((37, 2), [0, 0]).tolist()  # where nobody finds them
    rows[1]["visibility"][8] = True  # the only joint that the second frame shows
    (tmp_path / "demo.json").write_text(json.dumps(rows))
    (tmp_path / "demo.npz").rename(tmp_path / f"{run.clip.folder.name}.npz")
    (tmp_path / "demo.json").rename(tmp_path / f"{run.clip.folder.name}.json")
    result = measure_points(run, PointFolder(tmp_path))
    assert result["aj_still"] == 100  # These points do not move.
    assert result["pck_still"] == pytest.approx(100 / 21)  # the one joint of the second frame
    assert {"aj", "delta", "oa", "uv_spread_px", "pck", "pck_not_hidden", "within_3_px", "legs_pck"} <= set(result)
    assert "| demo |" in points_table({"demo": result})


def test_a_folder_without_points_of_the_clip_is_one_line(finished_run, tmp_path):
    with pytest.raises(UserError, match="has no points of any of these runs' clips"):
        print_tracks(["--points", str(tmp_path), str(finished_run)])
