"""Refinement of the masks that lie beside a clip (--refine)."""

import shutil
from pathlib import Path

import numpy as np

import media
from command_line import UserError, resolve_folder_name, warn
from preprocessing.mask_files import list_frames, write_mask_files
from preprocessing.mask_report import report_masks


def refine_clip_masks(video: Path) -> Path:
    """Mend a clip's masks; the given ones stay beside them as NAME_maskrcnn_rough. Returns the folder."""
    from preprocessing.mask_motion import open_small_clip, read_small_video, refine_to_frames

    video = resolve_folder_name(video)
    frames = list_frames(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    kept, unfinished = (folder.with_name(folder.name + suffix) for suffix in ("_rough", "_unfinished"))
    clip = open_small_clip(video)
    if clip.masks is None:
        raise UserError(f"{folder}: no such folder; --refine mends masks that are there, so find or make some first")
    if kept.exists():
        raise UserError(f"{kept} is there: these masks were mended before; to mend anew, move it back to {folder.name}")
    rough = np.stack([clip.mask(path) for path in clip.masks])
    if not (rough > 127).any():
        raise UserError(f"{folder}: all masks are empty, nothing to learn from; use --method motion in another folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    write_mask_files(frames, refine_to_frames(read_small_video(clip), rough, frames, frames), unfinished)
    if folder.with_name(f"{folder.name}_1").is_dir():
        warn(f"the masks of single objects ({folder.name}_1, ...) stay as they are; grids mend them when they start")
    folder.rename(kept)
    unfinished.rename(folder)
    report_masks(frames, folder, {"refine": "True"}, found=[])
    print(f"wrote {folder}; the masks as they were are in {kept}")
    return folder
