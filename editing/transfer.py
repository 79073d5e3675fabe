"""Transfer of an atlas edit to another run of the same clip.

The edit is rendered in some frames with one run, and splatted into the atlases of the other run.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import media
from command_line import UserError
from editing.atlas_file import AtlasFile, checkpoint_fingerprint, layer_image_of_view, write_atlas_file
from editing.layer_edit import LayerEdit, paint_visibility
from editing.render_edits import make_atlas_edits, sample_edit_layers, sample_edits, write_edits
from editing.requests import EditRequest, Output, check_request, resolve_atlas_edits
from editing.splatting import Paint, splat_paint
from media import to_8_bit
from media.clip import evenly_spaced_indices
from rendering.atlas_view import compute_atlas_uv
from rendering.frame_store import FrameStore
from rendering.frames import Floats, render_frame, render_frames
from rendering.trained_run import TrainedRun, open_run

TRANSFER_FRAMES = 12  # Frames, evenly spread over the clip, through which the paint is transferred.
LEAST_PAINT = 0.02  # A pixel counts as painted if the opacity of the paint in it is above this.


def open_source_run(run: TrainedRun, source_folder: Path, request: EditRequest) -> TrainedRun:
    """Open the run for which the pictures of a request were painted.

    Raises UserError if its objects or its frames differ from those of `run`, or if a picture does not fit it.
    """
    source = open_run(
        source_folder,
        video_name=run.clip.folder.name,
        data_folder=run.clip.folder.parent,
        alpha_range="full" if run.full_range else "published",
        device=str(next(run.model.parameters()).device),
    )
    source_objects, objects = (len(model.layers.foregrounds) for model in (source.model, run.model))
    if source_objects != objects:
        raise UserError(
            f"{source_folder}: has {source_objects} object(s), this run {objects}; both must have the same number"
        )
    if source.clip.size != run.clip.size:
        raise UserError(
            f"{source_folder}: trained on {'{} frames of {} x {}'.format(*source.clip.size)}, this run on "
            f"{'{} frames of {} x {}'.format(*run.clip.size)}; the clip must be the same"
        )
    check_request(request, source)
    for resolved in resolve_atlas_edits(request, source):
        if resolved.frame_weights is not None:
            raise UserError(
                f"{resolved.edit.path}: is paint on a look, which --transfer_from cannot move; paint over the atlas"
            )
    return source


def write_transferred_edit(
    run: TrainedRun, source: TrainedRun, request: EditRequest, folder: Path, output: Output
) -> None:
    """Write the edited video of a run from pictures that were painted for the source run.

    Prints how much the paint differs between both runs. Also writes carried_*.png, the pictures in the atlases of
    `run`, with an atlas.json, so that they can be used as edits of this run. Raises UserError if the edit is visible in
    no frame of the source run.
    """
    source_frames = render_frames(source.model, source.clip, source.full_range, with_colors=False)
    source_edits = [edit.scale_opacity(request.opacity) for edit in make_atlas_edits(source, request, source_frames)]
    edits = transfer_edits(source, run, source_edits)
    if not edits:
        raise UserError(f"the edit shows in no frame of {source.name}, so there is nothing to transfer")
    error = transfer_error(source, run, source_edits, edits)
    print(f"transferred the edit: mean difference {255 * error:.2f} grey levels where it is painted")
    write_edit_pictures(run, edits, folder)
    write_edits(run, request, folder, output, FrameStore(folder), edits)


def write_edit_pictures(run: TrainedRun, edits: list[LayerEdit], folder: Path) -> None:
    """Write each edit as carried_LAYER.png, RGBA, not premultiplied, and the atlas.json that belongs to them."""
    images = []
    for edit in edits:
        name = f"carried_{run.model.layers[edit.layer].name}.png"
        rgba = edit.rgba.numpy()
        color = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6)
        media.write_png(folder / name, to_8_bit(np.dstack((color, rgba[..., 3]))))
        images.append(layer_image_of_view(run.model, name, edit.layer, edit.view, (rgba.shape[1], rgba.shape[0])))
    write_atlas_file(folder, AtlasFile(run.name, checkpoint_fingerprint(run.checkpoint), images))


def transfer_edits(source: TrainedRun, target: TrainedRun, edits: list[LayerEdit]) -> list[LayerEdit]:
    """Turn edits of the source run's layers into edits of the target run's layers.

    The edits are rendered in some frames with the source run, and splatted into the atlases of the target run. Blend
    modes of single layers of a picture are lost; that of the request stays.
    """
    paints: dict[int, list[Paint]] = {}
    for t in tqdm(evenly_spaced_indices(len(target.clip), TRANSFER_FRAMES), desc="transferring the edit", unit="frame"):
        source_frame = render_frame(source.model, source.clip, t, source.full_range, with_colors=False)
        target_frame = render_frame(target.model, target.clip, t, target.full_range, with_colors=False)
        visibility = np.minimum(paint_visibility(source_frame), paint_visibility(target_frame))
        atlas_uv = compute_atlas_uv(target.model, target_frame)
        for layer, rgba in sample_edits(source, source_frame, edits).items():
            paint = Paint(torch.from_numpy(rgba), atlas_uv[layer], torch.from_numpy(visibility[layer]))
            paints.setdefault(layer, []).append(paint)
    splatted = (splat_paint(layer, layer_paints) for layer, layer_paints in paints.items())
    return [edit for edit in splatted if edit is not None]


def transfer_error(
    source: TrainedRun, target: TrainedRun, source_edits: list[LayerEdit], target_edits: list[LayerEdit]
) -> float:
    """Return the mean absolute difference of the paint in both runs, in [0, 1], over the pixels that show paint.

    The paint is compared premultiplied, in frames evenly spread over the clip.
    """
    total, count = 0.0, 0
    for t in evenly_spaced_indices(len(target.clip), TRANSFER_FRAMES):
        before, after = render_paint(source, source_edits, t), render_paint(target, target_edits, t)
        is_painted = (before[..., 3] > LEAST_PAINT) | (after[..., 3] > LEAST_PAINT)
        total += float(np.abs(before - after)[is_painted].mean(-1).sum())
        count += int(is_painted.sum())
    return total / max(count, 1)


def render_paint(run: TrainedRun, edits: list[LayerEdit], t: int) -> Floats:
    """Render the paint of all layers in frame t without the video, premultiplied, (H, W, 4)."""
    frame = render_frame(run.model, run.clip, t, run.full_range, with_colors=False)
    layers = [rgba * visibility[..., None] for rgba, visibility in sample_edit_layers(run, frame, edits)]
    return np.sum(layers, axis=0)
