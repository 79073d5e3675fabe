"""Clips of the benchmark, with flow: exact scenes that are drawn here, and real clips that are linked."""

import sys
from pathlib import Path

from command_line import UserError
from masks.provenance import mask_note_path, write_mask_note
from preprocessing.flow import FlowRequest, write_clip_flow
from scenes.catalogue import SCENES
from scenes.files import write_scene

LARGEST_CLIP_SIDE_PX = 768  # Flow is computed at this size at most.
MISSING_MASKS = 0.04  # Fraction of a scene's frames in which the rough mask is empty.


def prepare_scene(name: str, size: tuple[int, int], frames: int, data: Path) -> Path:
    """Draw a scene and compute its flow, unless its files exist. Return the folder of its frames.

    size: (width, height). data: folder for the files. Raises UserError, which lists the scenes, for another name.
    """
    if name not in SCENES:
        raise UserError(f"no scene {name!r}; there are: {', '.join(sorted(SCENES))}")
    folder = data / f"{size[0]}x{size[1]}x{frames}" / name
    if not folder.with_name(f"{name}.json").is_file():  # This file is written last.
        write_scene(SCENES[name](*size, frames), folder.parent, missing=MISSING_MASKS)
    return add_flow(folder)


def prepare_clip(path: Path, data: Path, true_masks: bool = False) -> Path:
    """Link the folders of a clip into `data` and compute the flow there. Return the folder of the frames.

    The flow is written to `data`, so nothing is written beside the clip itself. true_masks: the clip is named NAME-true
    there, and has its true masks, as if somebody had brought them.
    """
    data.mkdir(parents=True, exist_ok=True)
    name = f"{path.name}-true" if true_masks else path.name
    for suffix, origin in (("", ""), ("_maskrcnn", "_gt" if true_masks else "_maskrcnn"), ("_gt", "_gt")):
        source, link = path.with_name(path.name + origin).resolve(), data / f"{name}{suffix}"
        if source.is_dir() and not link.exists():
            link.symlink_to(source, target_is_directory=True)
    folder = data / f"{name}_maskrcnn"
    if true_masks:
        write_mask_note(folder, {"method": "import"}, [], {})
    note = mask_note_path(path.with_name(f"{path.name}_maskrcnn").resolve())
    if note.is_file() and not mask_note_path(folder).exists():
        mask_note_path(folder).symlink_to(note)
    return add_flow(data / name)


def add_flow(folder: Path) -> Path:
    """Compute the flow of a clip with DIS where it is missing. Return the folder of the frames."""
    write_clip_flow(folder, FlowRequest(method="dis", max_long_edge=LARGEST_CLIP_SIDE_PX))
    sys.stdout.flush()
    return folder
