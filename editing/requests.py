"""What a user asks to edit, and the checks that refuse unusable pictures before any slow work begins."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import media
from command_line import UserError, warn
from editing.atlas_file import ATLAS_FILE_NAME, AtlasFile, LayerImage, read_atlas_file
from editing.attachment import shows_object
from editing.layered_files import LAYERED_SUFFIXES, PaintPart, read_paint
from editing.project import Project, check_project
from media.clip import Clip
from media.sound import Audio
from rendering.frames import Floats, render_frame
from rendering.trained_run import TrainedRun

SHOWN = 0.5  # Opacity above which a pixel of a picture counts.
SAME_COLOR = 3 / 255  # Difference below which a colour counts as that of another image.
MOST_COPIED = 0.3  # Share of a picture above which colours of another image cannot be a coincidence.
PAINT_ALONE = "leave those parts transparent: paint on a layer of its own, and save that layer alone"
BACKGROUND, ALL_OBJECTS = -1, -2  # Layers in a request, which does not know the number of layers of the run.
ASPECT_TOLERANCE_PX = 1.5  # Pixels by which the height of a scaled edit may differ from the atlas image's aspect.


@dataclass(frozen=True)
class AtlasEdit:
    """A picture painted over an atlas image."""

    layer: int  # number of the object from 0, the front one first; BACKGROUND is the last layer
    path: Path
    corner: tuple[float, float] | None = None  # pixel (x, y) of the exported image where it begins; None: covers all


@dataclass(frozen=True)
class FrameEdit:
    """A picture painted over a frame."""

    index: int  # number of the frame, from 0
    path: Path
    mask_path: Path | None = None  # opacity of a picture that has none of its own
    shape_path: Path | None = None  # mask of the new shape of the object to which the paint is attached


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What to paint, and how it is composited over the frames."""

    atlas_edits: tuple[AtlasEdit, ...] = ()  # later ones cover earlier ones, those on looks all others
    atlas_path: Path | None = None  # atlas.json of the exported images; None: beside the pictures, else square images
    frame_edits: tuple[FrameEdit, ...] = ()  # later ones cover earlier ones
    frame_layers: tuple[int, ...] = (ALL_OBJECTS, BACKGROUND)  # layers that take the paint of frame edits
    attached_object: int | None = None  # object, from 0, that frame edits follow beyond its outline; None: no object
    attached_atlases: frozenset[int] = frozenset()  # objects, from 0, whose atlas edits show beyond the outline, too
    project: Project | None = None  # of the editor in the browser
    blend: str = "normal"  # one of rendering.blending.BLEND_MODES
    opacity: float = 1.0  # factor of the opacity of all edits, 0 to 1
    is_native: bool = False  # edit the frames at their own size instead of the working size
    edit_only: bool = False  # write the edit without the video, transparent elsewhere
    is_linear: bool = False  # the edit without the video is in linear light, for EXR files


@dataclass(frozen=True)
class Output:
    """The format of the edited video."""

    kind: str = "mp4"  # or "prores" (ProRes 4444), "ffv1" (lossless), "png" or "exr" (a folder of pictures)
    crf: int = 18  # quality of the mp4, from 0 (lossless) to 51
    save_frames: bool = False  # also write the frames as PNGs
    audio: Audio | None = None


def read_frame_edit(edit: FrameEdit, clip: Clip, size: tuple[int, int]) -> list[PaintPart]:
    """Read the paint of a frame edit, resized to `size` (width, height), from the lowest to the uppermost.

    Raises UserError if its aspect is not that of the frames.
    """
    is_layered = edit.path.suffix.lower() in LAYERED_SUFFIXES
    if edit.mask_path is None or is_layered or media.has_opacity(edit.path):
        paint = read_paint(edit.path)
    else:
        paint = [PaintPart(media.read_edit_with_mask(edit.path, edit.mask_path))]
    check_frame_aspect(edit.path, paint[0].rgba.shape[1::-1], clip)
    return [PaintPart(media.resize(part.rgba, *size), part.blend) for part in paint]


def read_shape(edit: FrameEdit, clip: Clip, size: tuple[int, int]) -> Floats | None:
    """Read the new shape that a frame edit gives its object, resized to `size` (width, height): (H, W) in [0, 1].

    None if it gives none. Raises UserError if the aspect is not that of the frames.
    """
    if edit.shape_path is None:
        return None
    mask = media.read_mask(edit.shape_path)
    check_frame_aspect(edit.shape_path, mask.shape[1::-1], clip)
    return media.resize(mask, *size).astype("float32") / 255


def check_frame_aspect(path: Path, size: tuple[int, int], clip: Clip) -> None:
    """Raise UserError if a picture of (width, height) over a frame does not have the frame's aspect."""
    if not clip.has_frame_aspect(size):
        raise UserError(
            f"{path}: is {size[0]} x {size[1]}, the frames are {clip.width} x {clip.height}; "
            "draw over a frame, and keep its aspect"
        )


def find_atlas_file(request: EditRequest, edit: AtlasEdit, run: TrainedRun) -> AtlasFile | None:
    """Read the atlas.json that belongs to an atlas edit; None if the edit is painted over a square atlas image."""
    default_path = edit.path.parent / ATLAS_FILE_NAME
    path = request.atlas_path or (default_path if default_path.is_file() else None)
    return None if path is None else read_atlas_file(path, run.checkpoint)


def atlas_folder(request: EditRequest, edit: AtlasEdit) -> Path:
    """Return the folder of the exported images over which an atlas edit is painted."""
    path = request.atlas_path or edit.path.parent
    return path if path.is_dir() else path.parent


@dataclass(frozen=True)
class ResolvedEdit:
    """An atlas edit with what a run and an atlas.json tell about it."""

    edit: AtlasEdit
    layer: int  # index of the layer
    image: LayerImage | None  # the exported image that it is painted over; None: a square atlas image
    frame_weights: tuple[float, ...] | None = None  # see `AtlasFile.frame_weights`


def resolve_atlas_edits(request: EditRequest, run: TrainedRun) -> list[ResolvedEdit]:
    """Return each atlas edit of a request with its layer and the image that it is painted over."""
    resolved = []
    for edit in request.atlas_edits:
        layer, atlas = layer_index(run, edit.layer), find_atlas_file(request, edit, run)
        if atlas is None:
            resolved.append(ResolvedEdit(edit, layer, None))
        else:
            image = atlas.find_image(edit.path, layer)
            resolved.append(ResolvedEdit(edit, layer, image, atlas.frame_weights(image, len(run.clip))))
    return resolved


def layer_index(run: TrainedRun, layer: int) -> int:
    """Return the index of a requested layer in the run. Raises UserError for an object that the run does not have."""
    layers = run.model.layers
    objects = len(layers.foregrounds)
    if layer >= objects:
        raise UserError(
            f"object {layer + 1}: the run {run.name} has {objects} object(s), counted from the front; "
            'to train more, set "objects" in the config and give masks for each'
        )
    return layers.background.index if layer == BACKGROUND else layer


def frame_edit_layers(request: EditRequest, run: TrainedRun) -> list[int]:
    """Return the indices of the layers that take the paint of frame edits."""
    layers = set(request.frame_layers)
    if ALL_OBJECTS in layers:
        layers = layers - {ALL_OBJECTS} | {layer.index for layer in run.model.layers.foregrounds}
    return sorted({layer_index(run, layer) for layer in layers})


def check_request(request: EditRequest, run: TrainedRun) -> None:
    """Raise UserError for pictures, frames or layers that cannot be used. Nothing is rendered or written."""
    clip = run.clip
    for resolved in resolve_atlas_edits(request, run):
        atlas_edit, image = resolved.edit, resolved.image
        paint = read_paint(atlas_edit.path)[0].rgba
        height, width = paint.shape[:2]
        if image is None and atlas_edit.corner is not None:
            raise UserError(
                f"{atlas_edit.path}: the corner of a part is given in pixels of an exported atlas; add --atlas"
            )
        if image is None:
            check_square(atlas_edit.path, (width, height))
        elif atlas_edit.corner is None:
            check_aspect(atlas_edit.path, (width, height), image)
            warn_about_exported_colors(atlas_edit.path, paint, atlas_folder(request, atlas_edit) / image.image)
    if request.project is not None:
        check_project(request.project, run)
    frame_edit_layers(request, run)
    attached = [*request.attached_atlases, *([] if request.attached_object is None else [request.attached_object])]
    for number in attached:
        layer_index(run, number)
    for frame_edit in request.frame_edits:
        if not 0 <= frame_edit.index < len(clip):
            raise UserError(f"edit of frame {frame_edit.index}: the clip has frames 0 to {len(clip) - 1}")
        parts = read_frame_edit(frame_edit, clip, (clip.width, clip.height))
        warn_about_copied_frame(frame_edit, parts, clip)
        read_shape(frame_edit, clip, (clip.width, clip.height))
        check_attachment(request, run, frame_edit)


def warn_about_exported_colors(path: Path, paint: Floats, exported: Path) -> None:
    """Warn if much of the paint (h, w, 4) is the exported image: what nobody painted would cover the layer, too.

    The exported image is not needed for the edit, so nothing is said if it is missing, or no longer as it was exported.
    """
    try:
        image = media.read_edit(exported)
    except UserError:
        return
    share = share_of_copy(paint, image)
    if share > MOST_COPIED:
        warn(
            f"{path}: {100 * share:.0f} % of it is {exported.name} as it was exported, which covers the layer in all "
            f"frames like paint; {PAINT_ALONE}"
        )


def warn_about_copied_frame(edit: FrameEdit, parts: list[PaintPart], clip: Clip) -> None:
    """Warn if much of the paint on a frame is the frame: what nobody painted would stick to all layers, too."""
    frame = clip.frame(edit.index).astype(np.float32) / 255
    share = max(share_of_copy(part.rgba, np.dstack((frame, np.ones_like(frame[..., :1])))) for part in parts)
    if share > MOST_COPIED:
        warn(
            f"{edit.path}: {100 * share:.0f} % of it is frame {edit.index} itself, which covers other frames like "
            f"paint; {PAINT_ALONE}"
        )


def share_of_copy(paint: Floats, image: Floats) -> float:
    """Return which part of the opaque pixels of paint (h, w, 4) has the colours of an image; 0 if the sizes differ."""
    if image.shape != paint.shape:
        return 0.0
    is_opaque = (image[..., 3] > SHOWN) & (paint[..., 3] > SHOWN)
    return float((np.abs(image - paint).max(-1) < SAME_COLOR)[is_opaque].mean()) if is_opaque.any() else 0.0


def check_attachment(request: EditRequest, run: TrainedRun, edit: FrameEdit) -> None:
    """Raise UserError if paint is to be attached to an object that its frame does not show."""
    if request.attached_object is None:
        return
    frame = render_frame(run.model, run.clip, edit.index, run.full_range, with_colors=False)
    if not shows_object(frame, request.attached_object):
        raise UserError(
            f"{edit.path}: frame {edit.index} does not show object {request.attached_object + 1}; paint over another"
        )


def check_square(path: Path, size: tuple[int, int]) -> None:
    """Raise UserError if an edit of a square atlas image is not square."""
    if size[0] != size[1]:
        raise UserError(
            f"{path}: is {size[0]} x {size[1]}, an edit of texture_orig1.png or texture_orig2.png must be square, at "
            f"any size; an edit of an exported atlas needs its {ATLAS_FILE_NAME} beside it, or --atlas"
        )


def check_aspect(path: Path, size: tuple[int, int], image: LayerImage) -> None:
    """Raise UserError if an edit of a whole exported image does not have the image's aspect."""
    expected_height = size[0] * image.height / image.width
    if abs(expected_height - size[1]) > ASPECT_TOLERANCE_PX:
        raise UserError(
            f"{path}: is {size[0]} x {size[1]}, {image.image} is {image.width} x {image.height}; paint over that "
            "picture and keep its aspect, or give the pixel where a part begins (--edit_foreground_at or "
            "--edit_background_at)"
        )
