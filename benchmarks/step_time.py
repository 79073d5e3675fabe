"""Measure the seconds per training iteration at the published sizes: 768 x 432, 10,000 pixels, 256 channels.

python benchmarks/step_time.py [--steps 5] [--frames 20]
"""

import argparse
import platform
import sys
import time
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from implicit_neural_networks import AtlasModel
from training.networks import loss_terms
from training.sampling import draw_batch
from unwrap_utils import Video, pick_device

HEIGHT, WIDTH = 432, 768  # Pixels of a frame.
FIRST_ITERATION = 0  # An iteration with global rigidity and bootstrapping.
LATE_ITERATION = 20_000  # An iteration without them.
CASES: dict[str, dict[str, Any]] = {  # Changed settings, by the name of the case.
    "published sampling": {"sampling": "published"},
    "tiles of 2": {"tile_size": 2},
    "tiles of 4 (default)": {},
    "tiles of 4, bfloat16": {"precision": "bfloat16"},
}


def random_video(frames: int, device: torch.device) -> Video:
    """Return a video of noise: the time of an iteration does not depend on the content."""
    shape = (frames, HEIGHT, WIDTH)
    return Video(
        frames=torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device),
        masks=torch.randint(0, 256, (1, *shape), dtype=torch.uint8, device=device),
        flow_steps=torch.randint(-9, 10, (2, *shape, 2), dtype=torch.int16, device=device),
        flow_unit_px=torch.ones(2, frames, device=device),
        flow_valid=torch.rand(2, *shape, device=device) > 0.2,
        mask_sources=("unknown",),
    )


def seconds_per_step(video: Video, config: Config, iteration: int, steps: int) -> float:
    """Return the mean seconds of a training step at this iteration, over `steps` steps after one to warm up."""
    torch.manual_seed(0)
    rng = torch.Generator(video.device).manual_seed(0)
    model = AtlasModel(config).to(video.device)
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=config.learning_rate, fused=True)
    start_time = 0.0
    for step in range(steps + 1):
        batch = draw_batch(video, config, rng)
        loss = reduce(torch.add, loss_terms(model, video, batch, config, iteration).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            wait_for_device(video.device)
            start_time = time.perf_counter()
    wait_for_device(video.device)
    return (time.perf_counter() - start_time) / steps


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print a table in Markdown."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--steps", type=int, default=5, help="steps that are measured")
    flags.add_argument("--frames", type=int, default=20, help="frames of the video")
    options = flags.parse_args()
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| sampling | seconds per iteration | in the first 5,000 (global rigidity, bootstrapping) |\n|---|---|---|")
    video, base = random_video(options.frames, device), Config(data_folder="none")
    for case, changes in CASES.items():
        config = replace(base, **changes)
        late, first = (
            seconds_per_step(video, config, iteration, options.steps) for iteration in (LATE_ITERATION, FIRST_ITERATION)
        )
        print(f"| {case} | {late:.3f} | {first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
