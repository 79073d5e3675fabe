"""What an edit asks for, and the checks that refuse it before any slow work begins."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import media
from command_line import UserError
from editing.atlas_file import ATLAS_FILE_NAME, AtlasFile, check_aspect, read_atlas_file
from media.clip import Clip
from media.videos import Audio
from rendering.frames import Floats
from rendering.trained_run import TrainedRun

BACKGROUND, ALL_OBJECTS = -1, -2  # in requests, which know no number of layers


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


@dataclass(frozen=True, kw_only=True)
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
            f"any size; an edit of an exported atlas needs its {ATLAS_FILE_NAME} beside it, or --atlas"
        )


def read_frame_edit(edit: FrameEdit, clip: Clip, size: tuple[int, int]) -> Floats:
    """An RGBA picture painted over a frame, at (width, height), premultiplied: (H, W, 4)."""
    has_own = edit.mask_path is None or media.has_opacity(edit.path)
    rgba = media.read_edit(edit.path) if has_own else media.read_with_mask(edit.path, edit.mask_path)
    if not clip.fits(rgba.shape[1::-1]):
        raise UserError(
            f"{edit.path}: is {rgba.shape[1]} x {rgba.shape[0]}, the frames are {clip.width} x {clip.height}; "
            "paint over a frame and keep its aspect"
        )
    return media.resize(rgba, *size)


def find_atlas_file(request: EditRequest, edit: AtlasEdit, run: TrainedRun) -> AtlasFile | None:
    """What describes the atlas that a picture was painted over; None: it is over the square image."""
    beside = edit.path.parent / ATLAS_FILE_NAME
    path = request.atlas_path or (beside if beside.is_file() else None)
    return None if path is None else read_atlas_file(path, run.checkpoint)


def resolve_atlas_edits(request: EditRequest, run: TrainedRun) -> list[tuple[AtlasEdit, int, AtlasFile | None]]:
    """The request's pictures over atlases, their layers, and what describes them."""
    return [(edit, layer_number(run, edit.layer), find_atlas_file(request, edit, run)) for edit in request.atlases]


def layer_number(run: TrainedRun, layer: int) -> int:
    """The number of a layer of the run, BACKGROUND's too. Raises UserError for an object that it has not."""
    layers = run.model.layers
    objects = len(layers.foregrounds)
    if layer >= objects:
        raise UserError(
            f"object {layer + 1}: the run {run.name} has {objects}, counted from the front; "
            'more are trained with "objects" in the config and masks for each'
        )
    return layers.background.index if layer == BACKGROUND else layer


def frame_edit_layers(request: EditRequest, run: TrainedRun) -> list[int]:
    """The numbers of the layers that take paint on frames."""
    wanted = set(request.frame_layers)
    if ALL_OBJECTS in wanted:
        wanted = wanted - {ALL_OBJECTS} | {layer.index for layer in run.model.layers.foregrounds}
    return sorted({layer_number(run, layer) for layer in wanted})


def check_request(request: EditRequest, run: TrainedRun) -> None:
    """Refuse pictures that can't be used before the slow part begins and before anything is written."""
    clip = run.clip
    for edit, layer, atlas in resolve_atlas_edits(request, run):
        size = read_atlas_edit(edit).shape[1::-1]
        if atlas is None and edit.corner is not None:
            raise UserError(f"{edit.path}: the place of a part is told in pixels of an exported atlas; give --atlas")
        if atlas is None:
            check_square(edit.path, size)
        elif edit.corner is None:
            check_aspect(edit.path, size, atlas.layer(layer))
    frame_edit_layers(request, run)
    for edit in request.frames:
        if not 0 <= edit.index < len(clip):
            raise UserError(f"edit of frame {edit.index}: the clip has frames 0 to {len(clip) - 1}")
        read_frame_edit(edit, clip, (clip.width, clip.height))
