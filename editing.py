"""Edits: painted on an atlas or on frames, carried through the whole video.

Whichever way an edit was made, it is a premultiplied RGBA picture over a part of a layer's atlas. Reading it at a
frame's places and laying it over the frame is all that rendering does (Eq. 15 and 16).
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import media
from command_line import UserError, warn
from edits.atlas_file import NAME, AtlasFile, check_aspect, read_atlas_file
from edits.blending import laid_over, stacked
from edits.fields import WHOLE, Box, at_size, box_around, edit_shares
from edits.layer_edit import LayerEdit
from edits.spread import frame_edits
from media import Pixels, to_8_bit
from media.videos import Audio, FrameFolder, VideoWriter
from rendering import (
    AtlasView,
    Floats,
    Frame,
    FrameStore,
    TrainedRun,
    atlas_places,
    layer_views,
    render_frames,
    rendered_frame,
    rendered_into,
)
from reporting.preview import contact_sheet
from unwrap_utils import Clip

BACKGROUND, ALL_OBJECTS = -1, -2  # in requests, which know no number of layers
PREVIEW_PX = 640  # width of a frame in edited.png
CHECKERED = (0.75, 0.85)  # greys behind an edit that is shown alone


@dataclass(frozen=True)
class AtlasEdit:
    """A picture over an atlas image."""

    layer: int  # an object's number from 0, the front one first; BACKGROUND is the last layer
    path: Path
    corner: tuple[float, float] | None = None  # where in the exported image it begins; None: it covers all of it


@dataclass(frozen=True)
class FrameEdit:
    """A picture over a frame."""

    index: int
    path: Path
    mask_path: Path | None = None  # its opacity, where the picture has none of its own


@dataclass(frozen=True)
class EditRequest:
    """What to paint, and how it is laid over the frames."""

    atlases: tuple[AtlasEdit, ...] = ()  # later ones win where they overlap
    atlas_path: Path | None = None  # atlas.json of the pictures painted on; None: beside them, else the square ones
    frames: tuple[FrameEdit, ...] = ()  # later ones win where they overlap
    frame_layers: tuple[int, ...] = (ALL_OBJECTS, BACKGROUND)  # that take paint on frames
    blend: str = "normal"
    opacity: float = 1.0
    is_native: bool = False  # rendered at the size of the frames as they are
    is_alone: bool = False  # the edit without the video, transparent elsewhere


@dataclass(frozen=True)
class Output:
    """What is written."""

    kind: str = "mp4"  # or "prores" (4444), "png" (a folder)
    crf: int = 18
    save_frames: bool = False
    audio: Audio | None = None


def read_atlas_edit(edit: AtlasEdit) -> Tensor:
    """An RGBA picture (h, w, 4) painted over an atlas image, premultiplied."""
    return torch.from_numpy(media.read_edit(edit.path))


def check_square(path: Path, size: tuple[int, int]) -> None:
    """Refuse an edit of a square atlas image that is not square."""
    if size[0] != size[1]:
        raise UserError(
            f"{path}: is {size[0]} x {size[1]}, an edit of texture_orig1.png or texture_orig2.png must be square, at "
            f"any size; an edit of an exported atlas needs its {NAME} beside it, or --atlas"
        )


def read_frame_edit(edit: FrameEdit, clip: Clip, size: tuple[int, int]) -> Floats:
    """An RGBA picture painted over a frame, at (width, height), premultiplied: (H, W, 4)."""
    has_own = edit.mask_path is None or media.has_opacity(edit.path)
    rgba = media.read_edit(edit.path) if has_own else media.read_masked(edit.path, edit.mask_path)
    if not clip.fits(rgba.shape[1::-1]):
        raise UserError(
            f"{edit.path}: is {rgba.shape[1]} x {rgba.shape[0]}, the frames are {clip.width} x {clip.height}; "
            "paint over a frame and keep its aspect"
        )
    return media.resize(rgba, *size)


def atlas_file_of(request: EditRequest, edit: AtlasEdit, run: TrainedRun) -> AtlasFile | None:
    """What describes the atlas that a picture was painted over; None: it is over the square image."""
    beside = edit.path.parent / NAME
    path = request.atlas_path or (beside if beside.is_file() else None)
    return None if path is None else read_atlas_file(path, run.checkpoint)


def wanted_edits(request: EditRequest, run: TrainedRun) -> list[tuple[AtlasEdit, int, AtlasFile | None]]:
    """The request's pictures over atlases, their layers, and what describes them."""
    return [(edit, layer_number(run, edit.layer), atlas_file_of(request, edit, run)) for edit in request.atlases]


def layer_number(run: TrainedRun, layer: int) -> int:
    """The number of a layer of the run, BACKGROUND's too. Raises UserError for an object that it has not."""
    objects = len(run.model.layers) - 1
    if layer >= objects:
        raise UserError(
            f"object {layer + 1}: the run {run.name} has {objects}, counted from the front; "
            'more are trained with "objects" in the config and masks for each'
        )
    return objects if layer == BACKGROUND else layer


def frame_layers(request: EditRequest, run: TrainedRun) -> list[int]:
    """The numbers of the layers that take paint on frames."""
    wanted = set(request.frame_layers)
    if ALL_OBJECTS in wanted:
        wanted = wanted - {ALL_OBJECTS} | set(range(len(run.model.layers) - 1))
    return sorted({layer_number(run, layer) for layer in wanted})


def atlas_edits(run: TrainedRun, request: EditRequest, frames: Iterable[Frame]) -> list[LayerEdit]:
    """The request's pictures over atlases as edits of layers; frames (a pass over the clip) only if need be."""
    wanted = wanted_edits(request, run)
    views: list[AtlasView] = []
    if any(atlas is None for _, _, atlas in wanted):
        views = layer_views(run.model, frames)
    edits = []
    for edit, layer, atlas in wanted:
        rgba = read_atlas_edit(edit)
        size = (rgba.shape[1], rgba.shape[0])
        view = atlas.layer(layer).view(run.model, size, edit.corner) if atlas else views[layer]
        # As published, texels are left out where the frame is coarser; only to compare with it.
        edits.append(LayerEdit(layer, rgba, view) if run.full_range else LayerEdit(layer, rgba, view, math.inf))
    return edits


def painted_frames(run: TrainedRun, request: EditRequest) -> list[LayerEdit]:
    """The request's pictures over frames as edits of layers."""
    layers = frame_layers(request, run)
    edits = []
    for edit in request.frames:
        frame = rendered_frame(run.model, run.clip, edit.index, run.full_range, with_colors=False)
        size = render_size(run, request)
        edits += frame_edits(run.model, at_size(frame, *size), read_frame_edit(edit, run.clip, size), layers)
    return edits


def render_size(run: TrainedRun, request: EditRequest) -> tuple[int, int]:
    """(width, height) of the edited frames."""
    return run.clip.native_size if request.is_native else (run.clip.width, run.clip.height)


def edit_layers(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> list[tuple[Floats, Floats]]:
    """The edits as a frame shows them: for each layer the paint and the layer's share."""
    shares = edit_shares(frame)
    return [(paint, shares[layer]) for layer, paint in painted_layers(run, frame, edits).items()]


def painted_layers(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> dict[int, Floats]:
    """The paint (H, W, 4) of each edited layer at a frame's places, later edits over earlier ones."""
    places = atlas_places(run.model, frame)
    return {
        layer: stacked([edit.seen_by(places[layer]) for edit in edits if edit.layer == layer])
        for layer in sorted({edit.layer for edit in edits})
    }


def edited_frames(
    run: TrainedRun, frames: Iterable[Frame], edits: list[LayerEdit], request: EditRequest
) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield for each frame the frame as it is (H, W, 3) and edited; alone: (H, W, 4), straight opacity."""
    width, height = render_size(run, request)
    is_larger = run.full_range and width > run.clip.width  # the published way of sampling may miss what is small
    for frame in frames:
        source = run.clip.native_frame(frame.t) if request.is_native else run.clip.frame(frame.t)
        edited = np.zeros((height, width, 4), np.uint8) if request.is_alone else source.copy()
        box = painted_box(run, frame, edits) if is_larger else WHOLE
        if box is not None:
            seen = at_size(frame, width, height, box)
            picture = source[box].astype(np.float32) / 255
            color, opacity = laid_over(picture, edit_layers(run, seen, edits), seen.light, request.blend)
            if request.is_alone:
                edited[box] = to_8_bit(np.dstack((color / np.maximum(opacity, 1e-6), opacity)))
            else:
                edited[box] = to_8_bit(picture * (1 - opacity) + color)
        yield source, edited


def painted_box(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> Box | None:
    """The part of a frame, of native size, beyond which the edits show nothing: a fraction of a large frame, mostly."""
    painted = np.zeros(frame.alpha.shape[1:], bool)
    for paint in painted_layers(run, frame, edits).values():
        painted |= paint[..., 3] > 0
    return box_around(painted, *run.clip.native_size)


def write_edited_video(run: TrainedRun, request: EditRequest, folder: Path, output: Output) -> None:
    """Write edited_NAME.mp4 (or .mov, or PNGs) and edited.png into `folder`.

    The request has been checked against the clip. Raises UserError for a picture that does not fit.
    """
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        edits = [edit.faded(request.opacity) for edit in make_edits(run, request, store)]
        write_edits(run, request, folder, output, store, edits)


def make_edits(run: TrainedRun, request: EditRequest, store: FrameStore) -> list[LayerEdit]:
    """The request as edits of layers; frames that had to be rendered for it are in the store."""
    return atlas_edits(run, request, rendered_into(store, run)) + painted_frames(run, request)


def write_edits(
    run: TrainedRun, request: EditRequest, folder: Path, output: Output, store: FrameStore, edits: list[LayerEdit]
) -> None:
    """Render edits into `folder`."""
    clip = run.clip
    frames = store.frames() if store.count else render_frames(run.model, clip, run.full_range, with_colors=False)
    every = edited_frames(run, frames, edits, request)
    shown: dict[str, Pixels] = {}
    changed = False
    names = [path.stem for path in clip.frame_paths]
    with video_writer(folder, clip, output) as video, FrameFolder(folder / "edited_frames", names) as pictures:
        for t, (source, frame) in enumerate(tqdm(every, total=len(clip), desc="editing", unit="frame")):
            changed = changed or (frame[..., 3].any() if request.is_alone else not np.array_equal(frame, source))
            video.write(frame)
            if output.save_frames:
                pictures.write(frame)
            if t in (0, len(clip) // 2, len(clip) - 1):
                height = min(frame.shape[0], round(PREVIEW_PX * frame.shape[0] / frame.shape[1]))
                width = min(frame.shape[1], PREVIEW_PX)
                shown[f"frame {t}"] = over_checkers(media.resize(frame, width, height))
    media.write_png(folder / "edited.png", contact_sheet(shown))
    if not changed:
        warn("the edit shows in no frame: it is transparent, or lies where no frame sees the atlas")


def video_writer(folder: Path, clip: Clip, output: Output) -> VideoWriter | FrameFolder:
    """Where the frames go."""
    if output.kind == "png":
        return FrameFolder(folder / f"edited_{clip.name}", [path.stem for path in clip.frame_paths])
    suffix = {"mp4": ".mp4", "prores": ".mov"}[output.kind]
    return VideoWriter(folder / f"edited_{clip.name}{suffix}", clip.fps, output.crf, output.kind, output.audio)


def over_checkers(picture: Pixels) -> Pixels:
    """An RGBA picture over a checkerboard; RGB as it is."""
    if picture.shape[2] == 3:
        return picture
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] // 16
    behind = np.where((rows + columns) % 2, *CHECKERED)[..., None] * 255
    alpha = picture[..., 3:] / 255
    return np.rint(picture[..., :3] * alpha + behind * (1 - alpha)).astype(np.uint8)


def check_request(request: EditRequest, run: TrainedRun) -> None:
    """Refuse pictures that can't be used before the slow part begins and before anything is written."""
    clip = run.clip
    for edit, layer, atlas in wanted_edits(request, run):
        size = read_atlas_edit(edit).shape[1::-1]
        if atlas is None and edit.corner is not None:
            raise UserError(f"{edit.path}: the place of a part is told in pixels of an exported atlas; give --atlas")
        if atlas is None:
            check_square(edit.path, size)
        elif edit.corner is None:
            check_aspect(edit.path, size, atlas.layer(layer))
    frame_layers(request, run)
    for edit in request.frames:
        if not 0 <= edit.index < len(clip):
            raise UserError(f"edit of frame {edit.index}: the clip has frames 0 to {len(clip) - 1}")
        read_frame_edit(edit, clip, (clip.width, clip.height))
