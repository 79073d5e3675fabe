"""Write the masks of a clip's objects by any method into NAME_maskrcnn/STEM.png beside the frames, white inside."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

import media
from command_line import UserError, resolve_folder_name, warn
from masks.provenance import are_found, read_mask_request
from media import Pixels
from parallel.side_by_side import map_side_by_side
from preprocessing.errors import NothingFound, NoWeights
from preprocessing.mask_detection import make_detector, track_objects
from preprocessing.mask_files import (
    frames_without_mask,
    list_frames,
    list_object_folders,
    merge_object_masks,
    write_mask_files,
    write_object_masks,
)
from preprocessing.mask_report import report_masks
from preprocessing.mask_request import MaskRequest

ROUGH_METHODS = ("maskrcnn", "detectron2", "motion")  # Training refines masks that these methods find.
# Motion fits masks that are right by at least about 1.3 px better than the background's motion does, pixels of the
# reduced clip; below this value the user is told to look.
UNSURE_GAIN_PX = 0.9
MAX_LISTED = 5  # Number of frames that a message lists at most.


def write_masks(video: Path, request: MaskRequest, write_flow: Callable[[], object] = lambda: None) -> Path:
    """Write the masks that are missing, a picture and a note of all masks. Return the folder of the masks.

    write_flow: writes the clip's flow, and is called before masks are found by motion, which then need not compute
    flow of their own. Raise UserError if the method cannot be used, or if existing masks were made by another request.
    """
    video = resolve_folder_name(video)
    frames = list_frames(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    check_request_fits_clip(request, len(frames), media.image_size(frames[0]))
    missing = frames_without_mask(frames, folder)
    object_folders = list_object_folders(video, request.objects)
    has_object_masks = bool(object_folders) and not any(frames_without_mask(frames, path) for path in object_folders)
    if object_folders and not has_object_masks and any(path.is_dir() for path in (folder, *object_folders)):
        raise UserError(
            f"{folder} and the folders of single objects ({object_folders[0].name}, ...) hold masks, but not of "
            f"{request.objects} objects in every frame; complete them, or move all these folders away to start anew"
        )
    if not missing:
        if not has_object_masks:
            check_existing_masks(folder, request)
        for each in (folder, *object_folders):  # Damage is said now, and not after the flow was computed.
            for path in media.list_images(each):
                media.check_png(path)
        print(f"all {len(frames)} masks exist already and are used as they are: {folder}")
        return folder
    method, masks = (
        ("merge", merge_object_masks(missing, object_folders))
        if has_object_masks
        else find_masks(frames, missing, request, write_flow)
    )
    # If some masks are the user's own, the whole folder counts as the user's own, even with found masks beside them.
    all_are_found = method in ROUGH_METHODS and (missing == frames or are_found(folder, folder))
    found_folders = [folder, *object_folders] if all_are_found else []
    media.make_folder(folder)
    print(f"{len(missing)} masks to find, writing to {folder}", flush=True)
    if empty := write_mask_files(missing, masks, folder):
        names = ", ".join(path.name for path in empty[:MAX_LISTED]) + (", ..." if len(empty) > MAX_LISTED else "")
        warn(f"no object found in {len(empty)} of {len(missing)} frames, masks are empty there: {names}")
    report_masks(frames, folder, request.changed_options, found_folders, method)
    print(f"wrote {folder}")
    return folder


def check_existing_masks(folder: Path, request: MaskRequest) -> None:
    """Raise UserError if existing masks are known to have been made with other options than requested.

    If it is not known how they were made, print a warning instead. A request without options accepts all masks.
    """
    if request.source is not None and request.source.resolve() == folder.resolve():
        return
    noted = read_mask_request(folder)
    if noted is None:
        if request.prompts or request.text:
            flag = request.prompts[0] if request.prompts else f"--text {request.text!r}"
            raise UserError(f"{folder} holds masks already; move it away to find those of {flag}")
        if request.source is not None:
            raise UserError(f"{folder} holds masks already; move it away to take those of --masks {request.source}")
        if request.changed_options:
            warn(f"{folder} holds masks already; to find others, move it away")
        return
    if request.changed_options and noted != request.changed_options and "refine" not in noted:
        before, now = (describe_options(options) for options in (noted, request.changed_options))
        raise UserError(
            f"{folder} holds masks found with {before}, but the request is for {now}; move it away to find them anew"
        )


def describe_options(options: dict[str, str]) -> str:
    """Return the options of a request as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "the defaults"


def find_masks(
    frames: list[Path], missing: list[Path], request: MaskRequest, write_flow: Callable[[], object]
) -> tuple[str, Iterable[Pixels]]:
    """Return the method that is used, and the masks (H, W) uint8 of the missing frames, in order.

    write_flow: see `write_masks`. The method "auto" prints a line when it falls back to another one. Raise UserError if
    the method cannot be used.
    """
    if request.method == "import":
        masks = import_object_masks(frames, request) if request.objects > 1 else import_masks(frames, request)
        return "import", (mask for path, mask in zip(frames, masks, strict=True) if path in set(missing))
    if request.method == "motion":
        write_flow()
        return "motion", find_moving_object(frames, missing, request)
    if request.method == "sam2" or (request.method == "auto" and request.prompts):
        try:
            return "sam2", segment_clicks(frames, missing, request)
        except NoWeights as error:
            if request.method == "sam2":
                raise
            check_detector_prompts(request)
            print(f"falling back to --method maskrcnn: {error}", file=sys.stderr, flush=True)
    if request.text is not None:
        return "sam3", segment_text(frames, missing, request)
    check_detector_prompts(request)
    try:
        method = "maskrcnn" if request.method == "auto" else request.method
        return method, track_objects(frames, missing, make_detector(request), request)
    except (NoWeights, NothingFound) as error:
        if request.objects > 1:
            raise UserError(
                f"{error}; --method motion, which needs no weights, can't tell {request.objects} objects apart: give "
                "label pictures as --masks"
            ) from None
        if not may_find_by_motion(request):
            raise
        print(f"falling back to --method motion: {error}", file=sys.stderr, flush=True)
    write_flow()
    return "motion", find_moving_object(frames, missing, request)


def may_find_by_motion(request: MaskRequest) -> bool:
    """Return whether masks are found by motion if no detector can be used: nothing says which object is meant."""
    says_nothing = request.weights is None and not request.prompts and request.text is None
    return request.method == "auto" and request.objects == 1 and says_nothing


def check_request_fits_clip(request: MaskRequest, frame_count: int, size: tuple[int, int]) -> None:
    """Raise UserError for a request that a clip of so many frames of `size` (width, height) cannot fulfil.

    That is an unknown class, prompts outside the clip, boxes without area, and objects without a positive prompt.
    """
    asks_detector = request.method == "maskrcnn" or (request.method == "auto" and not request.prompts)
    if asks_detector and request.class_name != MaskRequest().class_name:
        from preprocessing.mask_rcnn import check_class_name, class_names

        check_class_name(request.class_name, class_names())
    if not request.prompts:
        return
    width, height = size
    for number, object_prompts in request.prompts_by_object().items():
        if not any(prompt.is_positive for prompt in object_prompts):
            raise UserError(f"object {number} has no --point and no --box, only --negative; click on the object, too")
        for prompt in object_prompts:
            if not 0 <= prompt.t < frame_count:
                raise UserError(f"{prompt}: the clip has the frames 0 to {frame_count - 1}; give one of them")
            if any(not (0 <= x < width and 0 <= y < height) for x, y in prompt.corners):
                raise UserError(f"{prompt}: outside the frames of {width} x {height} pixels; give a pixel inside")
            if prompt.is_box and not np.less(prompt.corners[0], prompt.corners[1]).all():
                raise UserError(f"{prompt}: the box has no area; give its upper left and lower right corner")


def check_detector_prompts(request: MaskRequest) -> None:
    """Raise UserError if a detector cannot use the prompts of a request: it takes one point, of one object."""
    is_one_point = len(request.prompts) == 1 and request.prompts[0].is_positive and not request.prompts[0].is_box
    if request.prompts and not (is_one_point and request.objects == 1):
        raise UserError(
            f"{request.prompts[-1]}: a detector takes one --point, of one object; more points, boxes and several "
            "objects need --method sam2"
        )


def segment_clicks(frames: list[Path], missing: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of the missing frames by SAM 2, which is loaded at once.

    Raises NoWeights if it cannot be, UserError if the prompts cannot be used.
    """
    from preprocessing.mask_sam2 import Sam2Tracker, segment_clicked_objects
    from unwrap_utils import pick_device

    if not request.prompts:
        raise UserError("--method sam2 needs to know where the object is: give --point X,Y,FRAME or --box")
    tracker = Sam2Tracker(request.weights, pick_device())
    return segment_clicked_objects(frames, missing, request, tracker)


def segment_text(frames: list[Path], missing: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of the missing frames by SAM 3, which is loaded at once.

    Raises NoWeights if it cannot be: what somebody asked for in words is never replaced by a guess.
    """
    from preprocessing.mask_sam3 import Sam3Finder, segment_named_objects
    from unwrap_utils import pick_device

    finder = Sam3Finder(request.weights, pick_device())
    return segment_named_objects(frames, missing, request, finder)


def import_masks(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of all frames that another program made. Raise UserError without a source."""
    from preprocessing.mask_import import read_masks

    if request.source is None:
        raise UserError("--method import needs --masks, a folder of mask pictures or a matte video")
    return read_masks(request.source, frames, request.label, request.threshold, request.mask_kind)


def import_object_masks(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of all frames, of all objects together, from a folder of label pictures.

    The masks of each object, which are the labels 1, 2, ..., are also written into a folder of its own. Raise
    UserError, and leave no folder behind, if no picture has one of the labels.
    """
    if request.source is None or not request.source.is_dir():
        raise UserError(f"{request.source}: --objects {request.objects} needs a folder of label pictures")
    folders = list_object_folders(frames[0].parent, request.objects)
    for label, folder in enumerate(folders, 1):
        empty = write_object_masks(frames, import_masks(frames, replace(request, label=label)), folder)
        if len(empty) == len(frames):
            for written in folders[:label]:
                shutil.rmtree(written)
            raise UserError(
                f"{request.source}: no picture has the label {label}, expected labels 1 to {request.objects}; "
                "lower --objects, or leave it out for masks of one object"
            )
    return merge_object_masks(frames, folders)


def find_moving_object(frames: list[Path], missing: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8, 0 or 255, of what moves in the clip, for the missing frames.

    The chosen candidate is refined twice: motion alone misses parts of the object in many frames. Also writes a picture
    of all candidates. Raise UserError if nothing moves, or if there is no such --candidate.
    """
    from masks.cues import shrink_video
    from masks.refinement import refine_masks
    from preprocessing.mask_motion import enlarge_masks, find_candidates
    from preprocessing.mask_refinement import align_both, fit_to_frames, motion_gain_px
    from preprocessing.mask_report import write_candidates
    from preprocessing.small_video import open_small_clip, read_small_video

    video = read_small_video(open_small_clip(frames[0].parent))
    candidates = find_candidates(video)
    number = request.candidate or 1
    picture = write_candidates(frames, candidates)
    if number > len(candidates):
        raise UserError(f"--candidate {number}: there are {len(candidates)}, see {picture}")
    another = 2 if number == 1 else 1
    folder = f"{frames[0].parent.name}_maskrcnn"
    print(
        f"candidate {number} of {len(candidates)} in {picture}, which shows them before they are refined; "
        f"to take another one, move {folder} away and give --method motion --candidate {another}"
    )
    rough = enlarge_masks(list(candidates.values())[number - 1], video.size)
    clip, rgb = shrink_video(video), video.frames.numpy()
    refined = refine_masks(clip, rough, *align_both(video, rough > 127))
    masks = np.stack(map_side_by_side(lambda t: refined.mask(rgb[t], t), range(len(rgb))))
    motions = align_both(video, masks > 127)
    if (gain := motion_gain_px(clip, masks, motions)) < UNSURE_GAIN_PX:
        warn(
            f"not sure that the masks show the object: its motion fits them by only {gain:.1f} px better than the "
            f"background's does; look at {picture} and choose with --candidate, bring --masks or click with --point"
        )
    return fit_to_frames(refine_masks(clip, masks, *motions), frames, missing)
