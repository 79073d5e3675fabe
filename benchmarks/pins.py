"""Measure what pins mend: hand-placed points that slip are pinned, and the other points of the object are measured.

python benchmarks/pins.py --points FOLDER RUN_FOLDER [RUN_FOLDER ...]

FOLDER holds CLIP.npz (TAP-Vid). Of the tracks of the object that begin in the first frame, the three that slip most are
pinned in their first frame and in every fourth frame that shows them. The run is copied and trained on for --budget
seconds, as `train.py --resume COPY --pins FILE` does. Printed per clip: mean distance, in pixels of working size, of
the pinned points and of the others from where they belong, before and after, and the largest change for the worse of
any other point.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

import media
from benchmarks.points import PlacedTracks, first_frames
from benchmarks.tracks import PointFolder, follow_queries, to_working
from command_line import UserError, run_script
from evaluation.track_metrics import Floats, Indices

if TYPE_CHECKING:
    from rendering.trained_run import TrainedRun

PINS = 3  # Points that are pinned.
PINNED_EVERY = 4  # Frames between the places of a pin.


def main(arguments: list[str] | None = None) -> None:
    """Pin, train on and measure each run, and print one table."""
    options = make_pins_parser().parse_args(arguments)
    points = PointFolder(options.points)
    rows = [measure_pins(folder, points, options.budget, options.output) for folder in options.runs]
    print("| clip | pinned points, px | after | other points, px | after | change | worst change of one, px |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def make_pins_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders that train.py wrote")
    flags.add_argument("--points", type=Path, required=True, help="folder with the points of the clips")
    flags.add_argument("--budget", type=float, default=15.0, help="seconds of training (default: 15)")
    flags.add_argument("--output", type=Path, required=True, help="folder for the copies of the runs")
    return flags


def measure_pins(folder: Path, points: PointFolder, budget_s: float, output: Path) -> str:
    """Return the row of one run. Raises UserError if there are no points of its clip."""
    from rendering.trained_run import open_run
    from training.runs import Corrections, resume_run

    run = open_run(folder)
    name = run.clip.folder.resolve().name
    tracks = points.tracks(name)
    if tracks is None:
        raise UserError(f"{points.folder}: has no {name}.npz")
    tracks = choose_tracks(first_frames(tracks, len(run.clip)))
    before, layers = measure_errors(run, tracks)
    chosen = np.flatnonzero(layers == 0)
    worst = chosen[np.argsort(-np.nanmean(before[chosen], axis=1))[:PINS]]
    others = np.setdiff1d(chosen, worst)
    copy = media.make_folder(output) / f"{name}_pinned"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    media.write_text(copy / "pins.json", json.dumps({"pins": [make_pin(run, tracks, index) for index in worst]}))
    trainer = resume_run(copy, budget_s, corrections=Corrections(pins=copy / "pins.json"))
    trainer.run(with_evaluation=False)
    after, _ = measure_errors(open_run(copy), tracks)
    means = [float(np.nanmean(errors[indices])) for indices in (worst, others) for errors in (before, after)]
    change = np.nanmean(after[others], axis=1) - np.nanmean(before[others], axis=1)
    cells = [*(f"{mean:.2f}" for mean in means), f"{100 * (means[3] / means[2] - 1):+.0f} %", f"{change.max():+.2f}"]
    return f"| {name} | {' | '.join(cells)} |"


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


def make_pin(run: "TrainedRun", tracks: PlacedTracks, index: int) -> dict:
    """Return a pin at the places of a track in every fourth frame that shows it, as JSON."""
    places = to_working(run.clip, tracks.positions[index])
    frames = [t for t in range(0, len(places), PINNED_EVERY) if tracks.is_visible[index, t]]
    return {"layer": 0, "places": [[t, *places[t].tolist()] for t in frames]}


if __name__ == "__main__":
    run_script(main)
