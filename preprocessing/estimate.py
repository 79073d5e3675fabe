"""Estimate the time and the disk space that unwrapping a clip takes, before it begins."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import UserError

# Seconds per frame and per megapixel of the size that a stage works at, on two CPU cores. Measured, then rounded up.
SECONDS_PER_MEGAPIXEL = {
    "frames": 0.12,
    "motion": 1.6,
    "detector": 12.0,
    "dis": 0.4,
    "raft": 50.0,
    "evaluation": 0.7,
    "full evaluation": 1.3,
}
MASK_MEGAPIXELS = {"motion": 0.13, "detector": 0.52}  # Masks are searched for in frames of at most this size.
FRAME_BYTES = 2.0  # Bytes per pixel of a compressed frame.
FLOW_BYTES = 1.0  # Bytes per pixel of a compressed flow file.
EVALUATION_BYTES = 28.0  # Bytes per pixel and frame of the temporary files of an evaluation, without the objects.
OBJECT_BYTES = 12.0  # Bytes per pixel and frame that each object adds to these files.


@dataclass(frozen=True)
class Task:
    """The work that is to be done for one clip."""

    frames: int  # number of frames; 0 if it is not known
    native_size: tuple[int, int]  # (width, height) of the frames, in pixels
    working_size: tuple[int, int]  # (width, height) at which the clip is trained, in pixels
    has_to_extract: bool
    mask_method: str | None  # "motion" or "detector"; None if the masks are given
    flow_method: str  # "dis" or "raft"
    time_budget_s: float  # seconds of training
    evaluation: str = "evaluation"  # or "full evaluation", which writes all videos
    objects: int = 1
    may_find_by_motion: bool = False  # if the weights of the detector are not there yet, and may not be downloaded

    @property
    def native_pixels(self) -> int:
        """Number of pixels of a frame at its own size."""
        return self.native_size[0] * self.native_size[1]

    @property
    def working_pixels(self) -> int:
        """Number of pixels of a frame at the working size."""
        return self.working_size[0] * self.working_size[1]


def estimate_seconds(task: Task) -> float:
    """Return about how many seconds the task takes on two CPU cores."""
    native_megapixels, working_megapixels = task.native_pixels / 1e6, task.working_pixels / 1e6
    extraction = SECONDS_PER_MEGAPIXEL["frames"] * (native_megapixels * task.has_to_extract)
    masks = 0.0
    if task.mask_method is not None:
        megapixels = min(native_megapixels, MASK_MEGAPIXELS[task.mask_method])
        masks = SECONDS_PER_MEGAPIXEL[task.mask_method] * megapixels
    at_working_size = SECONDS_PER_MEGAPIXEL[task.flow_method] + SECONDS_PER_MEGAPIXEL[task.evaluation]
    return task.frames * (extraction + masks + at_working_size * working_megapixels) + task.time_budget_s


def estimate_disk_bytes(task: Task) -> tuple[float, float]:
    """Return about how many bytes of disk the task needs: (at most while it runs, after it has ended)."""
    frame_bytes = task.has_to_extract * FRAME_BYTES * task.native_pixels
    flow_bytes = 2 * FLOW_BYTES * task.working_pixels  # forward and backward
    final = task.frames * (frame_bytes + flow_bytes)
    evaluation_bytes = EVALUATION_BYTES + OBJECT_BYTES * task.objects
    return final + task.frames * evaluation_bytes * task.working_pixels, final


def describe_duration(seconds: float) -> str:
    """Return a duration as text: in steps of ten seconds below two minutes, in minutes above."""
    return f"{max(10, 10 * round(seconds / 10))} s" if seconds < 115 else f"{seconds / 60:.0f} min"


def describe_time(task: Task) -> str:
    """Return how long the task takes, as text. It depends on whether a detector's weights can be downloaded."""
    duration = describe_duration(estimate_seconds(task))
    if not task.may_find_by_motion:
        return f"about {duration} on two CPU cores"
    by_motion = describe_duration(estimate_seconds(replace(task, mask_method="motion")))
    return f"about {duration} on two CPU cores, or {by_motion} if the weights of a detector cannot be downloaded"


def print_estimate(task: Task, folder: Path) -> None:
    """Print the estimate. Raise UserError if the disk of `folder` has too little free space.

    The folder need not exist yet: the nearest parent that exists tells which disk it will be on.
    """
    peak, final = estimate_disk_bytes(task)
    sizes = "{} x {} pixels, processed at {} x {}".format(*task.native_size, *task.working_size)
    print(f"{task.frames or 'an unknown number of'} frames of {sizes}")
    disk = f"{peak / 1e6:.0f} MB of disk while it runs, {final / 1e6:.0f} MB after it"
    print(f"{describe_time(task)}; {disk}", flush=True)
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < peak:
        raise UserError(f"{existing} has {free / 1e6:.0f} MB free, about {peak / 1e6:.0f} MB are needed; make room")
