"""Masks of the moving object by any method, beside the frames: NAME_maskrcnn/STEM.png, white inside."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from command_line import UserError, named, warn
from media import Pixels
from media.mask_notes import are_found, asked_for, note_path, write_note
from metrics.masks import iou
from preprocessing.errors import NoWeights
from preprocessing.flow import fitting
from preprocessing.mask_tracking import LONG_EDGE_PX, Find, Motion, Track, filled, track_at, tracks_of
from reporting.preview import contact_rows
from unwrap_utils import mask_suffixes, spread_numbers

DETECTOR_LONG_EDGE_PX = 960  # detectors reduce what they get; masks of that size also keep the memory small
SHEET_FRAMES, SHEET_COLUMNS = 6, 3  # of the picture that shows the masks
OUTLINE = (255, 40, 160)


@dataclass(frozen=True)
class MaskRequest:
    """Which masks, and how to find them."""

    method: str = "auto"
    class_name: str = "anything"
    weights: Path | None = None
    instance: int | None = None  # the N-th object, counting from 1, the surest and longest first
    point: tuple[float, float, int] | None = None  # x, y in pixels of a frame, its number
    objects: int = 1  # how many, each into a folder of its own
    source: Path | None = None  # import: folder or video
    label: int | None = None
    threshold: float | None = None

    @property
    def words(self) -> dict[str, str]:
        """What differs from the defaults, to be noted beside the masks."""
        defaults = MaskRequest()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value != getattr(defaults, name)}


class NothingFound(UserError):
    """A detector sees no object of the class in any frame."""


class Detector(Protocol):
    """What finds objects in frames."""

    batch: int

    def __call__(self, images: list[Pixels]) -> list[list[Find]]: ...

    def name_of(self, label: int) -> str: ...


def frames_in(folder: Path) -> list[Path]:
    """The frames of a clip. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --vid-path takes the folder of frames")
    if frames := media.list_images(folder):
        return frames
    raise UserError(f"{folder}: holds no images; put the frames there as 00000.jpg, 00001.jpg, ...")


def write_masks(video: Path, request: MaskRequest) -> Path:
    """Write the masks that are missing, and a picture and a report of all; returns their folder."""
    video = named(video)
    frames = frames_in(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    missing = without_masks(frames, folder)
    objects = object_folders(video, request)
    are_there = bool(objects) and not any(without_masks(frames, each) for each in objects)
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
    masks = masks_of_all(missing, objects) if are_there else found_masks(frames, missing, request)
    # Found masks beside somebody's own are taken for theirs.
    all_are_found = not are_there and (missing == frames or are_found(folder, folder))
    found = [folder, *objects] if all_are_found and request.method != "import" else []
    media.make_folder(folder)
    print(f"{len(missing)} masks to find, writing to {folder}", flush=True)
    if empty := write_all(missing, masks, folder):
        names = ", ".join(path.name for path in empty[:5]) + (", ..." if len(empty) > 5 else "")
        warn(f"no object found in {len(empty)} of {len(missing)} frames, masks are empty there: {names}")
    show_masks(frames, folder, request.words, found)
    print(f"wrote {folder}")
    return folder


def object_folders(video: Path, request: MaskRequest) -> list[Path]:
    """The mask folders of single objects, where several are asked for."""
    suffixes = mask_suffixes(request.objects) if request.objects > 1 else []
    return [video.with_name(video.name + suffix) for suffix in suffixes]


def without_masks(frames: list[Path], folder: Path) -> list[Path]:
    """The frames that have no mask in a folder."""
    present = {path.stem for path in media.list_images(folder)} if folder.is_dir() else set()
    return [path for path in frames if path.stem not in present]


def masks_of_all(frames: list[Path], folders: list[Path]) -> Iterator[Pixels]:
    """The masks of all objects together, from the folders of each."""
    named_masks = [{path.stem: path for path in media.list_images(folder)} for folder in folders]
    for frame in frames:
        yield np.maximum.reduce([media.read_mask(masks[frame.stem]) for masks in named_masks])


def check_request(folder: Path, request: MaskRequest) -> None:
    """Say so if masks that are there were not found as they are asked for now.

    Raises UserError if it is known how they were found; warns if they are somebody's own.
    """
    if request.source is not None and request.source.resolve() == folder.resolve():
        return
    asked = asked_for(folder)
    if asked is None:
        if request.words:
            warn(f"{folder} holds masks already; to find others, move it away")
        return
    if request.words and asked != request.words and "refine" not in asked:
        before, now = (described(words) for words in (asked, request.words))
        raise UserError(f"{folder} holds masks found with {before}, asked for is {now}; move it away to find them anew")


def described(words: dict[str, str]) -> str:
    """A request in words."""
    return ", ".join(f"{name} {value}" for name, value in words.items()) or "the defaults"


def write_all(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write one mask per frame, all or none; returns the frames whose masks are empty."""
    unfinished = folder.with_name(f".{folder.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    empty = []
    try:
        for path, mask in zip(frames, tqdm(masks, desc="masks", unit="frame", total=len(frames)), strict=True):
            if mask.max() <= 127:
                empty.append(path)
            media.write_png(unfinished / f"{path.stem}.png", mask)
        for path in frames:
            (unfinished / f"{path.stem}.png").replace(folder / f"{path.stem}.png")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return empty


def found_masks(frames: list[Path], missing: list[Path], request: MaskRequest) -> Iterable[Pixels]:
    """The masks (H, W) uint8 of the missing frames, in order; `auto` says when it falls back."""
    if request.method == "import":
        every = imported_objects(frames, request) if request.objects > 1 else imported(frames, request)
        return (mask for path, mask in zip(frames, every, strict=True) if path in set(missing))
    if request.method == "motion":
        return moving(frames, missing)
    is_choice = request.method != "auto" or request.weights is not None
    if request.method != "detectron2":
        from preprocessing.mask_rcnn import check_class_name

        check_class_name(request.class_name)
    try:
        return tracked(frames, missing, make_detector(request), request)
    except (NoWeights, NothingFound) as error:
        if request.objects > 1:
            raise UserError(
                f"{error}; --method motion, which needs no weights, can't tell {request.objects} objects apart: give "
                "label pictures as --masks"
            ) from None
        if is_choice:
            raise
        print(f"falling back to --method motion: {error}", file=sys.stderr, flush=True)
        return moving(frames, missing)


def make_detector(request: MaskRequest) -> Detector:
    """The detector of a method. Raises UserError if the class is unknown, or without weights."""
    from unwrap_utils import pick_device

    if request.method == "detectron2":
        from preprocessing.mask_detectron2 import Detectron2

        return Detectron2(request.class_name, request.weights, pick_device())

    from preprocessing.mask_rcnn import MaskRcnn

    return MaskRcnn(request.class_name, request.weights, pick_device())


def imported(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Masks made elsewhere, of all frames."""
    from preprocessing.mask_import import imported_masks

    if request.source is None:
        raise UserError("--method import needs --masks, a folder of mask pictures or a matte video")
    return imported_masks(request.source, frames, request.label, request.threshold)


def imported_objects(frames: list[Path], request: MaskRequest) -> Iterator[Pixels]:
    """Masks of all objects together; each object, a label from 1 on, also gets a folder of its own."""
    if request.source is None or not request.source.is_dir():
        raise UserError(f"{request.source}: --objects {request.objects} needs a folder of label pictures")
    folders = object_folders(frames[0].parent, request)
    for label, folder in enumerate(folders, 1):
        if len(write_object(frames, imported(frames, replace(request, label=label)), folder)) == len(frames):
            for made in folders[:label]:
                shutil.rmtree(made)
            raise UserError(
                f"{request.source}: no picture has the label {label}, expected labels 1 to {request.objects}; "
                "lower --objects, or leave it out for masks of one object"
            )
    return masks_of_all(frames, folders)


def write_object(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write the masks of one object of several; returns the frames whose masks are empty."""
    media.make_folder(folder)
    empty = write_all(frames, masks, folder)
    print(f"masks of one object: {folder}")
    return empty


def moving(frames: list[Path], missing: list[Path]) -> Iterator[Pixels]:
    """The masks of what moves in the clip, of the missing frames."""
    from preprocessing.mask_motion import mended_masks, moving_masks, small_clip_of, small_video

    video = small_video(small_clip_of(frames[0].parent))
    return mended_masks(video, moving_masks(video), frames, missing)


def tracked(frames: list[Path], missing: list[Path], detector: Detector, request: MaskRequest) -> Iterator[Pixels]:
    """The masks of one object, followed through the clip, of the missing frames.

    With several objects asked for, each also gets all its masks in a folder NAME_maskrcnn_1, _2, ...; the masks
    returned show them all. Raises NothingFound.
    """
    found, motion = detections(frames, detector)
    chosen = chosen_tracks(tracks_of(found, motion), motion, detector, request, media.image_size(frames[0]))
    if not chosen:
        raise NothingFound(
            f"no {request.class_name if request.class_name != 'anything' else 'known object'} was found in any frame; "
            "use another --class_name, or --method motion"
        )
    if len(chosen) < request.objects:
        raise NothingFound(
            f"{len(chosen)} of {request.objects} objects were found, see the list above; lower --objects, or use "
            "another --class_name or label pictures as --masks"
        )
    every = [filled(track, len(frames), motion) for track in chosen]
    for track, (masks, mended) in zip(chosen, every, strict=True):
        seen = sum(mask is not None for mask in masks)
        print(f"{detector.name_of(track.label)}: in {seen} of {len(frames)} frames, {len(mended)} of them filled in")
    size = media.image_size(frames[0])
    for folder, (masks, _) in zip(object_folders(frames[0].parent, request), every, strict=False):
        write_object(frames, (at_size(mask, size) for mask in masks), folder)
    numbers = {path: t for t, path in enumerate(frames)}
    return (np.maximum.reduce([at_size(masks[numbers[path]], size) for masks, _ in every]) for path in missing)


def at_size(mask: Pixels | None, size: tuple[int, int]) -> Pixels:
    """A mask at (width, height); nothing is an empty one."""
    return np.zeros(size[::-1], np.uint8) if mask is None else media.resize(mask, *size)


def detections(frames: list[Path], detector: Detector) -> tuple[list[list[Find]], Motion]:
    """What a detector finds in every frame, and how the frames move."""
    native = media.image_size(frames[0])
    reduced, small = (fitting(native, edge) for edge in (DETECTOR_LONG_EDGE_PX, LONG_EDGE_PX))
    found: list[list[Find]] = []
    smaller: list[Pixels] = []
    batch: list[Pixels] = []
    for number, path in enumerate(tqdm(frames, desc="looking for objects", unit="frame"), 1):
        image = media.resize(media.read_rgb(path), *reduced)
        smaller.append(media.resize(image, *small))
        batch.append(image)
        if len(batch) == detector.batch or number == len(frames):
            found += detector(batch)
            batch = []
    search = DisFlow()
    both = [[flow.astype(np.float16) for flow in search(a, b)] for a, b in pairwise(smaller)]
    return found, Motion([there for there, _ in both], [back for _, back in both], small)


def chosen_tracks(
    tracks: list[Track], motion: Motion, detector: Detector, request: MaskRequest, native: tuple[int, int]
) -> list[Track]:
    """The objects that were asked for; lists what there is."""
    for number, track in enumerate(tracks, 1):
        first, last = min(track.finds), max(track.finds)
        sure = track.weight / len(track.finds)
        print(
            f"object {number}: {detector.name_of(track.label)}, found in {len(track.finds)} frames ({first} to {last}),"
            f" mean score {sure:.2f}"
        )
    if request.point is not None:
        x, y, t = request.point
        if not (0 <= x < native[0] and 0 <= y < native[1] and 0 <= t <= len(motion.there)):
            raise UserError(
                f"--point {x:g},{y:g},{t}: outside the clip of {len(motion.there) + 1} frames of "
                f"{native[0]} x {native[1]}"
            )
        scale = fitting(native, DETECTOR_LONG_EDGE_PX)[0] / native[0]
        return [track_at(tracks, x * scale, y * scale, t, detector.name_of)]
    first = request.instance or 1
    if request.instance is not None and request.instance > len(tracks):
        raise UserError(f"--instance {request.instance}: only {len(tracks)} objects were found; see the list above")
    return tracks[first - 1 : first - 1 + request.objects]


def refine_masks(video: Path) -> Path:
    """Mend a clip's masks; the given ones stay beside them as NAME_maskrcnn_rough. Returns the folder."""
    from preprocessing.mask_motion import mended_masks, small_clip_of, small_video

    video = named(video)
    frames = frames_in(video)
    folder = video.with_name(f"{video.name}_maskrcnn")
    kept, unfinished = (folder.with_name(folder.name + suffix) for suffix in ("_rough", "_unfinished"))
    clip = small_clip_of(video)
    if clip.masks is None:
        raise UserError(f"{folder}: no such folder; --refine mends masks that are there, so find or make some first")
    if kept.exists():
        raise UserError(f"{kept} is there: these masks were mended before; to mend anew, move it back to {folder.name}")
    rough = np.stack([clip.mask(path) for path in clip.masks])
    if not (rough > 127).any():
        raise UserError(f"{folder}: all masks are empty, nothing to learn from; use --method motion in another folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    media.make_folder(unfinished)
    write_all(frames, mended_masks(small_video(clip), rough, frames, frames), unfinished)
    if folder.with_name(f"{folder.name}_1").is_dir():
        warn(f"the masks of single objects ({folder.name}_1, ...) stay as they are; grids mend them when they start")
    folder.rename(kept)
    unfinished.rename(folder)
    show_masks(frames, folder, {"refine": "True"}, found=[])
    print(f"wrote {folder}; the masks as they were are in {kept}")
    return folder


def show_masks(frames: list[Path], folder: Path, asked: dict[str, str], found: list[Path]) -> None:
    """Write NAME_maskrcnn.png, some frames with the masks' outlines, and the note NAME_maskrcnn.json.

    found: the folders in which a method found every mask. Where true masks are, the note says how good these are.
    """
    masks = {path.stem: path for path in media.list_images(folder)}
    pictures = {}
    for t in spread_numbers(len(frames), SHEET_FRAMES):
        image = media.read_rgb(frames[t])
        mask = media.resize(media.read_mask(masks[frames[t].stem]), *image.shape[1::-1])
        outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        thickness = max(1, round(max(image.shape) / 320))
        pictures[frames[t].name] = cv2.drawContours(image.copy(), outlines, -1, OUTLINE, thickness)
    sheet = folder.with_name(f"{folder.name}.png")
    media.write_png(sheet, contact_rows(pictures, SHEET_COLUMNS))
    print(f"look at {sheet}: the outlines should follow the object")
    truth = frames[0].parent.with_name(f"{frames[0].parent.name}_gt")
    quality = mask_quality(frames, masks, truth) if truth.is_dir() else {}
    if quality:
        worst = min(quality, key=quality.get)
        mean = sum(quality.values()) / len(quality)
        print(f"J against {truth}: mean {mean:.3f}, worst {quality[worst]:.3f} in {worst}; all: {note_path(folder)}")
        quality = {"mean_j": round(mean, 4), "j": quality}
    write_note(folder, asked, found, quality)


def mask_quality(frames: list[Path], masks: dict[str, Path], truth: Path) -> dict[str, float]:
    """J (IoU with the true mask) of each frame whose truth is known; masks by the frames' stems."""
    by_name = {path.stem: path for path in media.list_images(truth)}
    values = {}
    for path in frames:
        if path.stem in by_name:
            expected = media.read_mask(by_name[path.stem]) > 127
            found = media.resize_labels(media.read_mask(masks[path.stem]), *expected.shape[::-1]) > 127
            values[path.name] = round(iou(found, expected), 4)
    return values
