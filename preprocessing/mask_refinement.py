"""Refine rough masks by the motion and the colours of the clip, and fit them to the edges of the frames."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import media
from alignment.layers import align_background, align_layer
from command_line import UserError, resolve_folder_name, warn
from implicit_neural_networks import Layers
from masks.cues import SmallClip, motion_difference, shrink, shrink_video
from masks.refinement import MIN_CUE_SCORE, RefinedMasks, refine_masks
from media import Pixels
from parallel.side_by_side import run_side_by_side, stream_side_by_side
from preprocessing.mask_files import list_frames, write_mask_files
from preprocessing.mask_report import report_masks
from preprocessing.small_video import open_small_clip, read_small_video
from unwrap_utils import Video

MAX_ERROR_PX = 3.0  # Largest distance between flow and motion, in pixels of the reduced clip, that counts.


def refine_small_masks(video: Video, rough: Pixels, min_cue_score: float = MIN_CUE_SCORE) -> RefinedMasks:
    """Refine rough masks (T, h, w) of the frames of a video. min_cue_score: see `refine_masks`."""
    return refine_masks(shrink_video(video), rough, *align_both(video, rough > 127), min_cue_score)


def align_both(video: Video, inside: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Return the transforms (T, 3, 3) of the background and of the object inside the masks (T, h, w) of a video."""
    background, foreground = run_side_by_side(
        lambda: align_background(video, ~inside),
        lambda: align_layer(video, inside, Layers.for_objects(1)[0].motion_kind),
    )
    return background, foreground


def motion_gain_px(clip: SmallClip, masks: Pixels, motions: tuple[NDArray, NDArray]) -> float:
    """Return by how many pixels the object's motion fits the flow inside its masks better than the background's.

    It is a mean over the pixels of the masks (T, h, w) whose flow is known; each error counts MAX_ERROR_PX at most.
    clip: the reduced video. motions: see `align_both`.
    """
    errors = [
        np.minimum(motion_difference(clip, clip.reduce_transforms(transforms)), MAX_ERROR_PX) for transforms in motions
    ]
    gain = (errors[0] - errors[1])[np.stack([shrink(mask, clip.rgb.shape[2:0:-1]) for mask in masks]) > 127]
    return float(np.nanmean(gain)) if np.isfinite(gain).any() else 0.0


def fit_to_frames(refined: RefinedMasks, frames: list[Path], selection: list[Path]) -> Iterator[Pixels]:
    """Return an iterator over masks (H, W), 0 or 255, of the selected frames at the frames' own size.

    refined: masks of all frames. selection: some of the frames.
    """
    return stream_side_by_side(lambda path: refined.mask(media.read_rgb(path), frames.index(path)), selection)


def refine_clip_masks(video: Path) -> Path:
    """Replace the masks of a clip by refined ones (--refine), and return their folder.

    The given masks are kept beside them as NAME_maskrcnn_rough. Raise UserError if there are no masks, if all are
    empty, or if they were refined before.
    """
    video = resolve_folder_name(video)
    frames = list_frames(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    rough_folder, unfinished = (folder.with_name(folder.name + suffix) for suffix in ("_rough", "_unfinished"))
    clip = open_small_clip(video)
    if clip.masks is None:
        raise UserError(f"{folder}: no such folder; --refine refines existing masks, so find or make some first")
    if rough_folder.exists():
        raise UserError(
            f"{rough_folder} exists: these masks were refined before; to refine anew, move it back to {folder.name}"
        )
    rough = np.stack([clip.mask(path) for path in clip.masks])
    if not (rough > 127).any():
        raise UserError(f"{folder}: all masks are empty, nothing to learn from; use --method motion in another folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    refined = refine_small_masks(read_small_video(clip), rough)
    write_mask_files(frames, fit_to_frames(refined, frames, frames), unfinished)
    if folder.with_name(f"{folder.name}_1").is_dir():
        warn(f"the masks of single objects ({folder.name}_1, ...) are not changed; the grids refine them at the start")
    folder.rename(rough_folder)
    unfinished.rename(folder)
    report_masks(frames, folder, {"refine": "True"}, found_folders=[], method="refine")
    print(f"wrote {folder}; the masks as they were are in {rough_folder}")
    return folder
