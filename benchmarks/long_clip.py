"""Measure long clips, which are trained in windows: quality, placement over the whole clip, and memory.

python benchmarks/long_clip.py --frames 1000 2000 --output out

The clips are the exact scene `roam`. For each length the clip is drawn, trained for `--seconds` per 100 frames,
evaluated and edited. Printed: PSNR, J, the distance of painted marks from where they belong in frames all over the
clip, how far neighbouring windows differ in their common frames, seconds, and the peak memory of every script. The
first length is also trained as separate clips of 100 frames, in the same time. memory.png shows memory over time.

With 1000 and 2000 frames this takes about 90 minutes on two cores. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import media
from benchmarks.data import add_flow, prepare_scene
from benchmarks.measure import measure_opacity, placement_errors
from command_line import UserError, run_script
from evaluation.image_metrics import psnr
from evaluation.plots import save_figure
from grids.windows import WindowedModel
from rendering.frame_store import temporary_frame_store
from rendering.frames import render_frames
from rendering.trained_run import TrainedRun, open_run
from scenes.catalogue import SCENES

SCENE = "roam"
SEPARATE_FRAMES = 100  # Frames of the clips that are trained separately.
POLL_S = 0.1  # Seconds between two looks at the memory of a process.


@dataclass
class Watched:
    """What a script took."""

    seconds: float
    memory_mb: list[float]  # every POLL_S seconds

    @property
    def peak_mb(self) -> float:
        """The largest memory."""
        return max(self.memory_mb, default=0.0)


def main(arguments: list[str] | None = None) -> None:
    """Measure clips of some lengths, and print the tables."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--frames", nargs="+", type=int, default=[1000, 2000], help="lengths of the clips")
    flags.add_argument("--seconds", type=float, default=60, help="of training for every 100 frames (default: 60)")
    flags.add_argument("--size", nargs=2, type=int, default=[384, 216], help="width and height of the frames")
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"))
    options = flags.parse_args(arguments)
    if min(options.frames) <= SEPARATE_FRAMES:
        raise UserError(f"--frames {min(options.frames)}: long clips have more than {SEPARATE_FRAMES} frames")
    trainings = {}
    print("| frames | trained | PSNR, dB | J | placement, mean (median), px | windows differ, px | seconds |")
    print("|---|---|---|---|---|---|---|")
    for index, frames in enumerate(options.frames):
        clip = prepare_scene(SCENE, tuple(options.size), frames, options.output / "data")
        seconds = options.seconds * frames / 100
        run, trainings[frames] = train(clip, frames, seconds, options.output / f"long_{frames}")
        print(describe(run, f"| {frames} | in windows ", trainings[frames].seconds), flush=True)
        if index == 0:
            print(measure_separate(clip, frames, options), flush=True)
    print("\n| frames | train.py, peak MB | only_evaluate.py | only_edit.py |\n|---|---|---|---|")
    for frames, training in trainings.items():
        (folder,) = (options.output / f"long_{frames}").glob("*/")
        peaks = [watch_script(*command).peak_mb for command in evaluate_and_edit(folder, options.output)]
        print(
            f"| {frames} | {training.peak_mb:.0f} | " + " | ".join(f"{peak:.0f}" for peak in peaks) + " |", flush=True
        )
    plot_memory(options.output / "memory.png", trainings)
    print(f"\nwrote {options.output / 'memory.png'}")


def watch_script(*command: str | Path) -> Watched:
    """Run a script of this project, and watch its memory (Linux only). Raises UserError if the script fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    memory: list[float] = []

    def watch() -> None:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status")
            lines = status.read_text().splitlines() if status.exists() else []
            memory.extend(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
            time.sleep(POLL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise UserError(f"{command[0]} failed: {errors.strip().splitlines()[-1]}")
    return Watched(time.perf_counter() - begin, memory)


def train(clip: Path, frames: int, seconds: float, results: Path) -> tuple[TrainedRun, Watched]:
    """Train a clip without an evaluation, unless its results are there; returns the run and what training took."""
    settings = {
        "data_folder": clip.resolve(),
        "maximum_number_of_frames": frames,
        "results_folder_name": results.resolve(),
        "resx": media.image_size(media.list_images(clip)[0])[0],
    }
    changes = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    budget = ("--time_budget", str(seconds), "--no_evaluation")
    watched = watch_script("train.py", "config/fast.json", *changes, *budget)
    (folder,) = results.glob("*/")
    return open_run(folder), watched


def describe(run: TrainedRun, beginning: str, seconds: float) -> str:
    """Return a row of the table for the run of a whole clip."""
    scene = SCENES[SCENE](run.clip.width, run.clip.height, len(run.clip))
    with temporary_frame_store(run.checkpoint.parent) as store:
        values = []
        for frame in render_frames(run.model, run.clip, run.full_range):
            values.append(psnr(frame.rgb, run.clip.frame(frame.t).astype(np.float32) / 255))
            store.add(frame)
        iou = measure_opacity(store, scene)["iou"]
        errors = placement_errors(run, store, scene)
    differ = f"{window_difference_px(run):.2f}" if isinstance(run.model, WindowedModel) else "-"
    placement = f"{errors.mean():.2f} ({np.median(errors):.2f})"
    return f"{beginning}| {np.mean(values):.2f} | {iou:.3f} | {placement} | {differ} | {seconds:.0f} |"


@torch.no_grad()
def window_difference_px(run: TrainedRun) -> float:
    """Return the mean distance between the places that two windows give a visible pixel of their common frames."""
    model, distances = run.model, []
    assert isinstance(model, WindowedModel)
    for number, (earlier, later) in enumerate(pairwise(model.spans)):
        for t in range(later.first, earlier.end):
            samples = [
                (
                    model.windows[index],
                    model.windows[index].frame_sample(t - span.first, size(model, index), True, False),
                )
                for index, span in ((number, earlier), (number + 1, later))
            ]
            uv = [model.to_clip_uv(sample.uv, number + index) for index, (_, sample) in enumerate(samples)]
            alpha = samples[0][1].alpha[..., 0]
            is_object = (alpha > 0.5).any(0)
            for layer, is_shown in ((0, alpha[0] > 0.5), (len(uv[0]) - 1, ~is_object)):
                if bool(is_shown.any()):
                    distance = (uv[0][layer] - uv[1][layer]).norm(dim=-1)[is_shown].mean()
                    distances.append(float(distance) * run.px_per_uv[layer])
    return float(np.mean(distances))


def size(model: WindowedModel, index: int) -> tuple[int, int, int]:
    """Return the size (T, H, W) of a window."""
    return model.windows[index].shape.size


def measure_separate(clip: Path, frames: int, options: argparse.Namespace) -> str:
    """Train a clip as separate clips of SEPARATE_FRAMES frames, and return a row of the table."""
    values, seconds = [], 0.0
    for first in range(0, frames - SEPARATE_FRAMES + 1, SEPARATE_FRAMES):
        part = link_part(clip, first, options.output / "parts" / f"{frames}_{first}")
        run, watched = train(part, SEPARATE_FRAMES, options.seconds, part.parent / "results")
        for frame in render_frames(run.model, run.clip, run.full_range):
            values.append(psnr(frame.rgb, run.clip.frame(frame.t).astype(np.float32) / 255))
        seconds += watched.seconds
    return f"| {frames} | as {frames // SEPARATE_FRAMES} clips | {np.mean(values):.2f} | - | - | - | {seconds:.0f} |"


def link_part(clip: Path, first: int, folder: Path) -> Path:
    """Link some frames of a clip, their masks and their flow into a folder, and return the folder of the frames."""
    frames = media.list_images(clip)[first : first + SEPARATE_FRAMES]
    for suffix in ("", "_maskrcnn"):
        target = folder / f"{clip.name}{suffix}"
        target.mkdir(parents=True, exist_ok=True)
        for frame in frames:
            source = frame if not suffix else clip.with_name(clip.name + suffix) / f"{frame.stem}.png"
            link = target / source.name
            if not link.exists():
                link.symlink_to(source.resolve())
    flow = folder / f"{clip.name}_flow"
    if not flow.exists():
        flow.symlink_to(clip.with_name(f"{clip.name}_flow").resolve(), target_is_directory=True)
    return add_flow(folder / clip.name)


def evaluate_and_edit(run: Path, output: Path) -> list[tuple[str, ...]]:
    """Return the command lines that evaluate a run, and that paint on one of its frames."""
    opened = open_run(run)
    paint = np.zeros((opened.clip.height, opened.clip.width, 4), np.uint8)
    paint[opened.clip.height // 3 : opened.clip.height // 2, opened.clip.width // 3 : opened.clip.width // 2] = 255
    media.write_png(output / "paint.png", paint)
    common = ("--trained_model_folder", str(run.resolve()), "--output_folder")
    edit = ("--edit_frame", f"10:{(output / 'paint.png').resolve()}")
    return [
        ("only_evaluate.py", *common, str((output / "evaluated").resolve())),
        ("only_edit.py", *common, str((output / "edited").resolve()), *edit),
    ]


def plot_memory(path: Path, trainings: dict[int, Watched]) -> None:
    """Write a plot of the memory of training over time, a line for each length of the clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    plot = figure.subplots()
    for frames, training in trainings.items():
        plot.plot(np.arange(len(training.memory_mb)) * POLL_S, training.memory_mb, label=f"{frames} frames")
    plot.set_xlabel("seconds of training")
    plot.set_ylabel("memory, MB")
    plot.set_ylim(bottom=0)
    plot.grid(alpha=0.3)
    plot.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)
