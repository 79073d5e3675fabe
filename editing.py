"""Edits: painted on an atlas or on one frame, carried through the whole video.

An edit is a premultiplied RGBA picture over a square of a layer's atlas. Reading it at a frame's places and laying it
over the frame is all that rendering does (Eq. 15 and 16), whichever way the edit was made.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import media
from command_line import UserError, warn
from media import Pixels, VideoWriter, to_8_bit
from rendering import (
    AtlasView,
    Floats,
    Frame,
    FrameStore,
    TrainedRun,
    atlas_places,
    composite,
    layer_views,
    render_frames,
    sample_image,
)
from reporting.preview import contact_sheet
from runs.models import Model
from unwrap_utils import Clip

FINER = 4  # a frame edit is spread this many times finer than its pixels, so that no hole opens between them
TEXELS_PER_PIXEL = 2  # resolution of the atlas square that a frame edit is spread into
STRIP_ROWS = 64  # rows of a frame that are spread at once, which bounds the memory
LARGEST_SQUARE_PX = 2048
DENSEST = 0.1  # the square resolves all but this share of the steps between neighbouring pixels
LEAST_SHARE = 0.1  # a layer that a painted pixel shows less than this takes a fading part of the paint, then none


@dataclass
class LayerEdit:
    """A picture over a square of one layer's atlas."""

    layer: int
    rgba: Tensor  # (h, w, 4) in [0, 1], colour premultiplied by opacity
    view: AtlasView

    def seen_by(self, places: Tensor) -> Floats:
        """The edit (H, W, 4) at a frame's places (H, W, 2) in the shared atlas."""
        size = (self.rgba.shape[1], self.rgba.shape[0])
        return sample_image(self.rgba, self.view.pixels(places, size)).numpy()


def read_atlas_edit(path: Path) -> Tensor:
    """An RGBA picture (s, s, 4) painted over an atlas image, premultiplied; any square size."""
    rgba = media.read_edit(path)
    height, width = rgba.shape[:2]
    if width != height:
        raise UserError(
            f"{path}: is {width} x {height}, an atlas edit must be square like the atlas images, at any size; "
            "paint it over texture_orig1.png or texture_orig2.png"
        )
    return torch.from_numpy(rgba)


def read_frame_edit(path: Path, clip: Clip) -> Floats:
    """An RGBA picture painted over a frame, at working size (H, W, 4), premultiplied."""
    rgba = media.read_edit(path)
    if not clip.fits(rgba.shape[1::-1]):
        raise UserError(
            f"{path}: is {rgba.shape[1]} x {rgba.shape[0]}, the frames are {clip.width} x {clip.height}; "
            "paint over a frame and keep its aspect"
        )
    return media.resize(rgba, clip.width, clip.height)


def spread_frame_edit(rgba: Floats, layer: int, places: Tensor, share: Tensor) -> LayerEdit | None:
    """Move paint from a frame (H, W, 4), premultiplied, into one layer's atlas; None if the layer shows none of it.

    places (H, W, 2) in the shared atlas; share (H, W) with which each pixel shows the layer. Where several pixels
    land on a texel their paint is averaged by share, and divided out once: opacity is not applied here, only when
    the edit is rendered. Texels known only from pixels that hardly show the layer fade out.
    """
    painted = torch.from_numpy(rgba[..., 3] > 0) & (share > LEAST_SHARE / 2)
    rows, columns = torch.where(painted)
    if len(rows) == 0:
        return None
    box = slice(max(rows.min() - 2, 0), rows.max() + 3), slice(max(columns.min() - 2, 0), columns.max() + 3)
    paint, places, share = torch.from_numpy(rgba)[box], places[box], share[box]
    view, size = square_around(places)
    stack = torch.cat((places, share[..., None], paint), dim=-1)
    sums = torch.zeros(size, size, 6)
    for top in range(0, max(len(stack) - 1, 1), STRIP_ROWS):
        pixels, share, paint = refined(stack[top : top + STRIP_ROWS + 1], top + STRIP_ROWS + 1 >= len(stack))
        values = torch.cat((paint * share, share, torch.ones_like(share)), dim=1)
        splat(sums, values, view.pixels(pixels, size))
    sums = closed_holes(sums)
    total, count = sums[..., 4:5], sums[..., 5:]
    known = total / count.clamp(min=1e-6)
    fade = (known / LEAST_SHARE - 0.5).clamp(0, 1)
    return LayerEdit(layer, sums[..., :4] / total.clamp(min=1e-6) * fade, view)


def square_around(places: Tensor) -> tuple[AtlasView, int]:
    """The smallest square of the atlas around places (H, W, 2), and its size in texels at the places' resolution."""
    low, high = places.flatten(0, 1).amin(0), places.flatten(0, 1).amax(0)
    edge = max(float((high - low).max()), 1e-6)
    steps = (places.diff(dim=axis).norm(dim=-1) for axis in (0, 1))
    gap = min((float(step.flatten().quantile(DENSEST)) for step in steps if step.numel()), default=edge)
    texels = edge / max(gap, 1e-9) * TEXELS_PER_PIXEL
    return AtlasView(float(low[0]), float(low[1]), edge), int(min(max(texels, 2), LARGEST_SQUARE_PX)) + 1


def refined(strip: Tensor, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (h, W, 7) of places, share and paint, FINER times finer: places (N, 2), shares (N, 1), paint (N, 4).

    The last row belongs to the next strip, but for the last one.
    """
    finer = [(side - 1) * FINER + 1 for side in strip.shape[:2]]
    fine = functional.interpolate(strip.permute(2, 0, 1)[None], finer, mode="bilinear", align_corners=True)[0]
    fine = fine if is_last else fine[:, :-1]
    return fine.flatten(1).T.split((2, 1, 4), dim=1)


def splat(sums: Tensor, values: Tensor, pixels: Tensor) -> None:
    """Add values (N, C) to the four texels of sums (S, S, C) around each position (N, 2), by nearness."""
    size, sums = len(sums), sums.view(-1, sums.shape[-1])
    corner = pixels.floor().clamp(0, size - 2)
    right, lower = (pixels - corner).clamp(0, 1).unbind(1)
    x, y = corner.long().unbind(1)
    for dx, across in ((0, 1 - right), (1, right)):
        for dy, down in ((0, 1 - lower), (1, lower)):
            sums.index_add_(0, (y + dy) * size + x + dx, values * (across * down)[:, None])


def closed_holes(sums: Tensor) -> Tensor:
    """Texels that nothing reached take the sum of their reached neighbours, twice; sums (S, S, C), count last."""
    for _ in range(2):
        around = functional.avg_pool2d(sums.permute(2, 0, 1)[None], 3, stride=1, padding=1)[0].permute(1, 2, 0)
        sums = torch.where(sums[..., -1:] > 1e-3, sums, around)
    return sums


def frame_edits(model: Model, frame: Frame, rgba: Floats, layers: list[int]) -> list[LayerEdit]:
    """Paint on one rendered frame as edits of the given layers."""
    places, shares = atlas_places(model, frame), torch.from_numpy(frame.visibility)
    edits = (spread_frame_edit(rgba, layer, places[layer], shares[layer]) for layer in layers)
    return [edit for edit in edits if edit is not None]


def edit_layers(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> list[tuple[Floats, Floats]]:
    """The edits as a frame shows them, each with the share of its layer: what `composite` takes."""
    places, shares = atlas_places(run.model, frame), frame.visibility
    return [(edit.seen_by(places[edit.layer]), shares[edit.layer]) for edit in edits]


def edited_frames(run: TrainedRun, frames: Iterator[Frame], edits: list[LayerEdit]) -> Iterator[Pixels]:
    """Yield the clip's frames (H, W, 3) uint8 with the edits on them."""
    for frame in frames:
        source = run.clip.frame(frame.t).astype(np.float32) / 255
        yield to_8_bit(composite(source, edit_layers(run, frame, edits), frame.light))


@dataclass(frozen=True)
class EditRequest:
    """What to paint: pictures over the atlases, or one over a frame."""

    foreground_path: Path | None = None
    background_path: Path | None = None
    frame_path: Path | None = None
    frame_index: int = 0
    frame_layers: tuple[str, ...] = ("foreground", "background")


def make_edits(run: TrainedRun, store: FrameStore, request: EditRequest) -> list[LayerEdit]:
    """The request as edits of layers. Raises UserError for a picture that does not fit."""
    background = len(run.model.layers) - 1
    if request.frame_path is None:
        views = layer_views(run.model, store.frames())
        wanted = ((request.foreground_path, 0), (request.background_path, background))
        return [LayerEdit(layer, read_atlas_edit(path), views[layer]) for path, layer in wanted if path is not None]
    rgba = read_frame_edit(request.frame_path, run.clip)
    layers = [*range(background)] * ("foreground" in request.frame_layers)
    layers += [background] * ("background" in request.frame_layers)
    return frame_edits(run.model, store.frame(request.frame_index), rgba, layers)


def write_edited_video(run: TrainedRun, request: EditRequest, folder: Path, save_frames: bool) -> None:
    """Write edited_NAME.mp4 and edited.png into `folder`, and with save_frames also edited_frames/*.png.

    The request has been checked against the clip.
    """
    clip = run.clip
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        rendered = render_frames(run.model, clip, run.full_range, with_colors=False)
        for frame in tqdm(rendered, total=len(clip), desc="reading the mapping", unit="frame"):
            store.add(frame)
        edits = make_edits(run, store, request)
        if save_frames:
            (folder / "edited_frames").mkdir()
        shown: dict[str, Pixels] = {}
        changed = False
        progress = tqdm(edited_frames(run, store.frames(), edits), total=len(clip), desc="editing", unit="frame")
        with VideoWriter(folder / f"edited_{clip.name}.mp4", clip.fps) as video:
            for t, frame in enumerate(progress):
                video.write(frame)
                changed = changed or not np.array_equal(frame, clip.frame(t))
                if save_frames:
                    media.write_png(folder / "edited_frames" / f"{clip.frame_paths[t].stem}.png", frame)
                if t in (0, len(clip) // 2, len(clip) - 1):
                    shown[f"frame {t}"] = frame
    media.write_png(folder / "edited.png", contact_sheet(shown))
    if not changed:
        warn("the edit shows in no frame: it is transparent, or lies where no frame sees the atlas")


def check_request(request: EditRequest, clip: Clip) -> None:
    """Refuse pictures that can't be used before the slow part begins and before anything is written."""
    for path in (request.foreground_path, request.background_path):
        if path is not None:
            read_atlas_edit(path)
    if request.frame_path is not None:
        read_frame_edit(request.frame_path, clip)
        if not 0 <= request.frame_index < len(clip):
            raise UserError(f"--edit_frame_index is {request.frame_index}, the clip has frames 0 to {len(clip) - 1}")
