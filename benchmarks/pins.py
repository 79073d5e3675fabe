"""Measure what pins mend: hand-placed points that slip are pinned, and the other points of the object are measured.

python benchmarks/pins.py --points FOLDER RUN_FOLDER [RUN_FOLDER ...]

FOLDER holds CLIP.npz (TAP-Vid). Three tracks of the object are drawn that begin in the first frame and slip, and are
pinned in their first frame and in every fourth frame that shows them; this is done CHOICES times with other tracks. The
runs are not changed, and not trained on, which moves points by hundredths of a pixel only. Printed per clip: mean
distance, in pixels of working size, of the pinned points and of the others from where they belong, before and after; in
how many choices the others gained; and by how much the point lost that lost most, in the middle of all choices.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.points import PlacedTracks, first_frames
from benchmarks.tracks import PointFolder, follow_queries, to_working
from command_line import UserError, run_script
from evaluation.track_metrics import Floats, Indices

if TYPE_CHECKING:
    from alignment.pins import Pin
    from rendering.trained_run import TrainedRun

PINS = 3  # Points that are pinned.
PINNED_EVERY = 4  # Frames between the places of a pin.
LEAST_SLIP_PX = 1.5  # Mean distance from which on a point counts as slipping.
CHOICES = 6  # How many times three points are drawn.


def main(arguments: list[str] | None = None) -> None:
    """Pin and measure each run, and print one table."""
    options = make_pins_parser().parse_args(arguments)
    points = PointFolder(options.points)
    print("| clip | pinned points, px | after | other points, px | after | change | choices that gained | worst, px |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in options.runs:
        print(measure_pins(folder, points), flush=True)


def make_pins_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders that train.py wrote")
    flags.add_argument("--points", type=Path, required=True, help="folder with the points of the clips")
    return flags


def measure_pins(folder: Path, points: PointFolder) -> str:
    """Return the row of one run. Raises UserError if there are no points of its clip."""
    from grids.model import GridModel
    from grids.pins import fit_to_pins
    from rendering.trained_run import open_run

    run = open_run(folder, device="cpu")
    name = run.clip.folder.resolve().name
    placed = points.tracks(name)
    if placed is None:
        raise UserError(f"{points.folder}: has no {name}.npz")
    assert isinstance(run.model, GridModel)
    tracks = choose_tracks(first_frames(placed, len(run.clip)))
    state = copy.deepcopy(run.model.state_dict())
    before, layers = measure_errors(run, tracks)
    on_object = np.flatnonzero(layers == 0)
    slipping = on_object[np.nanmean(before[on_object], axis=1) > LEAST_SLIP_PX]
    rng = np.random.default_rng(0)
    results = []
    for _ in range(CHOICES):
        chosen = rng.choice(slipping if len(slipping) > PINS else on_object, PINS, replace=False)
        others = np.setdiff1d(on_object, chosen)
        run.model.load_state_dict(state)
        fit_to_pins(run.model, [make_pin(run, tracks, index) for index in chosen])
        after, _ = measure_errors(run, tracks)
        change = np.nanmean(after[others], axis=1) - np.nanmean(before[others], axis=1)
        means = [np.nanmean(errors[at]) for at in (chosen, others) for errors in (before, after)]
        results.append([*means, change.max()])
    means, worst = np.mean(results, axis=0), np.median([row[4] for row in results])
    gained = sum(row[3] < row[2] for row in results)
    cells = [*(f"{mean:.2f}" for mean in means[:4]), f"{100 * (means[3] / means[2] - 1):+.0f} %"]
    return f"| {name} | {' | '.join(cells)} | {gained} of {CHOICES} | {worst:+.2f} |"


def choose_tracks(tracks: PlacedTracks) -> PlacedTracks:
    """Return the tracks of the object that begin in the first frame."""
    chosen = tracks.queries[:, 0] == 0
    if tracks.is_object is not None:
        chosen &= tracks.is_object
    return tracks.choose(chosen)


def measure_errors(run: "TrainedRun", tracks: PlacedTracks) -> tuple[Floats, Indices]:
    """Return the distance (N, T), in pixels of working size, from where each point belongs, and its layer, (N,).

    It is NaN in the frames that do not show the point, and in the frame in which it is given.
    """
    count, starts = tracks.positions.shape[1], tracks.queries[:, 0].astype(int)
    followed = follow_queries(run, list(range(count)), starts, tracks.queries[:, 1:], tracks.positions)
    difference = to_working(run.clip, followed.positions) - to_working(run.clip, tracks.positions)
    errors = np.where(tracks.is_visible, np.linalg.norm(difference, axis=-1), np.nan)
    errors[np.arange(len(errors)), starts] = np.nan
    return errors, followed.layers


def make_pin(run: "TrainedRun", tracks: PlacedTracks, index: int) -> "Pin":
    """Return a pin at the places of a track in every fourth frame that shows it."""
    from alignment.pins import Pin

    frames = np.array([t for t in range(0, len(tracks.is_visible[index]), PINNED_EVERY) if tracks.is_visible[index, t]])
    return Pin(0, frames, to_working(run.clip, tracks.positions[index, frames]))


if __name__ == "__main__":
    run_script(main)
