"""From a trained model to arrays: rendered frames, views of an atlas, pictures seen through a mapping.

`render_frames` yields one frame at a time and consumers take it from there; no array spans the video.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from command_line import UserError
from config import load_config
from edits.blending import laid_over
from implicit_neural_networks import ALPHA_FLOOR, ALPHA_SCALE, CHUNK, visibility
from runs.models import Model, layer_scales_px, load_model
from unwrap_utils import Clip, open_clip, pick_device

VISIBLE = 0.5  # a pixel counts as seen in a layer above this share
CROP_SHARE = 0.75  # opacity where the raw output, a tanh, is 0.5
SPREAD_POINTS = 4_000_000  # at most so many interpolated places mark what an atlas shows of one frame
Floats = NDArray[np.float32]
NO_PICTURE = np.empty((0, 0, 3), np.float32)


@dataclass
class Frame:
    """One rendered frame; L layers, the background last."""

    t: int
    uv: Floats  # (L, H, W, 2), in [-1, 1] where the layer's atlas is
    alpha: Floats  # (L - 1, H, W)
    rgb: Floats  # (H, W, 3), the layers composed, as they are lit
    full_range: bool = True  # of alpha; else it is squeezed into the published range
    light: Floats | None = None  # (H, W, 3) factor of the colours; None: a model without light
    unlit: Floats | None = None  # (H, W, 3), the layers composed without it

    @property
    def visibility(self) -> Floats:
        """(L, H, W): share of each layer in each pixel."""
        return visibility(torch.from_numpy(self.alpha)).numpy()

    @property
    def uses_background(self) -> NDArray[np.bool_]:
        """(H, W): pixels that count for the background's crop, those of raw (tanh) opacity below 0.5, as published."""
        limit = CROP_SHARE if self.full_range else ALPHA_SCALE * CROP_SHARE + ALPHA_FLOOR
        return (self.alpha < limit).all(0)

    @property
    def coverage(self) -> Floats:
        """(H, W): opacity of all foreground objects together."""
        return 1 - self.visibility[-1]


def render_frames(model: Model, clip: Clip, full_range: bool, with_colors: bool = True) -> Iterator[Frame]:
    """Yield the clip's frames as the model sees them, one at a time; rgb stays empty without with_colors."""
    return (rendered_frame(model, clip, t, full_range, with_colors) for t in range(len(clip)))


@torch.no_grad()
def rendered_frame(model: Model, clip: Clip, t: int, full_range: bool, with_colors: bool = True) -> Frame:
    """Frame t of the clip as the model sees it."""
    shape = (clip.height, clip.width)

    def picture(values: Tensor | None) -> Floats | None:
        """Values of all pixels (..., H * W, C) as (..., H, W, C)."""
        return None if values is None else values.unflatten(-2, shape).cpu().numpy()

    sample = model.frame_sample(t, clip.size, full_range, with_colors)
    return Frame(
        t,
        picture(sample.uv),
        picture(sample.alpha)[..., 0],
        picture(sample.rgb.clamp(0, 1)) if with_colors else NO_PICTURE,
        full_range,
        picture(sample.light),
        picture(sample.unlit) if with_colors and sample.light is not None else None,
    )


@dataclass(frozen=True)
class AtlasView:
    """The part of the shared atlas that an image shows. Its first and last pixels lie on the part's border."""

    left: float
    top: float
    edge: float  # its width, and its height where that is no other
    height: float | None = None

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height)."""
        return self.edge, self.edge if self.height is None else self.height

    def pixels(self, places: Tensor, size: int | tuple[int, int]) -> Tensor:
        """Places (..., 2) in the shared atlas to image pixels (x, y) of an image of `size` (width, height)."""
        width, height = (size, size) if isinstance(size, int) else size
        corner = places.new_tensor([self.left, self.top])
        return (places - corner) / places.new_tensor(self.extent) * places.new_tensor([width - 1, height - 1])

    def places(self, size: int | tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """(width * height, 2): the place of every pixel of an image of `size` (width, height), row by row."""
        width, height = (size, size) if isinstance(size, int) else size
        u = self.left + self.extent[0] * torch.linspace(0, 1, width, device=device)
        v = self.top + self.extent[1] * torch.linspace(0, 1, height, device=device)
        return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).view(-1, 2)


def atlas_places(model: Model, frame: Frame) -> Tensor:
    """(L, H, W, 2) on the CPU: the frame's places in the shared atlas."""
    return 0.5 * torch.from_numpy(frame.uv) + model.atlas_centers[:, None].cpu()


def layer_views(model: Model, frames: Iterable[Frame]) -> list[AtlasView]:
    """What each layer's atlas image shows: a foreground's own square; of the background the square in use.

    The latter's corner is the smallest (u, v), its side the larger extent, over the pixels that use the background.
    A background that is never seen keeps its whole square.
    """
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for frame in frames:
        places = atlas_places(model, frame)[-1].numpy()[frame.uses_background]
        if len(places):
            low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    squares = [AtlasView(center[0] - 0.5, center[1] - 0.5, 1.0) for center in model.atlas_centers[:, 0].tolist()]
    extent = float((high - low).max())
    if np.isfinite(extent) and extent > 0:
        squares[-1] = AtlasView(float(low[0]), float(low[1]), extent)
    return squares


@torch.no_grad()
def atlas_image(
    model: Model, view: AtlasView, size: int | tuple[int, int], wanted: NDArray[np.bool_] | None = None
) -> Floats:
    """(height, width, 3) in [0, 1]: the learned atlas at `size` (width, height), or square; only where `wanted`."""
    width, height = (size, size) if isinstance(size, int) else size
    device = next(model.parameters()).device
    places = view.places(size, device)
    chosen = torch.arange(width * height) if wanted is None else torch.from_numpy(np.flatnonzero(wanted))
    image = torch.zeros(width * height, 3)
    for part in chosen.split(CHUNK.get(device.type, CHUNK["cpu"])):
        image[part] = model.atlas_color(places[part.to(device)]).cpu()
    return image.view(height, width, 3).numpy()


def mark_seen(seen: Tensor, view: AtlasView, places: Tensor, share: Tensor) -> None:
    """Raise `seen` (h, w) to the share (H, W) with which the frame's places (H, W, 2) are visible.

    Places are interpolated between pixels as finely as the atlas is finer than the frame, so that no holes are left.
    """
    size = (seen.shape[1], seen.shape[0])
    rows, columns = torch.where(share > VISIBLE)
    if len(rows) == 0:
        return
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    places, share = view.pixels(places[top:bottom, left:right], size), share[top:bottom, left:right]
    if min(places.shape[:2]) > 1:
        gaps = torch.cat((places.diff(dim=0).norm(dim=-1).flatten(), places.diff(dim=1).norm(dim=-1).flatten()))
        affordable = int((SPREAD_POINTS / share.numel()) ** 0.5)
        finer = max(1, min(affordable, int(np.ceil(2 * float(gaps.quantile(0.95))))))
        if finer > 1:
            shape = ((places.shape[0] - 1) * finer + 1, (places.shape[1] - 1) * finer + 1)
            stack = torch.cat((places, share[..., None]), dim=-1).permute(2, 0, 1)[None]
            stack = functional.interpolate(stack, shape, mode="bilinear", align_corners=True)[0]
            places, share = stack[:2].permute(1, 2, 0), stack[2]
    pixels = places.round().long()
    inside = ((pixels >= 0) & (pixels < pixels.new_tensor(size))).all(-1)
    index = pixels[inside] @ pixels.new_tensor([1, size[0]])
    seen.view(-1).scatter_reduce_(0, index, share[inside], "amax")


class FrameStore:
    """Rendered frames on disk, in a folder that vanishes: one file each, read back one at a time."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def add(self, frame: Frame, error: Floats | None = None) -> None:
        """Keep a frame without its colours, and how far those were off (H, W) where that is known."""
        error = NO_PICTURE if error is None else error
        kept = {"uv": frame.uv, "alpha": frame.alpha, "full_range": frame.full_range, "error": error}
        if frame.light is not None:
            kept["light"] = frame.light
        np.savez(self.folder / f"{frame.t}.npz", **kept)
        self.count += 1

    def read(self, t: int) -> tuple[Frame, Floats]:
        """One frame, its colours empty, and its error."""
        with np.load(self.folder / f"{t}.npz") as kept:
            light = kept.get("light")
            return Frame(t, kept["uv"], kept["alpha"], NO_PICTURE, bool(kept["full_range"]), light), kept["error"]

    def __iter__(self) -> Iterator[tuple[Frame, Floats]]:
        return map(self.read, range(self.count))

    def frame(self, t: int) -> Frame:
        """One frame, its colours empty."""
        return self.read(t)[0]

    def frames(self) -> Iterator[Frame]:
        """The frames alone."""
        return map(self.frame, range(self.count))


def rendered_into(store: FrameStore, run: "TrainedRun") -> Iterator[Frame]:
    """Yield all frames of a run, without colours, each kept in the store."""
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False)
    for frame in tqdm(frames, total=len(run.clip), desc="reading the mapping", unit="frame"):
        store.add(frame)
        yield frame


@contextmanager
def stored(run: "TrainedRun", folder: Path) -> Iterator[FrameStore]:
    """All frames of a run, rendered once, without colours; they lie in `folder` as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        for _ in rendered_into(store, run):
            pass
        yield store


def sample_image(image: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear values (H, W, C) of an image (h, w, C) at pixel positions (H, W, 2); zero outside."""
    height, width = image.shape[:2]
    grid = pixels / pixels.new_tensor([max(width - 1, 1), max(height - 1, 1)]) * 2 - 1
    values = functional.grid_sample(
        image.permute(2, 0, 1)[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return values[0].permute(1, 2, 0)


def composite(
    source: Floats, edits: list[tuple[Floats, Floats]], light: Floats | None = None, blend: str = "normal"
) -> Floats:
    """Eq. 15 and 16: edits of all layers over a frame (H, W, 3); what they are is in `laid_over`."""
    color, opacity = laid_over(source, edits, light, blend)
    return source * (1 - opacity) + color


@dataclass
class TrainedRun:
    """A finished run, opened to evaluate or edit."""

    model: Model
    clip: Clip
    full_range: bool  # of rendered opacity
    px_per_uv: list[float]  # of each layer
    checkpoint: Path = Path("checkpoint")  # where it came from

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.checkpoint.resolve().parent.name


def open_run(
    folder: Path, video_name: str | None, data_folder: Path | None, fps: float | None, alpha_range: str | None
) -> TrainedRun:
    """Open a run's folder (config.json and checkpoint) and its clip; what is None comes from the config."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder that train.py wrote, with config.json and checkpoint")
    if fps is not None and not 0 < fps < 1000:
        raise UserError(f"--fps is {fps}, expected frames per second above 0")
    config = load_config(folder / "config.json")
    trained_on = Path(config.data_folder)
    frames = (data_folder or trained_on.parent) / (video_name or trained_on.name)
    if not frames.is_dir():
        raise UserError(f"{frames}: no such folder of frames; say where they are with --data_folder and --video_name")
    model = load_model(folder / "checkpoint", config, pick_device())
    clip = open_clip(frames, config, fps)
    full_range = (alpha_range or config.alpha_range) == "full"
    return TrainedRun(model, clip, full_range, layer_scales_px(model, clip.size), folder / "checkpoint")
