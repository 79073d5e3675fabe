"""Compare where paint goes in finished runs with points that people placed by hand on the same clips.

python benchmarks/tracks.py --points FOLDER RUN_FOLDER [RUN_FOLDER ...]

FOLDER holds CLIP.npz or tapvid_davis.pkl (TAP-Vid) and CLIP.json (BADJA). A point goes through the layer that its place
shows most, or through an object close beside it. Printed per clip:
- of TAP-Vid, in percent: average Jaccard, delta (all, on the object, on the background) and occlusion accuracy; in
  pixels, how far the places of one point in the atlas lie apart;
- of BADJA, in percent: PCK-T, PCK-T of the joints that no annotated frame has hidden so far, and the share of joints
  within 3 pixels of 854 x 480;
- of BADJA's joints on legs, followed from each annotated frame to the next one (about five frames later): the share
  that is right by the limit of PCK-T, in percent, and the median distance in pixels of 854 x 480.
The column "still" is what a point that never moves gets.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

import media
from benchmarks.points import (
    BADJA_JOINTS,
    BADJA_LEGS,
    PlacedJoints,
    PlacedTracks,
    first_frames,
    read_joints,
    read_tap_vid_pickle,
    read_tracks,
)
from command_line import UserError, run_script
from evaluation.track_metrics import (
    Flags,
    Floats,
    Indices,
    correct_joints,
    find_visible_so_far,
    percentage,
    tap_vid_metrics,
    uv_spread_px,
)

if TYPE_CHECKING:
    from media.clip import Clip
    from rendering.frames import Frame
    from rendering.trained_run import TrainedRun

TAP_VID_SIZE = (256, 256)  # Width and height of the picture in whose pixels TAP-Vid measures.
PCK_SIZE, STRICT_SIZE = (512, 320), (854, 480)  # The same of BADJA, and of the stricter measure.
STRICT_PX = 3.0
COLUMNS = {  # heading of each metric
    "aj": "AJ",
    "aj_still": "AJ, still",
    "delta": "delta",
    "delta_object": "delta, object",
    "delta_background": "delta, background",
    "oa": "OA",
    "uv_spread_px": "spread in the atlas, px",
    "pck": "PCK-T",
    "pck_not_hidden": "PCK-T, not hidden so far",
    "pck_still": "PCK-T, still",
    "within_3_px": "within 3 px, %",
    "legs_pck": "legs to the next frame, PCK",
    "legs_px": "legs to the next frame, px",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure each run whose clip has points, and print one table."""
    options = make_tracks_parser().parse_args(arguments)
    from rendering.trained_run import open_run

    points = PointFolder(options.points)
    rows: dict[str, dict[str, float]] = {}
    for folder in options.runs:
        run = open_run(folder)
        name = run.clip.folder.resolve().name
        if metrics := measure_points(run, points):
            rows[name if name not in rows else str(folder)] = metrics
            print(f"{folder}: measured", file=sys.stderr, flush=True)
        else:
            print(f"{folder}: {options.points} has no points of the clip {name}, left out", file=sys.stderr)
    if not rows:
        raise UserError(f"{options.points}: has no points of any of these runs' clips; expected CLIP.npz or CLIP.json")
    print(points_table(rows), end="")
    if options.json:
        media.write_text(options.json, json.dumps(rows, indent=2) + "\n")


def make_tracks_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders that train.py wrote")
    flags.add_argument("--points", type=Path, required=True, help="folder with the points of the clips")
    flags.add_argument("--json", type=Path, help="write the figures into this file, too")
    return flags


class PointFolder:
    """The points of clips in a folder: CLIP.npz, CLIP.json and tapvid_davis.pkl."""

    def __init__(self, folder: Path):
        """Raises UserError if there is no such folder or a file in it cannot be read."""
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; --points takes one with CLIP.npz or CLIP.json")
        self.folder = folder
        self.official: dict[str, PlacedTracks] = {}
        for path in sorted(folder.glob("*.pkl")):
            self.official |= read_tap_vid_pickle(path)

    def tracks(self, clip: str) -> PlacedTracks | None:
        """Return the tracks of a clip, or None if there are none. Raises UserError if a file cannot be read."""
        path = self.folder / f"{clip}.npz"
        return read_tracks(path) if path.is_file() else self.official.get(clip)

    def joints(self, clip: str) -> PlacedJoints | None:
        """Return the joints of a clip, or None if there are none. Raises UserError if a file cannot be read."""
        path = self.folder / f"{clip}.json"
        return read_joints(path) if path.is_file() else None


def measure_points(run: "TrainedRun", points: PointFolder) -> dict[str, float]:
    """Return the metrics of all points of a run's clip; nothing if there are no points of it."""
    name = run.clip.folder.resolve().name  # Benchmarks link clips under other names.
    tracks, joints = points.tracks(name), points.joints(name)
    result = measure_tracks(run, first_frames(tracks, len(run.clip))) if tracks is not None else {}
    return result | (measure_joints(run, joints) if joints is not None else {})


def measure_tracks(run: "TrainedRun", placed: PlacedTracks) -> dict[str, float]:
    """Return the metrics of TAP-Vid, and how far one point's places in the atlas lie apart; nothing without points."""
    if not len(placed.queries):
        return {}
    count, start_frames = placed.positions.shape[1], placed.queries[:, 0].astype(int)
    followed = follow_queries(run, list(range(count)), start_frames, placed.queries[:, 1:], placed.positions)
    counts = np.arange(count)[None] != start_frames[:, None]
    still = np.repeat(placed.queries[:, None, 1:], count, axis=1)

    def measure(predicted: Floats, seen: Flags, chosen: Flags) -> dict[str, float]:
        guesses, truth = (to_pixels(values[chosen], TAP_VID_SIZE) for values in (predicted, placed.positions))
        return tap_vid_metrics(guesses, seen[chosen], truth, placed.is_visible[chosen], counts[chosen])

    everything = np.ones(len(placed.queries), bool)
    result = measure(followed.positions, followed.is_visible, everything)
    result["aj_still"] = measure(still, np.ones_like(followed.is_visible), everything)["aj"]
    if placed.is_object is not None:
        result["delta_object"] = measure(followed.positions, followed.is_visible, placed.is_object)["delta"]
        result["delta_background"] = measure(followed.positions, followed.is_visible, ~placed.is_object)["delta"]
    spread = uv_spread_px(followed.true_uv, placed.is_visible, np.array(run.px_per_uv)[followed.layers])
    result["uv_spread_px"] = float(np.mean(spread[np.isfinite(spread)])) if np.isfinite(spread).any() else float("nan")
    return drop_undefined(result)


def measure_joints(run: "TrainedRun", placed: PlacedJoints) -> dict[str, float]:
    """Return PCK-T of BADJA and the share of joints within STRICT_PX; the queries are the first frame's joints.

    PCK-T also counts joints that the first frame hides; "pck_not_hidden" is that of the joints that are visible in all
    annotated frames so far. Returns nothing if the clip has fewer than two of the frames.
    """
    chosen = [index for index, t in enumerate(placed.frames) if t < len(run.clip)]
    if len(chosen) < 2:
        return {}
    truth, seen = placed.positions[chosen], placed.is_visible[chosen]
    start_frames = np.zeros(truth.shape[1], int)
    times = [placed.frames[index] for index in chosen]
    followed = follow_queries(run, times, start_frames, truth[0], truth.swapaxes(0, 1))
    predicted, still = followed.positions.swapaxes(0, 1)[1:], np.repeat(truth[:1], len(truth) - 1, axis=0)
    next_positions = follow_to_next(run, times, truth)
    legs = seen[:-1] & seen[1:] & np.isin(BADJA_JOINTS, BADJA_LEGS)
    areas = [mask_area(run.clip, t) for t in times[1:]]

    def pck(joints: Floats, counts: Flags) -> float:
        right = correct_joints(to_pixels(joints, PCK_SIZE), to_pixels(truth[1:], PCK_SIZE), counts, areas)
        return percentage(right.sum(), len(right))

    def distance_px(joints: Floats) -> Floats:
        return np.linalg.norm(to_pixels(joints, STRICT_SIZE) - to_pixels(truth[1:], STRICT_SIZE), axis=-1)

    near = (distance_px(predicted) < STRICT_PX)[seen[1:]]
    return drop_undefined(
        {
            "pck": pck(predicted, seen[1:]),
            "pck_not_hidden": pck(predicted, find_visible_so_far(seen)[1:]),
            "pck_still": pck(still, seen[1:]),
            "within_3_px": percentage(near.sum(), len(near)),
            "legs_pck": pck(next_positions, legs),
            "legs_px": float(np.median(distance_px(next_positions)[legs])) if legs.any() else float("nan"),
        }
    )


def follow_to_next(run: "TrainedRun", times: list[int], positions: Floats) -> Floats:
    """Follow points from each of A frames to the next one. times: numbers of the frames.

    positions (A, N, 2): of N points in these frames. Returns positions in the next frames, (A - 1, N, 2).
    """
    steps, count = positions.shape[0] - 1, positions.shape[1]
    start_frames = np.repeat(np.arange(steps), count)
    truth = np.tile(positions.swapaxes(0, 1), (steps, 1, 1))
    followed = follow_queries(run, times, start_frames, positions[:-1].reshape(-1, 2), truth)
    return followed.positions[np.arange(steps * count), start_frames + 1].reshape(steps, count, 2)


def drop_undefined(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics without those that are not defined for these points."""
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def mask_area(clip: "Clip", t: int) -> float:
    """Return the area of the clip's true mask in frame t, of its mask if there are no true ones, in PCK_SIZE pixels."""
    if clip.true_masks is not None:
        mask = media.read_mask(clip.true_masks[t])
    else:
        merged = clip.read_merged_mask(t)
        if merged is None:
            raise UserError(f"{clip.folder}: has no masks, by whose area PCK-T is measured; put them beside the frames")
        mask = merged
    return float((media.resize_labels(mask, *PCK_SIZE) > 127).sum())


@dataclass(frozen=True)
class FollowedPoints:
    """N points through T frames. Positions are shares of width and height."""

    positions: Floats  # (N, T, 2)
    is_visible: Flags  # (N, T)
    layers: Indices  # (N,) layer that each point goes through
    true_uv: Floats  # (N, T, 2) where that layer's mapping takes the hand-placed positions


def follow_queries(
    run: "TrainedRun", times: list[int], start_frames: Indices, starts: Floats, truth: Floats
) -> FollowedPoints:
    """Follow points through frames from where they are given. One frame is in memory at a time.

    times: numbers of the frames. start_frames (N,): index in `times` at which each point is given. starts (N, 2):
    positions there. truth (N, T, 2): hand-placed positions.
    """
    from rendering.frames import render_frame
    from rendering.point_tracks import Points, follow_in_frame, pick_in_frame, sample_at

    def render(index: int) -> "Frame":
        return render_frame(run.model, run.clip, times[index], run.full_range, with_colors=False)

    order = np.argsort(start_frames, kind="stable")  # of the points as they are picked, frame by frame
    places = to_working(run.clip, starts)
    picked = [pick_in_frame(render(index), places[start_frames == index]) for index in np.unique(start_frames)]
    points = Points.join(picked).select(np.argsort(order))
    layers = points.layers
    positions, true_uv = np.zeros((2, *truth.shape))
    is_visible = np.zeros(truth.shape[:2], bool)
    in_pixels = to_working(run.clip, truth)
    for index in range(len(times)):
        frame = render(index)
        here, is_visible[:, index] = follow_in_frame(frame, points)
        positions[:, index] = (here + 0.5) / np.array([run.clip.width, run.clip.height])
        for layer in np.unique(layers):
            true_uv[layers == layer, index] = sample_at(frame.uv[layer], in_pixels[layers == layer, index])
    return FollowedPoints(positions, is_visible, layers, true_uv)


def to_working(clip: "Clip", shares: Floats) -> Floats:
    """Convert shares of width and height (..., 2) to pixels of working size; the center of the first pixel is 0."""
    return to_pixels(shares, (clip.width, clip.height)) - 0.5


def to_pixels(shares: Floats, size: tuple[int, int]) -> Floats:
    """Convert shares of width and height (..., 2) to pixels of a picture of (width, height), from its corner."""
    return shares * np.array(size)


def points_table(rows: dict[str, dict[str, float]]) -> str:
    """Return the metrics of all clips, and their means, as a table in Markdown."""
    names = [name for name in COLUMNS if any(name in row for row in rows.values())]
    means = {name: float(np.mean([row[name] for row in rows.values() if name in row])) for name in names}
    lines = ["| clip | " + " | ".join(COLUMNS[name] for name in names) + " |", "|" + "---|" * (len(names) + 1)]
    for clip, row in [*rows.items(), *([("mean", means)] if len(rows) > 1 else [])]:
        digits = {name: 2 if name == "uv_spread_px" else 1 for name in names}
        cells = [f"{row[name]:.{digits[name]}f}" if name in row else "-" for name in names]
        lines.append(f"| {clip} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main)
