"""An atlas edit made for one run, expressed in the atlas of another run of the same clip, by way of the frames."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import media
from command_line import UserError
from editing import EditRequest, Output, atlas_edits, check_request, edit_layers, painted_layers, write_edits
from edits.atlas_file import AtlasFile, fingerprint, image_of_view, write_atlas_file
from edits.fields import edit_shares
from edits.layer_edit import LayerEdit
from edits.spread import Paint, spread_paint
from media import to_8_bit
from rendering import FrameStore, TrainedRun, atlas_places, open_run, render_frames, rendered_frame
from unwrap_utils import spread_numbers

FRAMES = 12  # of the clip, evenly spread, that carry the paint over


def open_older(run: TrainedRun, old_folder: Path, request: EditRequest) -> TrainedRun:
    """The run that the pictures were painted for. Raises UserError if it or they do not fit."""
    old = open_run(old_folder, run.clip.folder.name, run.clip.folder.parent, None, None)
    if len(old.model.layers) != len(run.model.layers):
        objects = [len(each.model.layers) - 1 for each in (old, run)]
        raise UserError(f"{old_folder}: has {objects[0]} objects, this run {objects[1]}; both must have as many")
    if old.clip.size != run.clip.size:
        raise UserError(
            f"{old_folder}: trained on {'{} frames of {} x {}'.format(*old.clip.size)}, this run on "
            f"{'{} frames of {} x {}'.format(*run.clip.size)}; the clip must be the same"
        )
    check_request(request, old)
    return old


def write_transferred(run: TrainedRun, old: TrainedRun, request: EditRequest, folder: Path, output: Output) -> None:
    """Write the edited video of a run from pictures painted for an older one, and say what is lost on the way.

    The carried pictures are written too, with an atlas.json: they are edits of this run like any other.
    """
    rendered = render_frames(old.model, old.clip, old.full_range, with_colors=False)
    painted = [edit.faded(request.opacity) for edit in atlas_edits(old, request, rendered)]
    edits = carried_over(old, run, painted)
    if not edits:
        raise UserError("the edit shows in no frame of the old run, so there is nothing to carry over")
    error = residual(old, run, painted, edits)
    print(f"carried over: mean difference {255 * error:.2f} grey levels where it is painted")
    write_carried(run, edits, folder)
    write_edits(run, request, folder, output, FrameStore(folder), edits)


def write_carried(run: TrainedRun, edits: list[LayerEdit], folder: Path) -> None:
    """Write the edits as pictures, straight opacity, and the atlas.json that says where they lie."""
    images = []
    for edit in edits:
        name = f"carried_{run.model.layers[edit.layer].name}.png"
        rgba = edit.rgba.numpy()
        straight = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6)
        media.write_png(folder / name, to_8_bit(np.dstack((straight, rgba[..., 3]))))
        images.append(image_of_view(run.model, name, edit.layer, edit.view, rgba.shape[1::-1]))
    write_atlas_file(folder, AtlasFile(run.name, fingerprint(run.checkpoint), images))


def carried_over(old: TrainedRun, new: TrainedRun, edits: list[LayerEdit]) -> list[LayerEdit]:
    """Edits of the old run's layers as edits of the new one's: seen in frames, spread into the new atlas."""
    paints: dict[int, list[Paint]] = {}
    for t in tqdm(spread_numbers(len(new.clip), FRAMES), desc="carrying the edit over", unit="frame"):
        before = rendered_frame(old.model, old.clip, t, old.full_range, with_colors=False)
        after = rendered_frame(new.model, new.clip, t, new.full_range, with_colors=False)
        shares = np.minimum(edit_shares(before), edit_shares(after))
        places = atlas_places(new.model, after)
        for layer, rgba in painted_layers(old, before, edits).items():
            paint = Paint(torch.from_numpy(rgba), places[layer], torch.from_numpy(shares[layer]))
            paints.setdefault(layer, []).append(paint)
    carried = (spread_paint(layer, each) for layer, each in paints.items())
    return [edit for edit in carried if edit is not None]


def residual(old: TrainedRun, new: TrainedRun, before: list[LayerEdit], after: list[LayerEdit]) -> float:
    """Mean difference, premultiplied, of the paint as both runs show it, over the pixels that either paints."""
    total, count = 0.0, 0
    for t in spread_numbers(len(new.clip), FRAMES):
        shown = []
        for run, edits in ((old, before), (new, after)):
            frame = rendered_frame(run.model, run.clip, t, run.full_range, with_colors=False)
            shown.append(sum(paint * share[..., None] for paint, share in edit_layers(run, frame, edits)))
        painted = (shown[0][..., 3] > 0.02) | (shown[1][..., 3] > 0.02)
        total += float(np.abs(shown[0] - shown[1])[painted].mean(-1).sum())
        count += int(painted.sum())
    return total / max(count, 1)
