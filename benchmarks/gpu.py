"""Measure on one device what a GPU is for: steps of training, time to equal quality, rendering, editing, memory.

python benchmarks/gpu.py                    draws a clip of 768 x 432; about 8 minutes on a GPU, 20 on 2 cores
python benchmarks/gpu.py --clip data/NAME   a clip with masks and flow
python benchmarks/gpu.py --device cpu       the same on the CPU, to compare

The published loop is that of the paper: networks of the published sizes, and 10,000 pixels a step that are drawn
anywhere in the clip. Nothing else should run meanwhile.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import UserError, add_device_flag, run_script

if TYPE_CHECKING:
    import torch

    from config import Config
    from rendering.trained_run import TrainedRun
    from training.loop import Trainer

SIZE, FRAMES = (768, 432), 40  # Size and number of frames of the drawn clip.
PAINT_PX = 500  # Side of the picture that is painted on the background's atlas.
NEVER = 10**9  # Iterations that no run reaches.
STEPS_PER_WAIT = {"cuda": 20}  # Steps between two readings of the clock, before which the GPU has to be waited for.


def main(arguments: list[str] | None = None) -> None:
    """Measure one thing after the other, and print each table when it is complete."""
    options = make_gpu_parser().parse_args(arguments)
    for name in ("seconds", "published_seconds", "grid_seconds"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} is {getattr(options, name):g}, expected more than 0")
    from benchmarks.data import prepare_scene
    from benchmarks.run import describe_machine
    from unwrap_utils import pick_device

    device = pick_device(options.device)
    print(f"{describe_machine()}; measured on {device.type}\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clip = options.clip or prepare_scene("pan", tuple(options.size), options.frames, folder)
        networks = options.network_config
        for line in measure_networks(networks, clip, folder, device, options.seconds):
            print(line, flush=True)
        for line in measure_grids(clip, folder, device, options.seconds):
            print(line, flush=True)
        budgets = options.published_seconds, options.grid_seconds
        for line in compare_quality(networks, clip, folder, device, *budgets):
            print(line, flush=True)


def make_gpu_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--clip", type=Path, help="folder of a clip's frames, with masks and flow beside it")
    flags.add_argument("--size", nargs=2, type=int, default=list(SIZE), help="width and height of the drawn clip")
    flags.add_argument("--frames", type=int, default=FRAMES, help="frames of the drawn clip")
    flags.add_argument("--seconds", type=float, default=10, help="seconds of each measurement of speed (default: 10)")
    flags.add_argument(
        "--published_seconds", type=float, default=300, help="budget of the published loop, seconds (default: 300)"
    )
    flags.add_argument("--grid_seconds", type=float, default=60, help="budget of the grids, seconds (default: 60)")
    flags.add_argument(
        "--network_config",
        type=Path,
        default=ROOT / "config" / "config.json",
        help="config of the networks (default: the published one)",
    )
    add_device_flag(flags)
    return flags


def measure_networks(config: Path, clip: Path, scratch: Path, device: "torch.device", seconds: float) -> Iterator[str]:
    """Yield the lines of a table of the networks' steps: as published, and with the sampling and precision of ours."""
    yield "| networks of the published sizes | steps per second | peak memory, MB |\n|---|---|---|"
    cases = {
        "published loop": {"sampling": "published"},
        "tiles of 4 pixels": {"sampling": "tiles"},
        "tiles of 4 pixels, bfloat16": {"sampling": "tiles", "precision": "bfloat16"},
    }
    for name, changes in cases.items():
        reset_peak_memory(device)
        trainer = make_trainer(network_config(config, clip, **changes), scratch, device)
        yield f"| {name} | {steps_per_second(trainer, 1.0, seconds):.2f} | {peak_memory(device)} |"


def measure_grids(clip: Path, scratch: Path, device: "torch.device", seconds: float) -> Iterator[str]:
    """Yield the lines of a table of the grids: start, steps at each resolution, rendering, editing."""
    from benchmarks.busy import STAGES
    from rendering.trained_run import TrainedRun

    reset_peak_memory(device)
    yield "\n| grids | |\n|---|---|"
    trainer: Any = make_trainer(grid_config(clip, None), scratch, device)
    begin = time.perf_counter()
    trainer.initialize()
    yield f"| start, s | {time.perf_counter() - begin:.1f} |"
    for stage, progress in STAGES.items():
        trainer.learner.step(0, progress)  # What is done once per stage does not count.
        speed = steps_per_second(trainer, progress, seconds)
        yield f"| steps per second, atlases at {stage} resolution | {speed:.2f} |"
        if (graphs := trainer.learner.graphs).is_used:
            graphs.is_used = False
            yield f"| the same without CUDA graphs | {steps_per_second(trainer, progress, seconds):.2f} |"
            graphs.is_used = True
    begin = time.perf_counter()
    trainer.learner.finish()
    yield f"| end: outlines and looks, s | {time.perf_counter() - begin:.1f} |"
    run = TrainedRun(trainer.model.eval(), trainer.clip)
    yield f"| rendered frames per second | {measure_rendering(run):.1f} |"
    yield f"| edited frames per second, without encoding | {measure_editing(run):.1f} |"
    yield f"| peak memory, MB | {peak_memory(device)} |"


def compare_quality(
    config: Path, clip: Path, scratch: Path, device: "torch.device", published_seconds: float, grid_seconds: float
) -> Iterator[str]:
    """Yield the lines of a table: the PSNR of the published loop after its budget, and when the grids reached it."""
    from benchmarks.convergence import QualityCurve, time_to_psnr

    yield "\n| quality | PSNR of five frames, dB | steps | seconds |\n|---|---|---|---|"
    published = make_trainer(
        network_config(config, clip, sampling="published", time_budget_s=published_seconds), scratch, device
    )
    published.initialize()
    published.train_without_evaluating()
    goal = QualityCurve(published).measure()
    yield f"| published loop | {goal:.2f} | {published.iteration} | {published.stopwatch.seconds:.0f} |"
    grids = make_trainer(grid_config(clip, grid_seconds), scratch, device)
    grids.initialize()
    curve = QualityCurve(grids)
    grids.train_without_evaluating(curve.measure_if_due)
    last = curve.measure()
    reached = time_to_psnr(curve.points, goal)
    when = "never" if reached is None else f"after {reached:.0f} s"
    yield f"| grids | {last:.2f} | {grids.iteration} | {grids.stopwatch.seconds:.0f} |"
    yield f"\nThe grids reached the PSNR of the published loop {when}."


def network_config(path: Path, clip: Path, **changes: Any) -> "Config":
    """Return a config of networks for a clip, with some settings changed."""
    from config import load_config

    config = load_config(path)
    return replace(config, data_folder=str(clip), resx=None, resy=None, iters_num=NEVER, **changes)


def grid_config(clip: Path, time_budget_s: float | None) -> "Config":
    """Return the config of the grids for a clip."""
    from config import load_config

    config = load_config(ROOT / "config" / "fast.json")
    return replace(config, data_folder=str(clip), resx=None, resy=None, iters_num=NEVER, time_budget_s=time_budget_s)


def make_trainer(config: "Config", scratch: Path, device: "torch.device") -> "Trainer":
    """Return a trainer, which writes its log into a new folder below `scratch`, before its start."""
    from training.loop import Trainer

    return Trainer(config, Path(tempfile.mkdtemp(dir=scratch)), str(device))


def steps_per_second(trainer: "Trainer", progress: float, seconds: float) -> float:
    """Return the steps per second at this progress of a run, measured for so many seconds after one step."""
    iteration = trainer.config.stop_global_rigidity + 1  # Most steps of a long run are after the first phase.
    trainer.learner.step(iteration, progress)
    wait_for(trainer.device)
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(STEPS_PER_WAIT.get(trainer.device.type, 1)):
            trainer.learner.step(iteration, progress)
            steps += 1
        wait_for(trainer.device)
    return steps / (time.perf_counter() - begin)


def measure_rendering(run: "TrainedRun") -> float:
    """Return how many frames of a run are rendered per second, with colours."""
    from rendering.frames import render_frames

    begin = time.perf_counter()
    count = sum(1 for _ in render_frames(run.model, run.clip, run.full_range))
    return count / (time.perf_counter() - begin)


def measure_editing(run: "TrainedRun") -> float:
    """Return how many frames are edited per second with paint on the whole background, without encoding."""
    import torch

    from editing.layer_edit import LayerEdit
    from editing.render_edits import render_edited_frames
    from editing.requests import EditRequest
    from rendering.atlas_view import AtlasView
    from rendering.frames import render_frames

    begin = time.perf_counter()
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False)
    background = run.model.layers.background.index
    left, top = (run.model.atlas_centers[background, 0] - 0.5).tolist()
    edit = LayerEdit(background, torch.full((PAINT_PX, PAINT_PX, 4), 0.5), AtlasView(left, top, 1.0))
    count = sum(1 for _ in render_edited_frames(run, frames, [edit], EditRequest()))
    return count / (time.perf_counter() - begin)


def wait_for(device: "torch.device") -> None:
    """Wait until a GPU has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: "torch.device") -> None:
    """Forget the peak of the GPU's memory so far."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: "torch.device") -> str:
    """Return the peak of the GPU's memory since it was reset, or that of the process, in MB; a dash if unknown."""
    import torch

    from evaluation.frame_metrics import peak_memory_mb

    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"
    peak = peak_memory_mb()
    return "-" if peak is None else f"{peak:.0f}"


if __name__ == "__main__":
    run_script(main)
