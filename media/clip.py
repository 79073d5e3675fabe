"""A clip on disk: frames, masks and flow as files, read one frame at a time at the working size."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import media
from command_line import UserError, resolve_folder_name, warn
from config import Config
from media import Pixels
from media.flows import BACKWARD, FORWARD, STEPS, DamagedFlow, find_flow, flow_name, read_flow, resize_flow

ASPECT_TOLERANCE = 0.02
SMALLEST_PX = 8


@dataclass(frozen=True)
class Clip:
    """Frames, masks and flow as files; everything is returned at working size, W x H pixels."""

    folder: Path
    frame_paths: tuple[Path, ...]
    width: int
    height: int
    fps: float
    objects: int = 1

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.frame_paths)

    @property
    def size(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return len(self), self.height, self.width

    def sibling_folder(self, suffix: str) -> Path:
        """A folder of the same clip: `NAME_flow`, `NAME_maskrcnn`, `NAME_gt`."""
        return self.folder.with_name(self.folder.name + suffix)

    def frame(self, t: int) -> Pixels:
        """(H, W, 3) uint8."""
        return media.resize(media.read_rgb(self.frame_paths[t]), self.width, self.height)

    @cached_property
    def native_size(self) -> tuple[int, int]:
        """(width, height) of the frames as they are."""
        return media.image_size(self.frame_paths[0])

    def native_frame(self, t: int) -> Pixels:
        """(H, W, 3) uint8 of a frame as it is."""
        return media.read_rgb(self.frame_paths[t])

    @cached_property
    def masks(self) -> tuple[Path, ...] | None:
        """The rough mask of each frame, paired by name; None if the clip has no masks."""
        return pair_masks(self.sibling_folder("_maskrcnn"), self.frame_paths)

    @cached_property
    def object_masks(self) -> tuple[tuple[Path, ...], ...]:
        """The rough masks of every object, the front one first. Raises UserError naming the folder that is missing."""
        found = []
        for folder in map(self.sibling_folder, mask_suffixes(self.objects)):
            masks = pair_masks(folder, self.frame_paths)
            if masks is None:
                several = f" --objects {self.objects}" if self.objects > 1 else ""
                raise UserError(
                    f"{folder}: no such folder; run python preprocess_mask_rcnn.py --vid-path {self.folder}{several} "
                    "or put your own masks there"
                )
            found.append(masks)
        return tuple(found)

    def read_merged_mask(self, t: int) -> Pixels | None:
        """(H, W) uint8: the rough masks of all objects in frame t; None if a folder of them is not there."""
        if not all(self.sibling_folder(suffix).is_dir() for suffix in mask_suffixes(self.objects)):
            return None
        return np.maximum.reduce([self.mask(paths[t]) for paths in self.object_masks])

    @cached_property
    def true_masks(self) -> tuple[Path, ...] | None:
        """The true mask of each frame; None if the clip has no `NAME_gt` folder."""
        return pair_masks(self.sibling_folder("_gt"), self.frame_paths)

    def mask(self, path: Path) -> Pixels:
        """(H, W) uint8 of one of `masks` or `truth`, 255 inside the object. Raises UserError on another aspect."""
        values = media.read_mask(path)
        if not self.fits(values.shape[::-1]):
            raise UserError(
                f"{path} is {values.shape[1]} x {values.shape[0]}, the frames are "
                f"{self.native_size[0]} x {self.native_size[1]}; make the mask from the same frames"
            )
        return media.resize_labels(values, self.width, self.height)

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether a picture (width, height) has the aspect of the frames, as they are or as they are worked on."""
        return has_same_aspect(size, self.native_size) or has_same_aspect(size, (self.width, self.height))

    def flow_path(self, t: int, direction: int) -> Path:
        """The file of the flow that leaves frame t. Raises UserError where there is none."""
        names = self.frame_paths[t].name, self.frame_paths[t + STEPS[direction]].name
        folder = self.sibling_folder("_flow")
        path = find_flow(folder, *names)
        if path is None:
            raise UserError(f"{folder} has no {flow_name(*names)} (or .npy); {self.flow_remedy}")
        return path

    @property
    def flow_remedy(self) -> str:
        """What to do about flow that can't be used."""
        return f"run python preprocess_optical_flow.py --vid-path {self.folder}"

    def flow(self, t: int, direction: int) -> NDArray[np.float32]:
        """(H, W, 2) pixels (dx, dy) from frame t to its neighbour. Raises UserError naming the file."""
        path = self.flow_path(t, direction)
        try:
            flow = read_flow(path)
        except DamagedFlow as error:
            raise UserError(f"{path}: {error}; delete it and {self.flow_remedy}") from None
        if not self.fits(flow.shape[1::-1]):
            raise UserError(
                f"{path}: is {flow.shape[1]} x {flow.shape[0]}, of another aspect than the frames; "
                f"delete it and {self.flow_remedy}"
            )
        return resize_flow(flow, self.width, self.height)

    def flow_pair(self, t: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Flow from frame t to t + 1 and back."""
        return self.flow(t, FORWARD), self.flow(t + 1, BACKWARD)


def mask_suffixes(objects: int) -> list[str]:
    """What follows a clip's name in the names of its mask folders, the front object first."""
    return ["_maskrcnn"] if objects == 1 else [f"_maskrcnn_{number}" for number in range(1, objects + 1)]


def open_clip(folder: Path, config: Config, fps: float | None = None) -> Clip:
    """Find and check the frames of a clip. Raises UserError; nothing but headers is read."""
    folder = resolve_folder_name(Path(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put the frames there as 00000.jpg, 00001.jpg, ...")
    paths = media.list_images(folder)[: config.maximum_number_of_frames]
    if not paths:
        raise UserError(f"{folder}: holds no images; put the frames there as 00000.jpg, 00001.jpg, ...")
    if len(paths) < 2:
        raise UserError(f"{folder}: holds one frame, {paths[0].name}; at least 2 are needed to follow a motion")
    sizes = [media.image_size(path) for path in paths]
    if odd := next((index for index, size in enumerate(sizes) if size != sizes[0]), None):
        raise UserError(
            f"{paths[odd]} is {sizes[odd][0]} x {sizes[odd][1]}, {paths[0].name} is {sizes[0][0]} x {sizes[0][1]}; "
            "all frames must have one size"
        )
    width, height = working_size(sizes[0], config.resx, config.resy)
    if min(width, height) < SMALLEST_PX:
        raise UserError(f"{folder}: {width} x {height} pixels to work on, at least {SMALLEST_PX} each way are needed")
    return Clip(folder, tuple(paths), width, height, fps or config.fps or read_fps(folder), config.objects)


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most so many numbers of `count` frames, evenly spread from the first to the last."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def read_fps(folder: Path) -> float:
    """Frames per second as noted beside the frames in NAME.json by whoever extracted them, else the published 10."""
    note = folder.with_name(folder.name + ".json")
    if not note.is_file():
        return media.PUBLISHED_FPS
    try:
        fps = json.loads(note.read_text(encoding="utf-8"))["fps"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{note}: expected JSON such as {{"fps": 25}}; mend or delete it') from None
    if not isinstance(fps, int | float) or not 0 < fps < 1000:
        raise UserError(f"{note}: fps is {fps!r}, expected frames per second above 0; mend or delete it")
    return float(fps)


def has_same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """True for two (width, height) of one aspect, up to what rounding to pixels does."""
    ratio = size[0] * other[1] / (size[1] * other[0])
    rounding = 1 / min(*size, *other)
    return abs(ratio - 1) <= ASPECT_TOLERANCE + rounding


def working_size(native: tuple[int, int], resx: int | None, resy: int | None) -> tuple[int, int]:
    """(width, height) to work at; a side left null follows the aspect of the frames."""
    width, height = native
    if resx is None and resy is None:
        return native
    size = (resx or max(2, round(width * resy / height)), resy or max(2, round(height * resx / width)))
    if not has_same_aspect(size, native):
        warn(
            f"resx x resy {size[0]} x {size[1]} stretches frames of {width} x {height}; "
            "set one of resx, resy to null to keep the aspect"
        )
    return size


def pair_masks(folder: Path, frames: tuple[Path, ...]) -> tuple[Path, ...] | None:
    """The mask of each frame, by name without suffix. None without a folder; UserError naming a missing one."""
    if not folder.is_dir():
        return None
    masks = {path.stem: path for path in media.list_images(folder)}
    missing = [frame.stem for frame in frames if frame.stem not in masks]
    if missing:
        raise UserError(
            f"{folder} has no mask for {len(missing)} of {len(frames)} frames, the first is {missing[0]}.png; "
            "masks carry the names of their frames (an all-black one says: not visible here)"
        )
    known = {path.stem for path in media.list_images(frames[0].parent)}
    if extra := [path.name for stem, path in masks.items() if stem not in known]:
        warn(f"{folder}: {len(extra)} masks belong to no frame and are ignored, the first is {extra[0]}")
    return tuple(masks[frame.stem] for frame in frames)
