"""Measure new frames of a finished run: train the first frames of a clip, and add the others with extend_run.py.

python benchmarks/extension.py --clips FOLDER --clip_names lucia --trained 40
python benchmarks/extension.py --scenes bend pan --trained 50 --frames 80

With --follow the new frames have no masks, so the object is followed.

Printed: seconds of extend_run.py for each new frame, PSNR and J of the new frames (with true masks), for scenes also
the distance of marks from where they belong, and the same of a run of all frames. About 4 minutes for a clip on two
cores. Nothing else should run meanwhile.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

import media
from benchmarks.data import prepare_clip, prepare_scene
from benchmarks.long_clip import train, watch_script
from benchmarks.measure import placement_errors
from benchmarks.run import find_clips
from command_line import run_script
from evaluation.image_metrics import psnr
from evaluation.mask_metrics import iou
from rendering.frame_store import temporary_frame_store
from rendering.frames import render_frames
from rendering.trained_run import TrainedRun, open_run
from scenes.catalogue import SCENES
from scenes.scene import Scene


def main(arguments: list[str] | None = None) -> None:
    """Measure clips and scenes, and print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--clips", type=Path, help="folder of clips")
    flags.add_argument("--clip_names", nargs="*", help="use only these clips of the folder")
    flags.add_argument("--scenes", nargs="*", default=[], choices=list(SCENES), help="names of exact scenes")
    flags.add_argument("--size", nargs=2, type=int, default=[768, 432], help="width and height of the scenes")
    flags.add_argument("--frames", type=int, default=80, help="frames of the scenes")
    flags.add_argument("--trained", type=int, default=50, help="frames that are trained before others are added")
    flags.add_argument("--seconds", type=float, default=60, help="of training")
    flags.add_argument("--follow", action="store_true", help="remove the masks of the new frames first")
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"))
    options = flags.parse_args(arguments)
    data = (options.output / "extension").resolve()
    clips: list[tuple[Path, Scene | None]] = [
        (prepare_clip(path, data / "clips"), None) for path in find_clips(options.clips, options.clip_names)
    ]
    for name in options.scenes:
        clip = prepare_scene(name, tuple(options.size), options.frames, data)
        clips.append((clip, SCENES[name](*options.size, options.frames)))
    print("| clip | run | seconds per new frame | PSNR, dB | J | placement, mean (median), px |")
    print("|---|---|---|---|---|---|")
    for clip, scene in clips:
        for row in measure(clip, scene, options, data / "runs" / clip.name):
            print(row, flush=True)


def measure(clip: Path, scene: Scene | None, options: argparse.Namespace, results: Path) -> list[str]:
    """Return the rows of a clip: of the extended run, and of a run of all frames."""
    shutil.rmtree(results, ignore_errors=True)
    frames = media.list_images(clip)
    whole, _ = train(clip, len(frames), options.seconds, results / "whole")
    copy = results / clip.name
    for suffix in ("", "_maskrcnn", "_flow", "_gt"):
        if (source := clip.with_name(clip.name + suffix)).is_dir():
            shutil.copytree(source, copy.with_name(copy.name + suffix))
    if options.follow:
        for path in frames[options.trained :]:
            copy.with_name(f"{copy.name}_maskrcnn").joinpath(f"{path.stem}.png").unlink()
    first, _ = train(copy, options.trained, options.seconds, results / "first")
    folder = first.checkpoint.parent
    watched = watch_script("extend_run.py", "--trained_model_folder", folder, "--frames", copy)
    extended = open_run(next(folder.parent.glob("*_extended")))
    seconds = f"{watched.seconds / (len(frames) - options.trained):.2f}"
    return [
        describe(extended, scene, options.trained, f"| {clip.name} | {options.trained} frames, extended | {seconds} "),
        describe(whole, scene, options.trained, f"| {clip.name} | all {len(frames)} frames | "),
    ]


def describe(run: TrainedRun, scene: Scene | None, first: int, beginning: str) -> str:
    """Return a row of the table, for the frames from `first` on; marks are on frames all over the clip."""
    values: list[float] = []
    overlaps: list[float] = []
    truths = run.clip.true_masks
    with temporary_frame_store(run.checkpoint.parent) as store:
        for frame in render_frames(run.model, run.clip, run.full_range):
            store.add(frame)
            if frame.t < first:
                continue
            values.append(psnr(frame.rgb, run.clip.frame(frame.t).astype(np.float32) / 255))
            if truths is not None:
                overlaps.append(iou(frame.coverage > 0.5, run.clip.mask(truths[frame.t]) > 127))
        errors = placement_errors(run, store, scene) if scene else np.zeros(0)
    placement = f"{errors.mean():.2f} ({np.median(errors):.2f})" if len(errors) else "-"
    overlap = f"{np.mean(overlaps):.3f}" if overlaps else "-"
    return f"{beginning}| {np.mean(values):.2f} | {overlap} | {placement} |"


if __name__ == "__main__":
    run_script(main)
