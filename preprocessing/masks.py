"""Masks of the moving object by any method, beside the frames: NAME_maskrcnn/STEM.png, white inside."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import media
from command_line import UserError, resolve_folder_name, warn
from masks.provenance import are_found, read_mask_request
from media import Pixels
from preprocessing.errors import NoWeights
from preprocessing.mask_detection import NothingFound, make_detector, object_folders, track_objects, write_object_masks
from preprocessing.mask_files import frames_without_mask, list_frames, merge_object_masks, write_mask_files
from preprocessing.mask_report import report_masks
from preprocessing.mask_request import MaskRequest


def write_masks(video: Path, request: MaskRequest) -> Path:
    """Write the masks that are missing, and a picture and a report of all; returns their folder."""
    video = resolve_folder_name(video)
    frames = list_frames(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    missing = frames_without_mask(frames, folder)
    objects = object_folders(video, request)
    are_there = bool(objects) and not any(frames_without_mask(frames, each) for each in objects)
    if objects and not are_there and any(each.is_dir() for each in (folder, *objects)):
        raise UserError(
            f"{folder} and the folders of single objects ({objects[0].name}, ...) hold masks, but not of "
            f"{request.objects} objects in every frame; complete them, or move all these folders away to start anew"
        )
    if not missing:
        if not are_there:
            check_request(folder, request)
        print(f"all {len(frames)} masks are there already, used as they are: {folder}")
        return folder
    masks = merge_object_masks(missing, objects) if are_there else find_masks(frames, missing, request)
    # Found masks beside somebody's own are taken for theirs.
    all_are_found = not are_there and (missing == frames or are_found(folder, folder))
    found = [folder, *objects] if all_are_found and request.method != "import" else []
    media.make_folder(folder)
    print(f"{len(missing)} masks to find, writing to {folder}", flush=True)
    if empty := write_mask_files(missing, masks, folder):
        names = ", ".join(path.name for path in empty[:5]) + (", ..." if len(empty) > 5 else "")
        warn(f"no object found in {len(empty)} of {len(missing)} frames, masks are empty there: {names}")
    report_masks(frames, folder, request.changed_options, found)
    print(f"wrote {folder}")
    return folder


def check_request(folder: Path, request: MaskRequest) -> None:
    """Say so if masks that are there were not found as they are asked for now.

    Raises UserError if it is known how they were found; warns if they are somebody's own.
    """
    if request.source is not None and request.source.resolve() == folder.resolve():
        return
    asked = read_mask_request(folder)
    if asked is None:
        if request.changed_options:
            warn(f"{folder} holds masks already; to find others, move it away")
        return
    if request.changed_options and asked != request.changed_options and "refine" not in asked:
        before, now = (describe_request(words) for words in (asked, request.changed_options))
        raise UserError(f"{folder} holds masks found with {before}, asked for is {now}; move it away to find them anew")


def describe_request(words: dict[str, str]) -> str:
    """A request in words."""
    return ", ".join(f"{name} {value}" for name, value in words.items()) or "the defaults"


def find_masks(frames: list[Path], missing: list[Path], request: MaskRequest) -> Iterable[Pixels]:
    """The masks (H, W) uint8 of the missing frames, in order; `auto` says when it falls back."""
    if request.method == "import":
        every = import_object_masks(frames, request) if request.objects > 1 else import_masks(frames, request)
        return (mask for path, mask in zip(frames, every, strict=True) if path in set(missing))
    if request.method == "motion":
        return find_moving(frames, missing)
    is_choice = request.method != "auto" or request.weights is not None
    if request.method != "detectron2":
        from preprocessing.mask_rcnn import check_class_name

        check_class_name(request.class_name)
    try:
        return track_objects(frames, missing, make_detector(request), request)
    except (NoWeights, NothingFound) as error:
        if request.objects > 1:
            raise UserError(
                f"{error}; --method motion, which needs no weights, can't tell {request.objects} objects apart: give "
                "label pictures as --masks"
            ) from None
        if is_choice:
            raise
        print(f"falling back to --method motion: {error}", file=sys.stderr, flush=True)
        return find_moving(frames, missing)


def import_masks(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Masks made elsewhere, of all frames."""
    from preprocessing.mask_import import read_masks

    if request.source is None:
        raise UserError("--method import needs --masks, a folder of mask pictures or a matte video")
    return read_masks(request.source, frames, request.label, request.threshold)


def import_object_masks(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Masks of all objects together; each object, a label from 1 on, also gets a folder of its own."""
    if request.source is None or not request.source.is_dir():
        raise UserError(f"{request.source}: --objects {request.objects} needs a folder of label pictures")
    folders = object_folders(frames[0].parent, request)
    for label, folder in enumerate(folders, 1):
        if len(write_object_masks(frames, import_masks(frames, replace(request, label=label)), folder)) == len(frames):
            for made in folders[:label]:
                shutil.rmtree(made)
            raise UserError(
                f"{request.source}: no picture has the label {label}, expected labels 1 to {request.objects}; "
                "lower --objects, or leave it out for masks of one object"
            )
    return merge_object_masks(frames, folders)


def find_moving(frames: list[Path], missing: list[Path]) -> Iterator[Pixels]:
    """The masks of what moves in the clip, of the missing frames."""
    from preprocessing.mask_motion import open_small_clip, read_small_video, refine_to_frames, segment_motion

    video = read_small_video(open_small_clip(frames[0].parent))
    return refine_to_frames(video, segment_motion(video), frames, missing)
