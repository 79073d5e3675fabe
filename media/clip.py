"""A clip on disk: frames, masks and optical flow as files, read one frame at a time at the working size."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

import media
from command_line import UserError, resolve_folder_name, warn
from config import Config
from media import Pixels
from media.flows import BACKWARD, FORWARD, STEPS, DamagedFlow, find_flow, flow_name, read_flow, resize_flow

ASPECT_TOLERANCE = 0.02  # relative difference of two aspects that count as the same
SMALLEST_PX = 8  # smallest width and height to work at
LARGEST_FPS = 100_000  # frames per second; cameras for science reach that
# Seconds, and share of the time between two frames, by which frames of a constant rate may be off: many files round
# times to milliseconds.
UNEVEN_S, UNEVEN_SHARE = 0.0015, 0.25

Floats = NDArray[np.floating]
# Files by which the folders are known that scripts write, whose pictures somebody may take for frames.
WRITTEN_FILES = {
    "checkpoint": "a run",
    "metrics.json": "an evaluation",
    "atlas.json": "an exported atlas",
    "edited.png": "an edit",
}


@dataclass(frozen=True)
class Clip:
    """The files of one clip. Frames, masks and flow are returned at the working size of H x W pixels."""

    folder: Path  # the frames
    frame_paths: tuple[Path, ...]
    width: int  # working size, pixels
    height: int
    fps: float
    objects: int = 1  # number of foreground objects
    # When each frame is shown, and when the last one ends, in seconds; empty if the frames are spaced evenly.
    times_s: tuple[float, ...] = ()
    _mask_kinds: dict[Path, media.MaskKind] = field(default_factory=dict, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)  # masks are read by several threads

    @property
    def name(self) -> str:
        """Name of the clip: the name of its frames folder."""
        return self.folder.name

    def __len__(self) -> int:
        """Return the number of frames T."""
        return len(self.frame_paths)

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of frames and working size: (T, H, W)."""
        return len(self), self.height, self.width

    def sibling_folder(self, suffix: str) -> Path:
        """Return another folder of the same clip, such as `NAME_flow` for the suffix `_flow`."""
        return self.folder.with_name(self.folder.name + suffix)

    def frame(self, t: int) -> Pixels:
        """Read frame t as (H, W, 3) uint8."""
        return media.resize(media.read_rgb(self.frame_paths[t]), self.width, self.height)

    @cached_property
    def native_size(self) -> tuple[int, int]:
        """Size of the frame files: (width, height) in pixels."""
        return media.image_size(self.frame_paths[0])

    @property
    def native_scale(self) -> tuple[float, float]:
        """How many pixels of the frames' files a pixel of the working size is wide and high."""
        return self.native_size[0] / self.width, self.native_size[1] / self.height

    def to_native_px(self, positions: NDArray) -> NDArray:
        """Convert positions (..., 2) from pixels of the working size to pixels of the frames' files."""
        return (positions + 0.5) * np.array(self.native_scale) - 0.5

    def from_native_px(self, positions: NDArray) -> NDArray:
        """Convert positions (..., 2) from pixels of the frames' files to pixels of the working size."""
        return (positions + 0.5) / np.array(self.native_scale) - 0.5

    def native_frame(self, t: int) -> NDArray:
        """Read frame t at the size and the depth of its file, (height, width, 3), see `media.read_picture`."""
        return media.read_picture(self.frame_paths[t])

    @cached_property
    def masks(self) -> tuple[Path, ...] | None:
        """File of the rough mask of each frame, all objects together; None if the clip has no `NAME_maskrcnn`."""
        return pair_masks(self.sibling_folder("_maskrcnn"), self.frame_paths)

    @cached_property
    def object_masks(self) -> tuple[tuple[Path, ...], ...]:
        """Files of the rough masks of each object, the front object first, one per frame.

        Raises UserError if a folder is missing.
        """
        paths_by_object = []
        for folder in map(self.sibling_folder, mask_suffixes(self.objects)):
            paths = pair_masks(folder, self.frame_paths)
            if paths is None:
                objects_flag = f" --objects {self.objects}" if self.objects > 1 else ""
                raise UserError(
                    f"{folder}: no such folder; run python preprocess_mask_rcnn.py --vid-path "
                    f"{self.folder}{objects_flag} or put your own masks there"
                )
            paths_by_object.append(paths)
        return tuple(paths_by_object)

    def read_merged_mask(self, t: int) -> Pixels | None:
        """Read the rough masks of all objects in frame t and return their maximum, (H, W) uint8.

        Returns None if the folder of an object is missing.
        """
        if not all(self.sibling_folder(suffix).is_dir() for suffix in mask_suffixes(self.objects)):
            return None
        return np.maximum.reduce([self.mask(paths[t]) for paths in self.object_masks])

    @cached_property
    def true_masks(self) -> tuple[Path, ...] | None:
        """File of the true mask of each frame; None if the clip has no `NAME_gt` folder."""
        return pair_masks(self.sibling_folder("_gt"), self.frame_paths)

    def mask(self, path: Path) -> Pixels:
        """Read a rough or true mask of this clip as (H, W) uint8, 255 inside the object.

        Raises UserError if its aspect is not that of the frames.
        """
        values = media.read_mask(path, self.find_mask_kind(path.parent))
        height, width = values.shape
        if not self.has_frame_aspect((width, height)):
            raise UserError(
                f"{path} is {width} x {height}, the frames are "
                f"{self.native_size[0]} x {self.native_size[1]}; make the mask from the same frames"
            )
        return media.resize_labels(values, self.width, self.height)

    def find_mask_kind(self, folder: Path) -> media.MaskKind:
        """Return how the values of the masks in a folder are read, which is decided once for all of them."""
        with self._lock:
            if folder not in self._mask_kinds:
                self._mask_kinds[folder] = media.find_mask_kind(media.list_images(folder))
            return self._mask_kinds[folder]

    def has_frame_aspect(self, size: tuple[int, int]) -> bool:
        """Return whether an image of (width, height) has the aspect of the frame files or of the working size."""
        return has_same_aspect(size, self.native_size) or has_same_aspect(size, (self.width, self.height))

    def flow_path(self, t: int, direction: int) -> Path:
        """Return the file of the flow from frame t to its neighbour. Raises UserError if there is none."""
        names = self.frame_paths[t].name, self.frame_paths[t + STEPS[direction]].name
        folder = self.sibling_folder("_flow")
        path = find_flow(folder, *names)
        if path is None:
            raise UserError(f"{folder} has no {flow_name(*names)} (or .npy); {self.flow_remedy}")
        return path

    @property
    def flow_remedy(self) -> str:
        """Advice for messages about missing or damaged flow."""
        return f"run python preprocess_optical_flow.py --vid-path {self.folder}"

    def flow(self, t: int, direction: int) -> Floats:
        """Read the flow from frame t to its neighbour, (H, W, 2) float32 pixels (dx, dy).

        Raises UserError if the file is missing, damaged or of another aspect than the frames.
        """
        path = self.flow_path(t, direction)
        try:
            flow = read_flow(path)
        except DamagedFlow as error:
            raise UserError(f"{path}: {error}; delete it and {self.flow_remedy}") from None
        height, width = flow.shape[:2]
        if not self.has_frame_aspect((width, height)):
            raise UserError(
                f"{path}: is {width} x {height}, of another aspect than the frames; delete it and {self.flow_remedy}"
            )
        return resize_flow(flow, self.width, self.height)

    def flow_pair(self, t: int) -> tuple[Floats, Floats]:
        """Read the flow from frame t to t + 1 and the flow from t + 1 to t."""
        return self.flow(t, FORWARD), self.flow(t + 1, BACKWARD)


def mask_suffixes(objects: int) -> list[str]:
    """Return the suffixes of a clip's mask folders, the front object first: `_maskrcnn`, or `_maskrcnn_1`, ..."""
    return ["_maskrcnn"] if objects == 1 else [f"_maskrcnn_{number}" for number in range(1, objects + 1)]


def open_clip(folder: Path, config: Config, fps: float | None = None) -> Clip:
    """Check the frames in a folder and return the clip. Only the headers of the frames are read.

    fps: frames per second; None: those of the config or of NAME.json. Raises UserError if the frames cannot be used.
    """
    folder = resolve_folder_name(Path(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put the frames there as 00000.jpg, 00001.jpg, ...")
    paths = media.list_images(folder)[: config.maximum_number_of_frames]
    media.check_names(folder, paths)
    if not paths:
        raise UserError(media.explain_empty_folder(folder))
    if len(paths) < 2:
        raise UserError(f"{folder}: holds one frame, {paths[0].name}; at least 2 are needed to follow a motion")
    sizes = [media.image_size(path) for path in paths]
    if odd := next((index for index, size in enumerate(sizes) if size != sizes[0]), None):
        if written := next((name for name in WRITTEN_FILES if (folder / name).is_file()), None):
            raise UserError(
                f"{folder}: holds {written}, so it is the folder of {WRITTEN_FILES[written]}; give the folder of the "
                "frames"
            )
        raise UserError(
            f"{paths[odd]} is {sizes[odd][0]} x {sizes[odd][1]}, {paths[0].name} is {sizes[0][0]} x {sizes[0][1]}; "
            "all frames must have one size"
        )
    width, height = working_size(sizes[0], config.resx, config.resy)
    if min(width, height) < SMALLEST_PX:
        raise UserError(f"{folder}: {width} x {height} pixels to work on, at least {SMALLEST_PX} each way are needed")
    if rate := fps or config.fps:
        return Clip(folder, tuple(paths), width, height, rate, config.objects)
    rate = read_fps(folder)
    return Clip(folder, tuple(paths), width, height, rate, config.objects, read_uneven_times(folder, len(paths), rate))


def evenly_spaced_indices(count: int, most: int) -> list[int]:
    """Return at most `most` indices below `count`, evenly spaced and including the first and the last."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def read_fps(folder: Path) -> float:
    """Return the frames per second in NAME.json beside the frames folder, or the published 10 without such a file.

    Frame extraction writes this file. Raises UserError if it holds no frame rate.
    """
    path = folder.with_name(folder.name + ".json")
    if not path.is_file():
        return media.PUBLISHED_FPS
    try:
        fps = json.loads(path.read_text(encoding="utf-8"))["fps"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path}: expected JSON such as {{"fps": 25}}; correct or delete it') from None
    if not isinstance(fps, int | float) or not 0 < fps < LARGEST_FPS:
        raise UserError(f"{path}: fps is {fps!r}, expected frames per second above 0; correct or delete it")
    return float(fps)


def read_uneven_times(folder: Path, count: int, fps: float) -> tuple[float, ...]:
    """Return when each of `count` frames is shown, and when the last one ends, as NAME.json notes it, in seconds.

    The result is empty if the frames are spaced evenly, or if the note is about other frames or has no times.
    """
    path = folder.with_name(folder.name + ".json")
    note = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    times = note.get("times_s") or []
    are_numbers = isinstance(times, list) and all(isinstance(time, int | float) for time in times)
    if not are_numbers or any(later <= earlier for earlier, later in pairwise(times)):
        raise UserError(f"{path}: times_s is not a list of growing numbers, in seconds; correct or delete it")
    if len(times) <= count or note.get("frames") != len(media.list_images(folder)):
        return ()
    times = times[: count + 1]
    tolerance = min(UNEVEN_S, UNEVEN_SHARE / fps)
    is_even = all(abs(time - times[0] - number / fps) <= tolerance for number, time in enumerate(times))
    return () if is_even else tuple(times)


def has_same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes (width, height) have the same aspect, up to rounding to whole pixels."""
    ratio = size[0] * other[1] / (size[1] * other[0])
    rounding = 1 / min(*size, *other)
    return abs(ratio - 1) <= ASPECT_TOLERANCE + rounding


def working_size(native: tuple[int, int], resx: int | None, resy: int | None) -> tuple[int, int]:
    """Return (width, height) to work at, for frames of `native` (width, height).

    A side that is None follows from the other one and the aspect of the frames. Warns if the aspect changes.
    """
    width, height = native
    if resx is not None:
        size = (resx, resy or max(2, round(height * resx / width)))
    elif resy is not None:
        size = (max(2, round(width * resy / height)), resy)
    else:
        return native
    if not has_same_aspect(size, native):
        warn(
            f"resx x resy {size[0]} x {size[1]} stretches frames of {width} x {height}; "
            "set one of resx, resy to null to keep the aspect"
        )
    return size


def pair_masks(folder: Path, frames: tuple[Path, ...]) -> tuple[Path, ...] | None:
    """Return the mask file of each frame, paired by file name without suffix; None if the folder does not exist.

    Raises UserError if a frame has no mask. Warns of masks without a frame.
    """
    if not folder.is_dir():
        return None
    masks = {path.stem: path for path in media.list_images(folder)}
    missing = [frame.stem for frame in frames if frame.stem not in masks]
    if missing:
        raise UserError(
            f"{folder} has no mask for {len(missing)} of {len(frames)} frames, the first is {missing[0]}.png; "
            "name each mask like its frame (an all-black mask means that the object is not visible)"
        )
    frame_names = {path.stem for path in media.list_images(frames[0].parent)}
    if extra := [path.name for stem, path in masks.items() if stem not in frame_names]:
        warn(f"{folder}: {len(extra)} masks belong to no frame and are ignored, the first is {extra[0]}")
    return tuple(masks[frame.stem] for frame in frames)
