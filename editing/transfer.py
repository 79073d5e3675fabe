"""An atlas edit made for one run, expressed in the atlas of another run of the same clip, by way of the frames."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import media
from command_line import UserError
from editing.atlas_file import AtlasFile, checkpoint_fingerprint, layer_image_of_view, write_atlas_file
from editing.layer_edit import LayerEdit, paint_visibility
from editing.render_edits import make_atlas_edits, sample_edits, visible_edits, write_edits
from editing.requests import EditRequest, Output, check_request
from editing.splatting import Paint, splat_paint
from media import to_8_bit
from media.clip import evenly_spaced
from rendering.atlas_view import atlas_uv
from rendering.frame_store import FrameStore
from rendering.frames import render_frame, render_frames
from rendering.trained_run import TrainedRun, open_run

FRAMES = 12  # of the clip, evenly spread, that carry the paint over


def open_source_run(run: TrainedRun, old_folder: Path, request: EditRequest) -> TrainedRun:
    """The run that the pictures were painted for. Raises UserError if it or they do not fit."""
    old = open_run(old_folder, video_name=run.clip.folder.name, data_folder=run.clip.folder.parent)
    if len(old.model.layers) != len(run.model.layers):
        objects = [len(each.model.layers.foregrounds) for each in (old, run)]
        raise UserError(f"{old_folder}: has {objects[0]} objects, this run {objects[1]}; both must have as many")
    if old.clip.size != run.clip.size:
        raise UserError(
            f"{old_folder}: trained on {'{} frames of {} x {}'.format(*old.clip.size)}, this run on "
            f"{'{} frames of {} x {}'.format(*run.clip.size)}; the clip must be the same"
        )
    check_request(request, old)
    return old


def write_transferred_edit(
    run: TrainedRun, old: TrainedRun, request: EditRequest, folder: Path, output: Output
) -> None:
    """Write the edited video of a run from pictures painted for an older one, and say what is lost on the way.

    The carried pictures are written too, with an atlas.json: they are edits of this run like any other.
    """
    rendered = render_frames(old.model, old.clip, old.full_range, with_colors=False)
    painted = [edit.scale_opacity(request.opacity) for edit in make_atlas_edits(old, request, rendered)]
    edits = carry_edits(old, run, painted)
    if not edits:
        raise UserError("the edit shows in no frame of the old run, so there is nothing to carry over")
    error = transfer_error(old, run, painted, edits)
    print(f"carried over: mean difference {255 * error:.2f} grey levels where it is painted")
    write_carried_edits(run, edits, folder)
    write_edits(run, request, folder, output, FrameStore(folder), edits)


def write_carried_edits(run: TrainedRun, edits: list[LayerEdit], folder: Path) -> None:
    """Write the edits as pictures, straight opacity, and the atlas.json that says where they lie."""
    images = []
    for edit in edits:
        name = f"carried_{run.model.layers[edit.layer].name}.png"
        rgba = edit.rgba.numpy()
        straight = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6)
        media.write_png(folder / name, to_8_bit(np.dstack((straight, rgba[..., 3]))))
        images.append(layer_image_of_view(run.model, name, edit.layer, edit.view, rgba.shape[1::-1]))
    write_atlas_file(folder, AtlasFile(run.name, checkpoint_fingerprint(run.checkpoint), images))


def carry_edits(old: TrainedRun, new: TrainedRun, edits: list[LayerEdit]) -> list[LayerEdit]:
    """Edits of the old run's layers as edits of the new one's: seen in frames, spread into the new atlas."""
    paints: dict[int, list[Paint]] = {}
    for t in tqdm(evenly_spaced(len(new.clip), FRAMES), desc="carrying the edit over", unit="frame"):
        before = render_frame(old.model, old.clip, t, old.full_range, with_colors=False)
        after = render_frame(new.model, new.clip, t, new.full_range, with_colors=False)
        shares = np.minimum(paint_visibility(before), paint_visibility(after))
        places = atlas_uv(new.model, after)
        for layer, rgba in sample_edits(old, before, edits).items():
            paint = Paint(torch.from_numpy(rgba), places[layer], torch.from_numpy(shares[layer]))
            paints.setdefault(layer, []).append(paint)
    carried = (splat_paint(layer, each) for layer, each in paints.items())
    return [edit for edit in carried if edit is not None]


def transfer_error(old: TrainedRun, new: TrainedRun, before: list[LayerEdit], after: list[LayerEdit]) -> float:
    """Mean difference, premultiplied, of the paint as both runs show it, over the pixels that either paints."""
    total, count = 0.0, 0
    for t in evenly_spaced(len(new.clip), FRAMES):
        shown = []
        for run, edits in ((old, before), (new, after)):
            frame = render_frame(run.model, run.clip, t, run.full_range, with_colors=False)
            shown.append(sum(paint * share[..., None] for paint, share in visible_edits(run, frame, edits)))
        painted = (shown[0][..., 3] > 0.02) | (shown[1][..., 3] > 0.02)
        total += float(np.abs(shown[0] - shown[1])[painted].mean(-1).sum())
        count += int(painted.sum())
    return total / max(count, 1)
