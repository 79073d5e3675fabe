"""Masks of objects that a detector finds, followed through the clip."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from command_line import UserError
from media import Pixels
from media.clip import mask_suffixes
from preprocessing.flow import fit_size
from preprocessing.mask_files import write_mask_files
from preprocessing.mask_request import MaskRequest
from preprocessing.mask_tracking import (
    LONG_EDGE_PX,
    Detection,
    Motion,
    Track,
    fill_gaps,
    find_track_at,
    link_detections,
)

DETECTOR_LONG_EDGE_PX = 960  # detectors reduce what they get; masks of that size also keep the memory small


class NothingFound(UserError):
    """A detector sees no object of the class in any frame."""


class Detector(Protocol):
    """What finds objects in frames."""

    batch: int

    def __call__(self, images: list[Pixels]) -> list[list[Detection]]: ...

    def name_of(self, label: int) -> str: ...


def object_folders(video: Path, request: MaskRequest) -> list[Path]:
    """The mask folders of single objects, where several are asked for."""
    suffixes = mask_suffixes(request.objects) if request.objects > 1 else []
    return [video.with_name(video.name + suffix) for suffix in suffixes]


def make_detector(request: MaskRequest) -> Detector:
    """The detector of a method. Raises UserError if the class is unknown, or without weights."""
    from unwrap_utils import pick_device

    if request.method == "detectron2":
        from preprocessing.mask_detectron2 import Detectron2

        return Detectron2(request.class_name, request.weights, pick_device())

    from preprocessing.mask_rcnn import MaskRcnn

    return MaskRcnn(request.class_name, request.weights, pick_device())


def write_object_masks(frames: list[Path], masks: Iterable[Pixels], folder: Path) -> list[Path]:
    """Write the masks of one object of several; returns the frames whose masks are empty."""
    media.make_folder(folder)
    empty = write_mask_files(frames, masks, folder)
    print(f"masks of one object: {folder}")
    return empty


def track_objects(
    frames: list[Path], missing: list[Path], detector: Detector, request: MaskRequest
) -> Iterator[Pixels]:
    """The masks of one object, followed through the clip, of the missing frames.

    With several objects asked for, each also gets all its masks in a folder NAME_maskrcnn_1, _2, ...; the masks
    returned show them all. Raises NothingFound.
    """
    found, motion = detect_objects(frames, detector)
    chosen = choose_tracks(link_detections(found, motion), motion, detector, request, media.image_size(frames[0]))
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
    every = [fill_gaps(track, len(frames), motion) for track in chosen]
    for track, (masks, mended) in zip(chosen, every, strict=True):
        seen = sum(mask is not None for mask in masks)
        print(f"{detector.name_of(track.label)}: in {seen} of {len(frames)} frames, {len(mended)} of them filled in")
    size = media.image_size(frames[0])
    for folder, (masks, _) in zip(object_folders(frames[0].parent, request), every, strict=False):
        write_object_masks(frames, (resize_mask(mask, size) for mask in masks), folder)
    numbers = {path: t for t, path in enumerate(frames)}
    return (np.maximum.reduce([resize_mask(masks[numbers[path]], size) for masks, _ in every]) for path in missing)


def resize_mask(mask: Pixels | None, size: tuple[int, int]) -> Pixels:
    """A mask at (width, height); nothing is an empty one."""
    return np.zeros(size[::-1], np.uint8) if mask is None else media.resize(mask, *size)


def detect_objects(frames: list[Path], detector: Detector) -> tuple[list[list[Detection]], Motion]:
    """What a detector finds in every frame, and how the frames move."""
    native = media.image_size(frames[0])
    reduced, small = (fit_size(native, edge) for edge in (DETECTOR_LONG_EDGE_PX, LONG_EDGE_PX))
    found: list[list[Detection]] = []
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


def choose_tracks(
    tracks: list[Track], motion: Motion, detector: Detector, request: MaskRequest, native: tuple[int, int]
) -> list[Track]:
    """The objects that were asked for; lists what there is."""
    for number, track in enumerate(tracks, 1):
        first, last = min(track.detections), max(track.detections)
        sure = track.weight / len(track.detections)
        print(
            f"object {number}: {detector.name_of(track.label)}, found in {len(track.detections)} frames ({first} to {last}),"
            f" mean score {sure:.2f}"
        )
    if request.point is not None:
        x, y, t = request.point
        if not (0 <= x < native[0] and 0 <= y < native[1] and 0 <= t <= len(motion.forward)):
            raise UserError(
                f"--point {x:g},{y:g},{t}: outside the clip of {len(motion.forward) + 1} frames of "
                f"{native[0]} x {native[1]}"
            )
        scale = fit_size(native, DETECTOR_LONG_EDGE_PX)[0] / native[0]
        return [find_track_at(tracks, x * scale, y * scale, t, detector.name_of)]
    first = request.instance or 1
    if request.instance is not None and request.instance > len(tracks):
        raise UserError(f"--instance {request.instance}: only {len(tracks)} objects were found; see the list above")
    return tracks[first - 1 : first - 1 + request.objects]
