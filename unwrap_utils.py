"""A clip on disk and on the device: frames, rough masks and flow, checked and brought to working size.

`Clip` reads one frame at a time (evaluating and editing); `Video` holds what training needs as compact tensors.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import media
from command_line import UserError, named, warn
from config import Config
from media import Pixels
from media.flows import DamagedFlow, find_flow, flow_name, read_flow
from media.mask_notes import are_found

FORWARD, BACKWARD = 0, 1  # flow to the next frame, to the previous one
STEPS = (1, -1)  # frames that each of them moves
CONSISTENT_PX = 1.0  # flow is valid where forward-then-backward returns within this distance
ASPECT_TOLERANCE = 0.02
SMALLEST_PX = 8
INT16_MAX = 32767
PRETRAIN_LEARNING_RATE = 1e-4
BYTES_PER_PIXEL = 14  # of a video with one object
IN_MEMORY_BYTES = 1 << 30  # larger videos are mapped from disk
READERS = min(8, (os.cpu_count() or 1) + 1)  # threads that read a clip; one may wait for the disk


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    def beside(self, suffix: str) -> Path:
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
        return paired_masks(self.beside("_maskrcnn"), self.frame_paths)

    @cached_property
    def object_masks(self) -> tuple[tuple[Path, ...], ...]:
        """The rough masks of every object, the front one first. Raises UserError naming the folder that is missing."""
        found = []
        for folder in map(self.beside, mask_suffixes(self.objects)):
            masks = paired_masks(folder, self.frame_paths)
            if masks is None:
                several = f" --objects {self.objects}" if self.objects > 1 else ""
                raise UserError(
                    f"{folder}: no such folder; run python preprocess_mask_rcnn.py --vid-path {self.folder}{several} "
                    "or put your own masks there"
                )
            found.append(masks)
        return tuple(found)

    def mask_of_all(self, t: int) -> Pixels | None:
        """(H, W) uint8: the rough masks of all objects in frame t; None if a folder of them is not there."""
        if not all(self.beside(suffix).is_dir() for suffix in mask_suffixes(self.objects)):
            return None
        return np.maximum.reduce([self.mask(paths[t]) for paths in self.object_masks])

    @cached_property
    def truth(self) -> tuple[Path, ...] | None:
        """The true mask of each frame; None if the clip has no `NAME_gt` folder."""
        return paired_masks(self.beside("_gt"), self.frame_paths)

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
        return same_aspect(size, self.native_size) or same_aspect(size, (self.width, self.height))

    def flow_path(self, t: int, direction: int) -> Path:
        """The file of the flow that leaves frame t. Raises UserError where there is none."""
        names = self.frame_paths[t].name, self.frame_paths[t + STEPS[direction]].name
        folder = self.beside("_flow")
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
    folder = named(Path(folder))
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
    return Clip(folder, tuple(paths), width, height, fps or config.fps or recorded_fps(folder), config.objects)


def spread_numbers(count: int, most: int) -> list[int]:
    """At most so many numbers of `count` frames, evenly spread from the first to the last."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def recorded_fps(folder: Path) -> float:
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


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
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
    if not same_aspect(size, native):
        warn(
            f"resx x resy {size[0]} x {size[1]} stretches frames of {width} x {height}; "
            "set one of resx, resy to null to keep the aspect"
        )
    return size


def paired_masks(folder: Path, frames: tuple[Path, ...]) -> tuple[Path, ...] | None:
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


def resize_flow(flow: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Resize (h, w, 2) flow; x scales with the width and y with the height."""
    old_height, old_width = flow.shape[:2]
    if (old_width, old_height) == (width, height):
        return flow
    return media.resize(flow, width, height) * np.float32([width / old_width, height / old_height])


def consistent_flow(flow: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W): following `flow` and then `back` returns within one pixel, and never leaves the frame."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    squares = np.square(flow + cv2.remap(back, x, y, cv2.INTER_LINEAR))
    # A sum along an axis of two takes 20 times as long as adding them.
    return inside & (squares[..., 0] + squares[..., 1] < CONSISTENT_PX**2)


@dataclass
class Video:
    """What training reads, on the device: T frames of H x W pixels, about 14 bytes a pixel with one object."""

    frames: Tensor  # (T, H, W, 3) uint8
    masks: Tensor  # (F, T, H, W) uint8, rough masks of the foreground objects
    flow_steps: Tensor  # (2, T, H, W, 2) int16 (dx, dy), forward and backward, in units of flow_unit_px
    flow_unit_px: Tensor  # (2, T) float32
    flow_valid: Tensor  # (2, T, H, W) bool; False where a frame has no neighbour
    masks_found: Tensor  # (F,) bool: by a detector or by motion, so they are rough; False if nothing is known of them

    @property
    def size(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return tuple(self.frames.shape[:3])

    @property
    def device(self) -> torch.device:
        return self.frames.device

    def to(self, device: torch.device) -> "Video":
        """The same video on a device."""
        return Video(*(getattr(self, name).to(device) for name in Video.__dataclass_fields__))

    def normalize(self, xyt_px: Tensor) -> Tensor:
        """Pixels and frame numbers (N, 3) to network inputs."""
        return normalize(xyt_px, self.size)

    def flow_px(self, direction: Tensor, t: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """(N, 2) float32 pixels (dx, dy) of the flow that leaves the given pixels."""
        return self.flow_steps[direction, t, y, x] * self.flow_unit_px[direction, t][:, None]


def uv_scale_px(size: tuple[int, int], uv_mapping_scale: float) -> float:
    """Pixels per unit of uv of a clip of (H, W), for derivatives and distances."""
    return max(size) / (2 * uv_mapping_scale)


def normalize(xyt_px: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pixels and frame numbers (N, 3) of a clip of (T, H, W) to network inputs.

    x and y share a scale, so squares stay square; the last frame lies at 1 - 2 / T, as published.
    """
    frames, height, width = size
    xy, t = xyt_px.split((2, 1), dim=-1)
    return torch.cat((xy / (max(height, width) / 2), t / (frames / 2)), dim=-1) - 1


def frame_points(t: int, height: int, width: int, device: torch.device) -> Tensor:
    """All pixels (H * W, 3) of frame t as (x, y, t), row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, t)), dim=-1).view(-1, 3).float()


def empty_video(size: tuple[int, int, int], folder: Path | None = None, objects: int = 1) -> Video:
    """A video of (T, H, W) to be filled, without motion; a long one lies on disk, where the system keeps what is used.

    The file has no name and is gone with the video; it is in `folder`, if that can be written to.
    """
    frames = size[0]
    on_disk = BYTES_PER_PIXEL * math.prod(size) > IN_MEMORY_BYTES

    def zeros(shape: tuple[int, ...], kind: type) -> Tensor:
        if not on_disk:
            return torch.from_numpy(np.zeros(shape, kind))
        with tempfile.TemporaryFile(dir=folder if folder and os.access(folder, os.W_OK) else None) as file:
            return torch.from_numpy(np.memmap(file, kind, "w+", shape=shape))

    return Video(
        frames=zeros((*size, 3), np.uint8),
        masks=zeros((objects, *size), np.uint8),
        flow_steps=zeros((2, *size, 2), np.int16),
        flow_unit_px=torch.ones(2, frames),
        flow_valid=zeros((2, *size), np.bool_),
        masks_found=torch.zeros(objects, dtype=torch.bool),
    )


def load_video(clip: Clip, device: torch.device) -> Video:
    """Read a clip for training. Raises UserError for whatever is missing or damaged, before any of it is used."""
    masks, count = clip.object_masks, len(clip)
    video = empty_video(clip.size, clip.folder.parent, clip.objects)
    with ThreadPoolExecutor(READERS) as readers:  # decoding leaves Python to the others
        read = readers.map(lambda t: read_frame(clip, video, t), range(count))
        for _ in tqdm(read, total=count, desc=f"reading {clip.name}", unit="frame", leave=False):
            pass
    for number, (paths, planes) in enumerate(zip(masks, video.masks, strict=True)):
        video.masks_found[number] = are_found(clip.beside("_maskrcnn"), paths[0].parent)
        if not (planes > 127).any():
            warn(f"{paths[0].parent}: all masks are empty; everything will be background")
    return video.to(device)


def read_frame(clip: Clip, video: Video, t: int) -> None:
    """Put frame t, its masks, and the flow to and from the next one into a video."""
    video.frames[t] = torch.from_numpy(clip.frame(t))
    for plane, masks in zip(video.masks, clip.object_masks, strict=True):
        plane[t] = torch.from_numpy(clip.mask(masks[t]))
    if t + 1 < len(clip):
        there, back = clip.flow_pair(t)
        store_flow(video, FORWARD, t, there, consistent_flow(there, back))
        store_flow(video, BACKWARD, t + 1, back, consistent_flow(back, there))


def store_flow(video: Video, direction: int, t: int, flow: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    """Keep one frame's flow as int16: finer than a thousandth of a pixel while the motion is below 32 px."""
    is_valid = torch.from_numpy(valid)
    known = torch.where(is_valid[..., None], torch.from_numpy(flow), 0.0)
    unit = max(float(known.abs().max()), 1.0) / INT16_MAX
    video.flow_steps[direction, t] = (known / unit).round_()
    video.flow_unit_px[direction, t] = unit
    video.flow_valid[direction, t] = is_valid


def pretrain_mapping(
    mapping: nn.Module,
    name: str,
    target: Callable[[Tensor], Tensor],
    video: Video,
    config: Config,
    generator: torch.Generator,
) -> None:
    """Fit one mapping to a target, pixels and frame numbers (N, 3) -> uv (N, 2), before training.

    `pretrain_iter_number` rounds of one batch per frame; the loss is the mean Euclidean distance.
    """
    frames, height, width = video.size
    optimizer = torch.optim.Adam(mapping.parameters(), lr=PRETRAIN_LEARNING_RATE)
    extent = torch.tensor([width, height]).to(video.device)
    progress = tqdm(total=config.pretrain_iter_number * frames, desc=f"fitting the {name} mapping")
    with progress:
        for _ in range(config.pretrain_iter_number):
            for t in range(frames):
                share = torch.rand(config.samples_batch, 2, generator=generator, device=video.device)
                xy = (share * extent).floor()
                xyt_px = torch.cat((xy, torch.full_like(xy[:, :1], t)), dim=1)
                loss = (mapping(video.normalize(xyt_px)) - target(xyt_px)).norm(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress.update(frames)
