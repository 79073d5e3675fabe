"""Find objects in the frames with a detector, and follow the requested ones through the clip."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

import media
from alignment.dis_flow import DisFlow
from command_line import UserError
from media import Pixels
from media.images import fit_size
from preprocessing.errors import NothingFound
from preprocessing.mask_files import list_object_folders, write_object_masks
from preprocessing.mask_request import MaskRequest
from preprocessing.mask_tracking import (
    TRACKING_LONG_EDGE_PX,
    Detection,
    Motion,
    Track,
    fill_gaps,
    find_track_at,
    link_detections,
)

# Pixels of the longer side of the frames that a detector gets. Detectors reduce larger frames by themselves, and
# smaller masks need less memory.
DETECTOR_LONG_EDGE_PX = 960


class Detector(Protocol):
    """A network that finds objects in single frames."""

    batch_size: int  # number of frames that one call takes at most

    def __call__(self, images: list[Pixels]) -> list[list[Detection]]:
        """Return the detections of each of the frames (H, W, 3) uint8, the surest first."""
        ...

    def label_name(self, label: int) -> str:
        """Return the name of a class."""
        ...


def make_detector(request: MaskRequest) -> Detector:
    """Return the detector of the requested method. Raise UserError for an unknown class, NoWeights without weights."""
    from unwrap_utils import pick_device

    if request.method == "detectron2":
        from preprocessing.mask_detectron2 import Detectron2

        return Detectron2(request.class_name, request.weights, pick_device())

    from preprocessing.mask_rcnn import MaskRcnn

    return MaskRcnn(request.class_name, request.weights, pick_device())


def track_objects(
    frames: list[Path], missing: list[Path], detector: Detector, request: MaskRequest
) -> Iterator[Pixels]:
    """Return the masks (H, W) uint8 of the missing frames, of the requested objects together.

    Each object is followed through the whole clip. If several objects are requested, the masks of each are also written
    into a folder of its own: NAME_maskrcnn_1, NAME_maskrcnn_2, ... Raise NothingFound if there are too few objects.
    """
    detections, motion = detect_objects(frames, detector)
    size = media.image_size(frames[0])
    tracks = choose_tracks(link_detections(detections, motion), motion, detector, request, size)
    if not tracks:
        raise NothingFound(
            f"no {request.class_name if request.class_name != 'anything' else 'known object'} was found in any frame; "
            "use another --class_name, or --method motion"
        )
    if len(tracks) < request.objects:
        raise NothingFound(
            f"{len(tracks)} of {request.objects} objects were found, see the list above; lower --objects, or use "
            "another --class_name or label pictures as --masks"
        )
    object_masks = []
    for track in tracks:
        masks, filled = fill_gaps(track, len(frames), motion)
        count = sum(mask is not None for mask in masks)
        name = detector.label_name(track.label)
        print(f"{name}: in {count} of {len(frames)} frames, {len(filled)} of them filled in")
        object_masks.append(masks)
    for folder, masks in zip(list_object_folders(frames[0].parent, request.objects), object_masks, strict=False):
        write_object_masks(frames, (resize_mask(mask, size) for mask in masks), folder)
    numbers = {path: t for t, path in enumerate(frames)}
    return (np.maximum.reduce([resize_mask(masks[numbers[path]], size) for masks in object_masks]) for path in missing)


def resize_mask(mask: Pixels | None, size: tuple[int, int]) -> Pixels:
    """Return a mask resized to (width, height); None becomes an empty mask."""
    return np.zeros(size[::-1], np.uint8) if mask is None else media.resize(mask, *size)


def detect_objects(frames: list[Path], detector: Detector) -> tuple[list[list[Detection]], Motion]:
    """Return the detections of every frame, and the flow between neighbouring frames."""
    native_size = media.image_size(frames[0])
    detector_size, tracking_size = (
        fit_size(native_size, long_edge) for long_edge in (DETECTOR_LONG_EDGE_PX, TRACKING_LONG_EDGE_PX)
    )
    detections: list[list[Detection]] = []
    small_frames: list[Pixels] = []
    batch: list[Pixels] = []
    for number, path in enumerate(tqdm(frames, desc="looking for objects", unit="frame"), 1):
        image = media.resize(media.read_rgb(path), *detector_size)
        small_frames.append(media.resize(image, *tracking_size))
        batch.append(image)
        if len(batch) == detector.batch_size or number == len(frames):
            detections += detector(batch)
            batch = []
    dis = DisFlow()
    flows = [[flow.astype(np.float16) for flow in dis(a, b)] for a, b in pairwise(small_frames)]
    return detections, Motion([forward for forward, _ in flows], [backward for _, backward in flows], tracking_size)


def choose_tracks(
    tracks: list[Track], motion: Motion, detector: Detector, request: MaskRequest, native_size: tuple[int, int]
) -> list[Track]:
    """Print a list of all tracks and return the requested ones. native_size: (width, height) of the frames.

    Raise UserError if the requested point is outside the clip or on no object, or if there is no such instance.
    """
    for number, track in enumerate(tracks, 1):
        first, last = min(track.detections), max(track.detections)
        mean_score = track.total_score / len(track.detections)
        print(
            f"object {number}: {detector.label_name(track.label)}, found in {len(track.detections)} frames "
            f"({first} to {last}), mean score {mean_score:.2f}"
        )
    if request.prompts:
        (prompt,) = request.prompts  # `check_detector_prompts` has refused more.
        ((x, y),), t = prompt.corners, prompt.t
        scale = fit_size(native_size, DETECTOR_LONG_EDGE_PX)[0] / native_size[0]
        return [find_track_at(tracks, x * scale, y * scale, t, detector.label_name)]
    if request.instance is not None and request.instance > len(tracks):
        raise UserError(f"--instance {request.instance}: only {len(tracks)} objects were found; see the list above")
    start = (request.instance or 1) - 1
    return tracks[start : start + request.objects]
