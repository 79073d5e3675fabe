"""Edited videos: edits of the layers are composited over every frame (Eq. 15 and 16)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

import media
from command_line import warn
from editing.attachment import attach_paint
from editing.layer_edit import LayerEdit, front_transmittance, paint_visibility
from editing.layered_files import ATLAS_LAYER, GUIDE_LAYER, read_paint
from editing.new_shape import clear_free_part, find_free_part, find_freed_pixels
from editing.project import make_project_edits
from editing.requests import (
    EditRequest,
    Output,
    frame_edit_layers,
    read_frame_edit,
    read_shape,
    resolve_atlas_edits,
)
from editing.splatting import splat_attached, splat_frame
from media import Pixels
from media.clip import Clip
from media.contact_sheet import contact_sheet
from media.videos import FrameFolder, VideoWriter
from parallel.side_by_side import stream_side_by_side
from rendering.atlas_view import AtlasView, compute_atlas_uv, fit_atlas_views
from rendering.blending import alpha_over, composite_edits
from rendering.frame_store import FrameStore, render_into_store, temporary_frame_store
from rendering.frames import Floats, Frame, render_frame, render_frames
from rendering.resampling import WHOLE_FRAME, Box, bounding_box, resize_frame, split_rows
from rendering.trained_run import TrainedRun

LEAST_NAMED_SHARE = 0.05  # Share of the paint on a frame from which on its layer is named.
LEAST_LIGHT = 1e-5  # Linear light that counts as none.
STRIP_PIXELS = 500_000  # Pixels of a large frame that are edited at once; it bounds the memory.
PREVIEW_PX = 640  # Width of a frame in edited.png, in pixels.
# Frames in edited.png: of each third of the clip, the one that the edit changes most. Painted frames are shown, too.
PREVIEWS = 3
CHECKER_GREYS = (0.75, 0.85)  # Grey values, in [0, 1], of the checkerboard behind an edit without the video.
CHECKER_PX = 16  # Side of a square of this checkerboard, in pixels.


def write_edited_video(run: TrainedRun, request: EditRequest, folder: Path, output: Output) -> None:
    """Write edited_NAME.mp4 (or .mov, or a folder of PNGs) and edited.png into `folder`.

    The request must have passed `editing.requests.check_request`.
    """
    with temporary_frame_store(folder) as store:
        write_edits(run, request, folder, output, store, make_edits(run, request, render_into_store(store, run)))


def make_edits(run: TrainedRun, request: EditRequest, frames: Iterable[Frame]) -> list[LayerEdit]:
    """Turn all edits of a request into edits of layers. frames: see `make_atlas_edits`."""
    edits = make_atlas_edits(run, request, frames) + make_frame_edits(run, request)
    if request.project is not None:
        edits += make_project_edits(request.project, run)
    return [edit.scale_opacity(request.opacity) for edit in edits]


def make_atlas_edits(run: TrainedRun, request: EditRequest, frames: Iterable[Frame]) -> list[LayerEdit]:
    """Turn the atlas edits of a request into edits of layers.

    frames: all frames of the run. They are only consumed for pictures over square atlas images.
    """
    atlas_edits = resolve_atlas_edits(request, run)
    views: list[AtlasView] = []
    if any(resolved.image is None for resolved in atlas_edits):
        views = fit_atlas_views(run.model, frames)
    edits = []
    for resolved in atlas_edits:
        edit, layer, image, weights = resolved.edit, resolved.layer, resolved.image, resolved.frame_weights
        # In the published range, edits are sampled as published, without averaging, to compare with published results.
        sharp_texels = 2.0 if run.full_range else math.inf
        is_attached = edit.layer in request.attached_atlases
        if weights is not None:
            shown = np.flatnonzero(weights)
            print(f"{edit.path}: paint on a look, it shows in frames {shown[0]} to {shown[-1]}")
        for part in read_paint(edit.path):
            size = (part.rgba.shape[1], part.rgba.shape[0])
            view = image.view(run.model, size, edit.corner) if image else views[layer]
            rgba = torch.from_numpy(part.rgba)
            edits.append(
                LayerEdit(layer, rgba, view, sharp_texels, is_attached, blend=part.blend, frame_weights=weights)
            )
    return edits


def make_frame_edits(run: TrainedRun, request: EditRequest) -> list[LayerEdit]:
    """Turn the frame edits of a request into edits of layers."""
    layers, attached = frame_edit_layers(request, run), request.attached_object
    size = output_size(run, request)
    edits: list[LayerEdit] = []
    for edit in request.frame_edits:
        frame = render_frame(run.model, run.clip, edit.index, run.full_range, with_colors=False)
        parts = read_frame_edit(edit, run.clip, size)
        if attached is None:
            resized = resize_frame(frame, *size)
            print_shares(run, edit.index, layers, paint_shares(resized, [part.rgba for part in parts]))
            for part in parts:
                edits += give_blend(splat_frame(run.model, resized, part.rgba, layers), part.blend)
            continue
        attached_frame = resize_frame(attach_paint(frame, [attached]), *size)
        for part in parts:
            edits += give_blend([splat_attached(run.model, attached_frame, part.rgba, attached)], part.blend)
        if (shape := read_shape(edit, run.clip, size)) is not None:
            free_part = find_free_part(run.model, attached_frame, shape, attached)
            if free_part is None:
                warn(f"{edit.shape_path}: covers object {attached + 1} in frame {edit.index} and leaves nothing free")
            else:
                edits.append(free_part)
    return edits


def paint_shares(frame: Frame, paints: list[Floats]) -> Floats:
    """Return which part of the paint on a frame each layer shows, (L,). paints: (H, W, 4), of the frame's size."""
    opacity = np.maximum.reduce([paint[..., 3] for paint in paints])
    amounts = (paint_visibility(frame) * opacity).sum((1, 2))
    return amounts / max(float(opacity.sum()), 1e-9)


def print_shares(run: TrainedRun, t: int, layers: list[int], shares: Floats) -> None:
    """Print how the paint on frame t is divided if an object and the background both take a part of it."""
    names = run.model.layers.names
    parts = [(names[layer], shares[layer]) for layer in layers if shares[layer] >= LEAST_NAMED_SHARE]
    background = run.model.layers.background.index
    if len(parts) < 2 or background not in layers or shares[background] < LEAST_NAMED_SHARE:
        return
    listed = " and ".join(f"{share:.0%} on the {name}" for name, share in parts)
    print(
        f"frame {t}: the paint is {listed}; each part follows its layer. With --edit_frame_attach N all of it follows "
        "object N"
    )


def give_blend(edits: Iterable[LayerEdit | None], blend: str | None) -> list[LayerEdit]:
    """Return the edits that are there, with a blend mode; None: that of the request."""
    return [replace(edit, blend=blend) for edit in edits if edit is not None]


def output_size(run: TrainedRun, request: EditRequest) -> tuple[int, int]:
    """Return (width, height) of the edited frames in pixels."""
    return run.clip.native_size if request.is_native else (run.clip.width, run.clip.height)


def is_native(run: TrainedRun, request: EditRequest) -> bool:
    """Return whether frames are edited with their own pixels, which the working size may be, too."""
    return output_size(run, request) == run.clip.native_size


def sample_edits(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> dict[int, Floats]:
    """Return the paint (H, W, 4) on each edited layer in the pixels of a frame, with later edits over earlier ones."""
    atlas_uv = compute_atlas_uv(run.model, frame)
    return {
        layer: sample_layer([edit for edit in edits if edit.layer == layer], atlas_uv[layer], frame.t)
        for layer in sorted({edit.layer for edit in edits})
    }


def sample_layer(edits: list[LayerEdit], atlas_uv: torch.Tensor, t: int) -> Floats:
    """Return the paint (H, W, 4) on one layer at its atlas_uv (H, W, 2) of frame t, with later edits over earlier ones.

    Paint on looks covers paint on the atlas. The paint of all looks is added up with its weights, so that two looks
    with equal paint blend without a change.
    """
    by_weights: dict[tuple[float, ...] | None, list[Floats]] = {}
    for edit in edits:
        if edit.frame_weights is None or edit.frame_weights[t] > 0:
            by_weights.setdefault(edit.frame_weights, []).append(edit.sample(atlas_uv))
    parts = by_weights.pop(None, [])
    looks = [weights[t] * alpha_over(paint) for weights, paint in by_weights.items() if weights is not None]
    if looks:
        parts.append(np.sum(looks, axis=0))
    return alpha_over(parts) if parts else np.zeros((*atlas_uv.shape[:2], 4), np.float32)


def sample_attached(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> list[tuple[Floats, Floats]]:
    """Return the paint (H, W, 4) of attached edits, and what the objects in front of it let through, (H, W).

    The order is back to front. frame: as `editing.attachment.attach_paint` returns it.
    """
    attached = [edit for edit in edits if edit.is_attached and not edit.is_free_part]
    paint = sample_edits(run, frame, attached) if attached else {}
    return [(paint[layer], front_transmittance(frame, layer)) for layer in sorted(paint, reverse=True)]


def sample_edit_layers(run: TrainedRun, frame: Frame, edits: list[LayerEdit]) -> list[tuple[Floats, Floats]]:
    """Return the paint (H, W, 4) and the visibility (H, W) of each edited layer in a frame, as blending takes them."""
    visibility = paint_visibility(frame)
    placed = [edit for edit in edits if not edit.is_attached]
    return [(rgba, visibility[layer]) for layer, rgba in sample_edits(run, frame, placed).items()]


def render_edited_frames(
    run: TrainedRun, frames: Iterable[Frame], edits: list[LayerEdit], request: EditRequest
) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield for each frame the original (H, W, 3) and the edited one, both at the depth of the frame's file.

    The edited frame has the shape (H, W, 3); with request.edit_only it is the edit alone, (H, W, 4), colours not
    premultiplied.
    """

    def edit(frame: Frame) -> tuple[NDArray, NDArray]:
        return edit_frame(run, frame, edits, request)

    for each in edits:
        _ = each.mipmap  # Threads would compute it at the same time.
    is_on_cpu = next(run.model.parameters()).device.type == "cpu"
    if has_free_part(edits) and not is_on_cpu:  # What is behind a new shape is rendered by the model.
        return map(edit, frames)
    return stream_side_by_side(edit, frames)


def has_free_part(edits: list[LayerEdit]) -> bool:
    """Return whether an edit gives an object a new shape."""
    return any(edit.is_free_part for edit in edits)


def edit_frame(run: TrainedRun, frame: Frame, edits: list[LayerEdit], request: EditRequest) -> tuple[NDArray, NDArray]:
    """Return a frame of the clip (H, W, 3), and the edited one; see `render_edited_frames`."""
    width, height = output_size(run, request)
    # The box is found at working size. Published sampling may miss small edits there, so it renders whole frames.
    uses_box = run.full_range and width > run.clip.width
    attached_layers = {edit.layer for edit in edits if edit.is_attached}
    attached_frame = attach_paint(frame, attached_layers)
    source = run.clip.native_frame(frame.t) if is_native(run, request) else run.clip.frame(frame.t)
    if request.edit_only:
        dtype = np.float32 if request.is_linear and source.dtype.kind != "f" else source.dtype
        edited = np.zeros((height, width, 4), dtype)
    else:
        edited = source.copy()
    box = edit_bounding_box(run, frame, attached_frame, edits) if uses_box else WHOLE_FRAME
    if box is None:
        return source, edited
    # What is left free of an object has a soft outline, which depends on many pixels around it.
    strips = [box] if has_free_part(edits) else split_rows(box, width, height, STRIP_PIXELS)
    for strip in strips:
        resized = resize_frame(frame, width, height, strip)
        attached_resized = resize_frame(attached_frame, width, height, strip) if attached_layers else resized
        picture = media.to_display(source[strip])
        color, opacity = edit_picture(run, request, picture, resized, attached_resized, edits)
        if request.edit_only:
            edited[strip] = draw_edit_alone(picture, color, opacity, edited.dtype)
        else:
            # Pixels without paint stay as they are, to the last bit.
            painted = media.from_display(picture * (1 - opacity) + color, source.dtype)
            np.copyto(edited[strip], painted, where=opacity > 0)
    return source, edited


def draw_edit_alone(picture: Floats, color: Floats, opacity: Floats, dtype: DTypeLike) -> NDArray:
    """Return premultiplied paint (H, W, 3) with its opacity (H, W, 1) as a transparent picture (H, W, 4).

    Its colours are straight, unless they are linear floats, as in EXR files. Those are premultiplied, and such that
    over the picture (H, W, 3), in linear light, they give the edited picture. For that, paint that darkens is a little
    more opaque in linear light than on a screen.
    """
    if np.dtype(dtype).kind != "f":
        return media.from_display(np.dstack((color / np.maximum(opacity, 1e-6), opacity)), dtype)
    edited, source = (media.from_display(values, np.float32) for values in (picture * (1 - opacity) + color, picture))
    least = 1 - (edited / np.maximum(source, LEAST_LIGHT)).min(-1, keepdims=True)
    opacity = np.where(opacity > 0, np.clip(np.maximum(opacity, least), 0, 1), 0)
    return np.dstack((np.maximum(edited - (1 - opacity) * source, 0), opacity)).astype(dtype)


def edit_picture(
    run: TrainedRun,
    request: EditRequest,
    picture: Floats,
    frame: Frame,
    attached_frame: Frame,
    edits: list[LayerEdit],
) -> tuple[Floats, Floats]:
    """Return the colours (H, W, 3), premultiplied, and the opacity (H, W, 1) of all edits over a picture (H, W, 3).

    The picture is a frame or a part of one. attached_frame: as `attach_paint` returns it.
    """
    behind, cleared = np.zeros_like(picture), np.zeros_like(picture[..., :1])
    for part in (edit for edit in edits if edit.is_free_part):
        frame, color, shown = clear_free_part(run.model, frame, attached_frame, part, max(output_size(run, request)))
        behind, cleared = behind * (1 - shown) + color, 1 - (1 - cleared) * (1 - shown)
    attached_frame = replace(attached_frame, alpha=frame.alpha)
    color, opacity = behind, cleared
    # Neighbours in the order of painting that have one blend mode are composited together, over what is below them.
    paint = (edit for edit in edits if not edit.is_free_part)
    for (_, blend), group in groupby(paint, lambda edit: (edit.step, edit.blend or request.blend)):
        painted = list(group)
        below = picture * (1 - opacity) + color
        if painted[0].adjustment is not None:
            added, added_opacity = adjust_colors(run, frame, below, painted[0])
        else:
            layers, attached = sample_edit_layers(run, frame, painted), sample_attached(run, attached_frame, painted)
            added, added_opacity = composite_edits(below, layers, frame.light, blend, attached)
        color, opacity = color * (1 - added_opacity) + added, 1 - (1 - opacity) * (1 - added_opacity)
    return color, opacity


def adjust_colors(run: TrainedRun, frame: Frame, picture: Floats, edit: LayerEdit) -> tuple[Floats, Floats]:
    """Return the changed colours (H, W, 3) of a picture, premultiplied, and their opacity (H, W, 1)."""
    assert edit.adjustment is not None
    ((rgba, visibility),) = sample_edit_layers(run, frame, [edit])
    opacity = rgba[..., 3:] * visibility[..., None]
    return (picture @ edit.adjustment.T).clip(0, 1) * opacity, opacity


def edit_bounding_box(run: TrainedRun, frame: Frame, attached_frame: Frame, edits: list[LayerEdit]) -> Box | None:
    """Return the box around all paint in a frame, in pixels of the native size; None if there is no paint.

    It saves time: edits mostly cover a small part of a large frame. attached_frame: as `attach_paint` returns it.
    """
    mask = np.zeros(frame.alpha.shape[1:], bool)
    for rgba, _ in sample_edit_layers(run, frame, edits) + sample_attached(run, attached_frame, edits):
        mask |= rgba[..., 3] > 0
    for part in (edit for edit in edits if edit.is_free_part):
        mask |= find_freed_pixels(run.model, frame, attached_frame, part, max(mask.shape)) > 0
    return bounding_box(mask, *run.clip.native_size)


def write_edits(
    run: TrainedRun, request: EditRequest, folder: Path, output: Output, store: FrameStore, edits: list[LayerEdit]
) -> None:
    """Render the edits over all frames, and write the video and edited.png into `folder`.

    store: the frames of the run if they were rendered before; if it is empty, they are rendered now. Warns if the
    edits change no frame.
    """
    clip = run.clip
    frames = store.frames() if store.count else render_frames(run.model, clip, run.full_range, with_colors=False)
    edited_frames = render_edited_frames(run, frames, edits, request)
    previews = [Preview() for _ in range(PREVIEWS)]
    painted = {edit.index: Preview() for edit in request.frame_edits}
    names = [path.stem for path in clip.frame_paths]
    with open_video_writer(folder, clip, output) as video, FrameFolder(folder / "edited_frames", names) as pictures:
        for t, (source, edited) in enumerate(tqdm(edited_frames, total=len(clip), desc="editing", unit="frame")):
            video.write(edited)
            if output.save_frames:
                pictures.write(edited)
            changed = edited[..., 3] if request.edit_only else (edited != source).any(axis=-1)
            for preview in (previews[PREVIEWS * t // len(clip)], painted.get(t)):
                if preview is not None:
                    preview.offer(t, edited, int(np.count_nonzero(changed)))
    shown = {each.t: each.picture for each in (*previews, *painted.values()) if each.picture is not None}
    sheet = {f"frame {t}, painted" if t in painted else f"frame {t}": shown[t] for t in sorted(shown)}
    media.write_png(folder / "edited.png", contact_sheet(sheet))
    if not any(preview.changed for preview in previews):
        warn(
            "the edit shows in no frame: it is transparent, or lies on a part of the atlas that no frame shows (in a "
            f'layered file, paint on the layers "{ATLAS_LAYER}" and "{GUIDE_LAYER}" does not count)'
        )


@dataclass
class Preview:
    """The frame, of those that were offered, that an edit changes most, as edited.png shows it."""

    t: int = 0
    changed: int = 0  # number of pixels that the edit changes
    picture: Pixels | None = None  # (h, w, 3)

    def offer(self, t: int, edited: Pixels, changed: int) -> None:
        """Take an edited frame instead, if the edit changes more of it, or if there is none yet."""
        if self.picture is not None and changed <= self.changed:
            return
        height = min(edited.shape[0], round(PREVIEW_PX * edited.shape[0] / edited.shape[1]))
        width = min(edited.shape[1], PREVIEW_PX)
        picture = show_over_checkers(media.resize(media.show_in_8_bit(edited), width, height))
        self.t, self.changed, self.picture = t, changed, picture


def open_video_writer(folder: Path, clip: Clip, output: Output) -> VideoWriter | FrameFolder:
    """Open the writer of the edited video: a video file, or a folder of PNGs."""
    if output.kind in ("png", "exr"):
        return FrameFolder(folder / f"edited_{clip.name}", [path.stem for path in clip.frame_paths], output.kind)
    suffix = {"mp4": ".mp4", "prores": ".mov", "ffv1": ".mkv"}[output.kind]
    path = folder / f"edited_{clip.name}{suffix}"
    return VideoWriter(path, clip.fps, output.crf, output.kind, output.audio, times_s=clip.times_s)


def show_over_checkers(picture: Pixels) -> Pixels:
    """Composite an RGBA picture over a checkerboard, (H, W, 3); an RGB picture is returned unchanged."""
    if picture.shape[2] == 3:
        return picture
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] // CHECKER_PX
    checkers = np.where((rows + columns) % 2, *CHECKER_GREYS)[..., None] * 255
    alpha = picture[..., 3:] / 255
    return np.rint(picture[..., :3] * alpha + checkers * (1 - alpha)).astype(np.uint8)
