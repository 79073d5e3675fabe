"""What unwrapping a clip will take, before it begins."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from command_line import UserError

# Seconds per frame and megapixel that a stage works on, on two CPU cores; rounded up from what was measured.
SECONDS = {"frames": 0.12, "motion": 0.6, "detector": 12.0, "dis": 0.25, "raft": 50.0, "evaluation": 3.2}
MASK_MEGAPIXELS = {"motion": 0.13, "detector": 0.52}  # masks are looked for in smaller frames
FRAME_BYTES, FLOW_BYTES = 2.0, 1.0  # per pixel, compressed
RENDERED_BYTES, OBJECT_BYTES = 28.0, 12.0  # per pixel, while an evaluation lasts: with no object, of each


@dataclass(frozen=True)
class Task:
    """What is to be done."""

    frames: int
    native: tuple[int, int]  # (width, height)
    working: tuple[int, int]
    has_to_extract: bool
    finds_masks_by: str | None  # "motion", "detector" or None: masks are given
    finds_flow_by: str  # "dis" or "raft"
    time_budget_s: float
    objects: int = 1

    @property
    def native_pixels(self) -> int:
        return self.native[0] * self.native[1]

    @property
    def working_pixels(self) -> int:
        return self.working[0] * self.working[1]


def seconds_needed(task: Task) -> float:
    """About how long on two CPU cores."""
    worked, extracted = task.working_pixels / 1e6, task.native_pixels / 1e6 * task.has_to_extract
    masks = 0.0
    if task.finds_masks_by is not None:
        masks = SECONDS[task.finds_masks_by] * min(task.native_pixels / 1e6, MASK_MEGAPIXELS[task.finds_masks_by])
    per_frame = SECONDS["frames"] * extracted + masks + (SECONDS[task.finds_flow_by] + SECONDS["evaluation"]) * worked
    return task.frames * per_frame + task.time_budget_s


def bytes_needed(task: Task) -> tuple[float, float]:
    """About how much disk: at most, and what stays."""
    stays = task.frames * (
        task.has_to_extract * FRAME_BYTES * task.native_pixels + 2 * FLOW_BYTES * task.working_pixels
    )
    rendered = RENDERED_BYTES + OBJECT_BYTES * task.objects
    return stays + task.frames * rendered * task.working_pixels, stays


def print_estimate(task: Task, folder: Path) -> None:
    """Print the estimate. Raises UserError if so much disk is not free where `folder` is or will be."""
    most, stays = bytes_needed(task)
    sizes = "{} x {}, worked on at {} x {}".format(*task.native, *task.working)
    print(f"{task.frames or 'an unknown number of'} frames of {sizes}")
    minutes = seconds_needed(task) / 60
    print(f"{f'about {minutes:.0f} min' if minutes >= 1 else 'under a minute'} on two CPU cores;", end=" ")
    print(f"{most / 1e6:.0f} MB of disk while it runs, {stays / 1e6:.0f} MB after it", flush=True)
    place = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < most:
        raise UserError(f"{place} has {free / 1e6:.0f} MB free, about {most / 1e6:.0f} MB are needed; make room")
