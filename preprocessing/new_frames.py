"""Frames that follow a clip: a clip with all of them, and masks of the new ones, carried on along the flow."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import media
from command_line import UserError, resolve_folder_name
from media import Pixels
from media.clip import Clip, mask_suffixes
from media.flows import BACKWARD
from preprocessing.extract import Span, extract_frames
from preprocessing.mask_files import frames_without_mask, write_mask_files
from preprocessing.mask_import import read_masks
from rendering.frames import render_frame
from rendering.trained_run import TrainedRun
from unwrap_utils import warp_by_flow

Floats = NDArray[np.floating]


def join_new_frames(clip: Clip, source: Path, max_frames: int) -> Path:
    """Return the folder of a clip with new frames after its own.

    source: a video, or a folder of frames. If it is the clip's own folder, the new frames are those that the clip left
    out, and nothing is copied. Otherwise the clip's frames, masks and flow, and the new frames, go to a new folder
    beside the clip, as links where possible. Raises UserError if there are no new frames, or if they have another size.
    """
    if source.is_dir() and resolve_folder_name(source).samefile(clip.folder):
        if len(media.list_images(clip.folder)) <= len(clip):
            raise UserError(f"{source}: the run has all of its {len(clip)} frames already; give the frames that follow")
        return clip.folder
    if source.is_dir():
        return join_folder(clip, resolve_folder_name(source), max_frames)
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder; give the frames that follow, as a folder or a video")
    with tempfile.TemporaryDirectory(dir=clip.folder.parent, prefix=".new_frames_") as scratch:
        frames = Path(scratch) / "frames"
        extract_frames(source, frames, Span(), allow_cuts=False, max_frames=max_frames)
        return join_folder(clip, frames, max_frames)


def join_folder(clip: Clip, new_folder: Path, max_frames: int) -> Path:
    """Write the folder of a clip with the frames of another folder after its own; see `join_new_frames`."""
    new = media.list_images(new_folder)
    if not new:
        raise UserError(media.explain_empty_folder(new_folder))
    if len(new) > max_frames:
        raise UserError(f"{new_folder} has {len(new)} frames, --max_frames is {max_frames}; give fewer, or allow more")
    for path in new:
        if (size := media.image_size(path)) != clip.native_size:
            raise UserError(
                f"{path} is {size[0]} x {size[1]}, the frames of the run are {clip.native_size[0]} x "
                f"{clip.native_size[1]}; new frames must have the same size"
            )
    folder = media.fresh_folder(clip.folder.with_name(f"{clip.name}_extended"))
    names = continue_names([path.stem for path in clip.frame_paths], len(new))
    for path in clip.frame_paths:
        link_or_copy(path, folder / path.name)
    for path, name in zip(new, names, strict=True):
        link_or_copy(path, folder / f"{name}{path.suffix}")
    own_frames = {path.stem for path in clip.frame_paths}
    for suffix in ["_flow", *mask_suffixes(clip.objects)]:
        former, target = clip.sibling_folder(suffix), folder.with_name(folder.name + suffix)
        target.mkdir(parents=True)
        for path in former.iterdir() if former.is_dir() else ():
            # A flow file is named after both of its frames, such as 00000.jpg_00001.jpg.npz.
            if path.is_file() and (suffix == "_flow" or path.stem in own_frames):
                link_or_copy(path, target / path.name)
    media.write_text(folder.with_name(f"{folder.name}.json"), json.dumps({"fps": clip.fps}) + "\n")
    print(f"wrote a clip of {len(clip)} + {len(new)} frames: {folder}")
    return folder


def continue_names(stems: Sequence[str], count: int) -> list[str]:
    """Return names for frames that follow frames with these names, in their order."""
    number = re.search(r"\d+$", stems[-1])
    if number is None:
        return [f"{stems[-1]}_{index:05d}" for index in range(1, count + 1)]
    prefix, digits = stems[-1][: number.start()], number.group()
    return [f"{prefix}{int(digits) + index:0{len(digits)}d}" for index in range(1, count + 1)]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_new_masks(run: TrainedRun, clip: Clip, given: Path | None) -> str:
    """Write the masks that the new frames of a clip lack; returns where they come from, see `masks.provenance.SOURCES`.

    clip: the clip of the run, with more frames. given: masks of the new frames, a folder or a video. Without them, and
    where there are none, the opacity of the last frame of the run is carried on along the flow. Raises UserError if the
    given masks cannot be used.
    """
    trained, source = len(run.clip), "unknown"
    new = list(clip.frame_paths[trained:])
    last = render_frame(run.model, run.clip, trained - 1, full_range=True, with_colors=False)
    if given is not None and clip.objects > 1:
        raise UserError(
            f"--masks {given}: is for runs with one object; put masks into {mask_suffixes(clip.objects)[0]}"
        )
    for opacity, suffix in zip(last.alpha, mask_suffixes(clip.objects), strict=True):
        folder = media.make_folder(clip.sibling_folder(suffix))
        missing = frames_without_mask(new, folder)
        if given is not None:
            if len(missing) < len(new):
                raise UserError(f"{folder} has masks of the new frames already; leave --masks out, or move them away")
            source = "brought"
            write_mask_files(new, read_masks(given, new), folder)
        elif missing:
            source = "found"
            carried = dict(zip(new, carry_mask(clip, opacity, trained - 1), strict=True))
            write_mask_files(missing, (carried[path] for path in missing), folder)
    return source


def carry_mask(clip: Clip, opacity: Floats, last: int) -> Iterator[Pixels]:
    """Yield the masks (H, W) uint8 of the frames after `last`: the opacity (H, W) of that frame, moved along the flow.

    They are rough: what comes into view is missing, and errors of the flow add up. The start of training refines them.
    """
    mask = np.where(opacity > 0.5, 255, 0).astype(np.uint8)
    for t in range(last + 1, len(clip)):
        moved = warp_by_flow(mask, clip.flow(t, BACKWARD))
        mask = np.where(moved > 127, 255, 0).astype(np.uint8)
        yield mask
