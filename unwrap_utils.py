"""The video as tensors on a device, the consistency check of optical flow, and the pre-training of the mappings."""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from command_line import UserError, warn
from config import Config
from media.clip import Clip
from media.flows import BACKWARD, FORWARD

CONSISTENT_PX = 1.0  # flow is valid where forward and then backward flow returns within this distance
INT16_MAX = 32767
PRETRAIN_LEARNING_RATE = 1e-4  # of Adam, as published
BYTES_PER_PIXEL = 14  # memory of a video with one object
IN_MEMORY_BYTES = 1 << 30  # larger videos are mapped from disk
RELEASE_EVERY = 50  # Frames after which the memory of a clip on disk is given back.
READER_THREADS = min(8, (os.cpu_count() or 1) + 1)  # one more than the cores, because a thread may wait for the disk

Floats = NDArray[np.floating]


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of a name such as "cpu" or "cuda:1"; without a name the GPU if there is one, else the CPU.

    Raises UserError if the device is not on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).tolist()  # It exists only if it can hold a number and give it back.
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device {name}: is not on this machine; use cpu, or leave the flag out") from None
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Graphs are recorded on PyTorch's current GPU, which is the first one otherwise.
    return device


def flow_targets(flow: Floats) -> tuple[Floats, Floats]:
    """Return the positions x and y, each (H, W) in pixels, to which flow (H, W, 2) moves the pixels of its frame."""
    height, width = flow.shape[:2]
    x = flow[..., 0].astype(np.float32) + np.arange(width, dtype=np.float32)
    y = flow[..., 1].astype(np.float32) + np.arange(height, dtype=np.float32)[:, None]
    return x, y


def warp_by_flow(values: NDArray, flow: Floats, border: int = cv2.BORDER_REPLICATE) -> NDArray:
    """Warp the values (H, W[, C]) of another frame to this frame by the flow (H, W, 2) from this frame to the other.

    Sampling is bilinear. border: OpenCV's border mode, for flow that leaves the frame.
    """
    warped: NDArray = cv2.remap(values, *flow_targets(flow), cv2.INTER_LINEAR, borderMode=border)
    return warped


def targets_inside(flow: Floats) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose flow (H, W, 2) leads to a place in the frame."""
    height, width = flow.shape[:2]
    x, y = flow_targets(flow)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def consistent_pixels(flow: Floats, back_flow: Floats) -> NDArray[np.bool_]:
    """Return an (H, W) mask: True where `flow` and then `back_flow` returns within one pixel, inside the frame.

    flow: (H, W, 2) pixels from one frame to another. back_flow: the same from the other frame to the first.
    """
    squares = np.square(flow + warp_by_flow(back_flow, flow, cv2.BORDER_CONSTANT))
    # numpy sums along an axis of length two 20 times as slowly as it adds the two parts.
    return targets_inside(flow) & (squares[..., 0] + squares[..., 1] < CONSISTENT_PX**2)


@dataclass
class Video:
    """Everything that training reads of a clip, on the device: T frames of H x W pixels, F foreground objects.

    It takes about 14 bytes per pixel with one object. Rows of the flow tensors are forward and backward flow.
    """

    frames: Tensor  # (T, H, W, 3) uint8
    masks: Tensor  # (F, T, H, W) uint8, rough masks of the foreground objects
    flow_steps: Tensor  # (2, T, H, W, 2) int16 (dx, dy), in units of flow_unit_px
    flow_unit_px: Tensor  # (2, T) float32
    flow_valid: Tensor  # (2, T, H, W) bool; False where a frame has no neighbour
    mask_sources: tuple[str, ...]  # for each object, where its masks come from; see `masks.provenance.SOURCES`
    # Labels (H, W) of the frames on which somebody painted strokes; see `masks.strokes.read_strokes`
    strokes: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    mapped_files: tuple[mmap.mmap, ...] = ()  # of a clip that is mapped from disk
    shutter: float = 0.0  # Exposure time in frames, see `alignment.shutter`; 0 where no motion blur is known.

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of frames and their size: (T, H, W)."""
        frames, height, width = self.frames.shape[:3]
        return frames, height, width

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.frames.device

    def to(self, device: torch.device) -> "Video":
        """Return the same video on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def part(self, first: int, end: int) -> "Video":
        """Return the frames from `first` to before `end`, without a copy of their pixels."""
        flow_valid = self.flow_valid[:, first:end].clone()
        flow_valid[BACKWARD, 0], flow_valid[FORWARD, -1] = False, False  # These neighbours are left out.
        return replace(
            self,
            frames=self.frames[first:end],
            masks=self.masks[:, first:end],
            flow_steps=self.flow_steps[:, first:end],
            flow_unit_px=self.flow_unit_px[:, first:end],
            flow_valid=flow_valid,
            strokes={t - first: labels for t, labels in self.strokes.items() if first <= t < end},
        )

    def release_memory(self) -> None:
        """Let the operating system forget the frames that were read; those of a clip on disk are read again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such call, and does so when memory becomes scarce.
            for mapped in self.mapped_files:
                mapped.madvise(mmap.MADV_DONTNEED)

    def normalize(self, xyt_px: Tensor) -> Tensor:
        """Convert pixels and frame numbers (N, 3) to network inputs (N, 3)."""
        return normalize(xyt_px, self.size)

    def flow_px(self, direction: Tensor, t: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Return the flow from the given pixels, (N, 2) float32 pixels (dx, dy). All arguments are (N,) indices."""
        return self.flow_steps[direction, t, y, x] * self.flow_unit_px[direction, t][:, None]


def uv_scale_px(size: tuple[int, int], uv_mapping_scale: float) -> float:
    """Return the pixels per unit of uv for a clip of (H, W), used for derivatives and distances in the losses."""
    return max(size) / (2 * uv_mapping_scale)


def normalize(xyt_px: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Convert pixels and frame numbers (N, 3) of a clip of (T, H, W) to network inputs (N, 3).

    x and y share a scale, so squares stay square. The last frame lies at 1 - 2 / T, as published.
    """
    frames, height, width = size
    xy, t = xyt_px.split((2, 1), dim=-1)
    return torch.cat((xy / (max(height, width) / 2), t / (frames / 2)), dim=-1) - 1


def frame_points(t: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return all pixels of frame t as (H * W, 3) float (x, y, t), row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, t)), dim=-1).view(-1, 3).float()


def empty_video(
    size: tuple[int, int, int], folder: Path | None = None, objects: int = 1, is_on_disk: bool | None = None
) -> Video:
    """Return a video of (T, H, W) with black frames, empty masks and no valid flow, to be filled.

    A long video is mapped from a file, so that the operating system keeps in memory only what is used. The file has no
    name and disappears with the video; it lies in `folder` if that is writable. is_on_disk: whether it is mapped; None:
    if it is larger than IN_MEMORY_BYTES.
    """
    frames, mapped_files = size[0], list[mmap.mmap]()
    if is_on_disk is None:
        is_on_disk = BYTES_PER_PIXEL * math.prod(size) > IN_MEMORY_BYTES

    def zeros(shape: tuple[int, ...], dtype: type) -> Tensor:
        if not is_on_disk:
            return torch.from_numpy(np.zeros(shape, dtype))
        with tempfile.TemporaryFile(dir=folder if folder and os.access(folder, os.W_OK) else None) as file:
            count = math.prod(shape)
            file.truncate(count * np.dtype(dtype).itemsize)
            mapped_files.append(mmap.mmap(file.fileno(), 0))
            return torch.from_numpy(np.frombuffer(mapped_files[-1], dtype, count).reshape(shape))

    return Video(
        frames=zeros((*size, 3), np.uint8),
        masks=zeros((objects, *size), np.uint8),
        flow_steps=zeros((2, *size, 2), np.int16),
        flow_unit_px=torch.ones(2, frames),
        flow_valid=zeros((2, *size), np.bool_),
        mask_sources=("unknown",) * objects,
        mapped_files=tuple(mapped_files),
    )


def load_video(
    clip: Clip,
    device: torch.device,
    mask_sources: Sequence[str] | None = None,
    is_on_disk: bool | None = None,
    first: int = 0,
) -> Video:
    """Read a whole clip for training. Raises UserError if a file is missing or damaged.

    mask_sources: for each object, where its masks come from; None if that is unknown. is_on_disk: see `empty_video`.
    first: the first frame that is read; those before it stay empty.
    """
    mask_paths, count = clip.object_masks, len(clip)
    video = empty_video(clip.size, clip.folder.parent, clip.objects, is_on_disk)
    with ThreadPoolExecutor(READER_THREADS) as readers:  # threads help: decoding releases Python's global lock
        results = readers.map(lambda t: read_into_video(clip, video, t), range(first, count))
        for t, _ in enumerate(
            tqdm(results, total=count - first, desc=f"reading {clip.name}", unit="frame", leave=False)
        ):
            if t % RELEASE_EVERY == 0:
                video.release_memory()
    for paths, object_masks in zip(mask_paths, video.masks, strict=True):
        if not any((mask > 127).any() for mask in object_masks):
            warn(f"{paths[0].parent}: all masks are empty; everything will be background")
    if mask_sources is not None:
        video.mask_sources = tuple(mask_sources)
    return video.to(device)


def read_into_video(clip: Clip, video: Video, t: int) -> None:
    """Read frame t of a clip, its masks, and the flow to and from the next frame into a video."""
    video.frames[t] = torch.from_numpy(clip.frame(t))
    for object_masks, paths in zip(video.masks, clip.object_masks, strict=True):
        object_masks[t] = torch.from_numpy(clip.mask(paths[t]))
    if t + 1 < len(clip):
        flow, back_flow = clip.flow_pair(t)
        store_flow(video, FORWARD, t, flow, consistent_pixels(flow, back_flow))
        store_flow(video, BACKWARD, t + 1, back_flow, consistent_pixels(back_flow, flow))


def store_flow(video: Video, direction: int, t: int, flow: Floats, valid: NDArray[np.bool_]) -> None:
    """Store the flow from frame t, (H, W, 2), and where it is valid, (H, W), in a video.

    Flow is stored as int16: in steps below a thousandth of a pixel if no motion exceeds 32 pixels. Invalid flow is
    stored as zero.
    """
    is_valid = torch.from_numpy(valid)
    valid_flow = torch.where(is_valid[..., None], torch.from_numpy(flow), 0.0)
    unit_px = max(float(valid_flow.abs().max()), 1.0) / INT16_MAX
    video.flow_steps[direction, t] = (valid_flow / unit_px).round_()
    video.flow_unit_px[direction, t] = unit_px
    video.flow_valid[direction, t] = is_valid


def pretrain_mapping(
    mapping: nn.Module,
    name: str,
    target: Callable[[Tensor], Tensor],
    video: Video,
    config: Config,
    generator: torch.Generator,
) -> None:
    """Fit one mapping to a target before training. The loss is the mean Euclidean distance in uv, as published.

    target: pixels and frame numbers (N, 3) -> uv (N, 2). There are `pretrain_iter_number` rounds of one batch per
    frame. name: for the progress bar.
    """
    frames, height, width = video.size
    optimizer = torch.optim.Adam(mapping.parameters(), lr=PRETRAIN_LEARNING_RATE)
    extent = torch.tensor([width, height]).to(video.device)
    with tqdm(total=config.pretrain_iter_number * frames, desc=f"fitting the {name} mapping") as progress_bar:
        for _ in range(config.pretrain_iter_number):
            for t in range(frames):
                unit_xy = torch.rand(config.samples_batch, 2, generator=generator, device=video.device)
                xy = (unit_xy * extent).floor()
                xyt_px = torch.cat((xy, torch.full_like(xy[:, :1], t)), dim=1)
                loss = (mapping(video.normalize(xyt_px)) - target(xyt_px)).norm(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress_bar.update(frames)
