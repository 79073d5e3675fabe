"""The video as tensors on the device, optical flow checks, and the pre-training of the mappings."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from command_line import warn
from config import Config
from media.clip import Clip
from media.flows import BACKWARD, FORWARD

CONSISTENT_PX = 1.0  # flow is valid where forward-then-backward returns within this distance
INT16_MAX = 32767
PRETRAIN_LEARNING_RATE = 1e-4
BYTES_PER_PIXEL = 14  # of a video with one object
IN_MEMORY_BYTES = 1 << 30  # larger videos are mapped from disk
READERS = min(8, (os.cpu_count() or 1) + 1)  # threads that read a clip; one may wait for the disk


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flow_targets(flow: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions x and y, each (H, W) in pixels, to which the flow (H, W, 2) takes the pixels of its frame."""
    height, width = flow.shape[:2]
    x = flow[..., 0].astype(np.float32) + np.arange(width, dtype=np.float32)
    y = flow[..., 1].astype(np.float32) + np.arange(height, dtype=np.float32)[:, None]
    return x, y


def warp_by_flow(
    values: NDArray[np.floating], flow: NDArray[np.floating], border: int = cv2.BORDER_REPLICATE
) -> NDArray[np.floating]:
    """Bring the values (H, W[, C]) of another frame to this frame by the flow (H, W, 2) from this frame to the other.

    Sampling is bilinear. border: OpenCV's border mode, for flow that leaves the frame.
    """
    return cv2.remap(values, *flow_targets(flow), cv2.INTER_LINEAR, borderMode=border)


def consistent_flow(flow: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W): True where following `flow` and then `back` returns within one pixel and never leaves the frame."""
    height, width = flow.shape[:2]
    x, y = flow_targets(flow)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    squares = np.square(flow + warp_by_flow(back, flow, cv2.BORDER_CONSTANT))
    # A sum along an axis of length two takes 20 times as long as adding the two.
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


def load_video(clip: Clip, device: torch.device, masks_found: Sequence[bool] | None = None) -> Video:
    """Read a clip for training. Raises UserError for whatever is missing or damaged, before any of it is used.

    masks_found: for each object, whether a method found its masks; None if nothing is known of them.
    """
    masks, count = clip.object_masks, len(clip)
    video = empty_video(clip.size, clip.folder.parent, clip.objects)
    with ThreadPoolExecutor(READERS) as readers:  # decoding releases Python's global lock
        read = readers.map(lambda t: read_frame(clip, video, t), range(count))
        for _ in tqdm(read, total=count, desc=f"reading {clip.name}", unit="frame", leave=False):
            pass
    for paths, planes in zip(masks, video.masks, strict=True):
        if not (planes > 127).any():
            warn(f"{paths[0].parent}: all masks are empty; everything will be background")
    if masks_found is not None:
        video.masks_found = torch.tensor(masks_found, dtype=torch.bool)
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
