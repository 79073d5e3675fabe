"""Edits carried through the whole video, frame by frame (Eq. 15 and 16)."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import media
from command_line import warn
from editing.layer_edit import LayerEdit, paint_visibility
from editing.requests import (
    EditRequest,
    Output,
    frame_edit_layers,
    read_atlas_edit,
    read_frame_edit,
    resolve_atlas_edits,
)
from editing.splatting import splat_frame
from media import Pixels, to_8_bit
from media.clip import Clip
from media.contact_sheet import contact_sheet
from media.videos import FrameFolder, VideoWriter
from rendering.atlas_view import AtlasView, atlas_uv, fit_atlas_views
from rendering.blending import alpha_over, composite_edits
from rendering.frame_store import FrameStore, render_into_store
from rendering.frames import Floats, Frame, render_frame, render_frames
from rendering.resizing import WHOLE, Box, bounding_box, resize_frame
from rendering.trained_run import TrainedRun

PREVIEW_PX = 640  # width of a frame in edited.png
CHECKERED = (0.75, 0.85)  # greys behind an edit that is shown alone


def make_atlas_edits(run: TrainedRun, request: EditRequest, frames: Iterable[Frame]) -> list[LayerEdit]:
    """The request's pictures over atlases as edits of layers; frames (a pass over the clip) only if need be."""
    wanted = resolve_atlas_edits(request, run)
    views: list[AtlasView] = []
    if any(atlas is None for _, _, atlas in wanted):
        views = fit_atlas_views(run.model, frames)
    edits = []
    for edit, layer, atlas in wanted:
        rgba = read_atlas_edit(edit)
        size = (rgba.shape[1], rgba.shape[0])
        view = atlas.layer(layer).view(run.model, size, edit.corner) if atlas else views[layer]
        # As published, texels are left out where the frame is coarser; only to compare with it.
        edits.append(LayerEdit(layer, rgba, view) if run.full_range else LayerEdit(layer, rgba, view, math.inf))
    return edits


def make_frame_edits(run: TrainedRun, request: EditRequest) -> list[LayerEdit]:
    """The request's pictures over frames as edits of layers."""
    layers = frame_edit_layers(request, run)
    edits = []
    for edit in request.frames:
        frame = render_frame(run.model, run.clip, edit.index, run.full_range, with_colors=False)
        size = render_size(run, request)
        edits += splat_frame(run.model, resize_frame(frame, *size), read_frame_edit(edit, run.clip, size), layers)
    return edits


def render_size(run: TrainedRun, request: EditRequest) -> tuple[int, int]:
    """(width, height) of the edited frames."""
    return run.clip.native_size if request.is_native else (run.clip.width, run.clip.height)


def visible_edits(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> list[tuple[Floats, Floats]]:
    """The edits as a frame shows them: for each layer the paint and the layer's share."""
    shares = paint_visibility(frame)
    return [(paint, shares[layer]) for layer, paint in sample_edits(run, frame, edits).items()]


def sample_edits(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> dict[int, Floats]:
    """The paint (H, W, 4) of each edited layer at a frame's places, later edits over earlier ones."""
    places = atlas_uv(run.model, frame)
    return {
        layer: alpha_over([edit.sample(places[layer]) for edit in edits if edit.layer == layer])
        for layer in sorted({edit.layer for edit in edits})
    }


def render_edited_frames(
    run: TrainedRun, frames: Iterable[Frame], edits: list[LayerEdit], request: EditRequest
) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield for each frame the frame as it is (H, W, 3) and edited; alone: (H, W, 4), straight opacity."""
    width, height = render_size(run, request)
    is_larger = run.full_range and width > run.clip.width  # the published way of sampling may miss what is small
    for frame in frames:
        source = run.clip.native_frame(frame.t) if request.is_native else run.clip.frame(frame.t)
        edited = np.zeros((height, width, 4), np.uint8) if request.is_alone else source.copy()
        box = edited_box(run, frame, edits) if is_larger else WHOLE
        if box is not None:
            seen = resize_frame(frame, width, height, box)
            picture = source[box].astype(np.float32) / 255
            color, opacity = composite_edits(picture, visible_edits(run, seen, edits), seen.light, request.blend)
            if request.is_alone:
                edited[box] = to_8_bit(np.dstack((color / np.maximum(opacity, 1e-6), opacity)))
            else:
                edited[box] = to_8_bit(picture * (1 - opacity) + color)
        yield source, edited


def edited_box(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> Box | None:
    """The part of a frame, of native size, beyond which the edits show nothing: a fraction of a large frame, mostly."""
    painted = np.zeros(frame.alpha.shape[1:], bool)
    for paint in sample_edits(run, frame, edits).values():
        painted |= paint[..., 3] > 0
    return bounding_box(painted, *run.clip.native_size)


def write_edited_video(run: TrainedRun, request: EditRequest, folder: Path, output: Output) -> None:
    """Write edited_NAME.mp4 (or .mov, or PNGs) and edited.png into `folder`.

    The request has been checked against the clip. Raises UserError for a picture that does not fit.
    """
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        edits = [edit.scale_opacity(request.opacity) for edit in make_edits(run, request, store)]
        write_edits(run, request, folder, output, store, edits)


def make_edits(run: TrainedRun, request: EditRequest, store: FrameStore) -> list[LayerEdit]:
    """The request as edits of layers; frames that had to be rendered for it are in the store."""
    return make_atlas_edits(run, request, render_into_store(store, run)) + make_frame_edits(run, request)


def write_edits(
    run: TrainedRun, request: EditRequest, folder: Path, output: Output, store: FrameStore, edits: list[LayerEdit]
) -> None:
    """Render edits into `folder`."""
    clip = run.clip
    frames = store.frames() if store.count else render_frames(run.model, clip, run.full_range, with_colors=False)
    every = render_edited_frames(run, frames, edits, request)
    shown: dict[str, Pixels] = {}
    changed = False
    names = [path.stem for path in clip.frame_paths]
    with open_video_writer(folder, clip, output) as video, FrameFolder(folder / "edited_frames", names) as pictures:
        for t, (source, frame) in enumerate(tqdm(every, total=len(clip), desc="editing", unit="frame")):
            changed = changed or (frame[..., 3].any() if request.is_alone else not np.array_equal(frame, source))
            video.write(frame)
            if output.save_frames:
                pictures.write(frame)
            if t in (0, len(clip) // 2, len(clip) - 1):
                height = min(frame.shape[0], round(PREVIEW_PX * frame.shape[0] / frame.shape[1]))
                width = min(frame.shape[1], PREVIEW_PX)
                shown[f"frame {t}"] = show_over_checkers(media.resize(frame, width, height))
    media.write_png(folder / "edited.png", contact_sheet(shown))
    if not changed:
        warn("the edit shows in no frame: it is transparent, or lies where no frame sees the atlas")


def open_video_writer(folder: Path, clip: Clip, output: Output) -> VideoWriter | FrameFolder:
    """Where the frames go."""
    if output.kind == "png":
        return FrameFolder(folder / f"edited_{clip.name}", [path.stem for path in clip.frame_paths])
    suffix = {"mp4": ".mp4", "prores": ".mov"}[output.kind]
    return VideoWriter(folder / f"edited_{clip.name}{suffix}", clip.fps, output.crf, output.kind, output.audio)


def show_over_checkers(picture: Pixels) -> Pixels:
    """An RGBA picture over a checkerboard; RGB as it is."""
    if picture.shape[2] == 3:
        return picture
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] // 16
    behind = np.where((rows + columns) % 2, *CHECKERED)[..., None] * 255
    alpha = picture[..., 3:] / 255
    return np.rint(picture[..., :3] * alpha + behind * (1 - alpha)).astype(np.uint8)
